"""`python -m fusion.synthetic OUT_DIR [--seed N] [--pairs N]`: write the corpus to a folder."""

import argparse
import sys
from typing import NoReturn

from fusion.synthetic.corpus import generate, write
from fusion.synthetic.lexicon import ADJECTIVE_LIST, NOUN_LIST, VERB_LIST


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    parser = _Parser(prog="python -m fusion.synthetic", description=__doc__)
    parser.add_argument("out_dir", metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20000, help="training pairs")
    options = parser.parse_args(arguments)
    try:
        corpus = generate(options.seed, options.pairs)
        write(corpus, options.out_dir)
    except ValueError as error:
        parser.error(f"--pairs: {error}")
    except OSError as error:
        parser.error(f"OUT_DIR: {error}")
    for split, pairs in corpus.splits.items():
        print(f"{split} {len(pairs)} pairs")
    print(f"{len(NOUN_LIST) + len(VERB_LIST) + len(ADJECTIVE_LIST)} lexemes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
