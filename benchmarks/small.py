"""Small scales: short sentences of common words from the synthetic corpus, and a host to match.

quick  a host of width 64 scores about 65 BLEU after 500 updates of 25 ms
tiny   shows that a program runs; its scores mean nothing
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import merged

TESTS = ("known", "rare", "synonyms")
DRAWN = 50_000  # pairs that the short ones are picked from
# tried on seed 1, best dev BLEU in 741 updates: 64; with a peak of 0.002 56, of 0.004 64; with a
# warm-up of 150 60; with the others' init 48, and with their warm-up too 35 (peak 0.002)
DEEPER = {"host": {"init": "default"}, "train": {"learning_rate": 0.003, "warmup_steps": 300}}
RATES = {"host": 0.0015, "glue": 0.004}  # peaks, of what starts from a trained host


@dataclass(frozen=True)
class Small:
    """How small.

    Attributes:
        words: the most common ones, of which all training, dev and known sentences are made; rare
            and synonyms have one further word each
        pairs, held_out: of training, and of dev and each test set (at most)
        passes, further: over the training text: of a host; of what starts from one
        layers: of the host, encoder and decoder
        deeper: layers of the deeper host, whose feed-forward is twice as wide too
    """

    words: int = 200
    pairs: int = 2500
    held_out: int = 100
    passes: int = 10
    further: int = 3
    batch_tokens: int = 512
    vocabulary: int = 500
    width: int = 64
    layers: tuple[int, int] = (2, 2)
    deeper: tuple[int, int] = (4, 3)

    def write_text(self, folder: Path) -> None:
        """Write `{split}.en` and `{split}.de`, unless they are there."""
        from fusion.synthetic import generate
        from fusion.synthetic.corpus import Corpus, Pair, words, write

        splits = ("train", "dev", *TESTS)
        if all((folder / f"{split}.{side}").is_file() for split in splits for side in ("en", "de")):
            return
        drawn = generate(seed=1, train_pairs=DRAWN).splits
        counts = Counter(word for pair in drawn["train"] for word in set(words(pair.source)))
        common = {word for word, _ in counts.most_common(self.words)}

        def shortest(split: str, further: int) -> list[Pair]:
            kept = [p for p in drawn[split] if len({*words(p.source)} - common) <= further]
            return sorted(kept, key=lambda pair: len(pair.source))

        pool = shortest("train", 0)[: self.pairs + 2 * self.held_out]
        every = len(pool) // self.held_out
        cut = {"dev": pool[::every][: self.held_out], "known": pool[1::every][: self.held_out]}
        held_out = {*cut["dev"], *cut["known"]}
        cut["train"] = [pair for pair in pool if pair not in held_out]
        cut |= {split: shortest(split, 1)[: self.held_out] for split in TESTS[1:]}
        write(Corpus(cut), folder)

    def common(self, text: Path) -> dict[str, Any]:
        """What differs from the quickstart's recipes in every run."""

        def corpus(split: str) -> dict[str, Any]:
            files = {"source": f"{text / split}.en", "target": f"{text / split}.de"}
            return {"synthetic": None} | files

        return {
            "data": {
                "train": corpus("train"),
                "dev": corpus("dev"),
                "tests": {split: corpus(split) for split in TESTS},
                "batch_tokens": self.batch_tokens,
            },
            "train": {"bf16": False},
            "generate": {"num_beams": 1},
        }

    def host(self) -> dict[str, Any]:
        """What differs for the host."""
        return self._new(self.layers, 2, self.passes, 0.005)

    def scratch(self) -> dict[str, Any]:
        """What differs for a fused model from nothing: the budget of host and fused."""
        return self._new(self.layers, 2, self.passes + self.further, 0.005)

    def deeper_host(self) -> dict[str, Any]:
        """What differs for a host with about the parameters of the fused model.

        As the others are set it does not learn: it has a start and a schedule of its own.
        """
        return merged(self._new(self.deeper, 4, self.passes + self.further, 0.005), DEEPER)

    def _new(self, layers: tuple[int, int], inner: int, passes: int, rate: float) -> dict[str, Any]:
        new: dict[str, Any] = {"d_model": self.width}
        for side, count in zip(("encoder", "decoder"), layers, strict=True):
            new |= {f"{side}_layers": count, f"{side}_ffn_dim": inner * self.width}
        return {
            "host": {"new": new, "tokenizer": {"vocab_size": self.vocabulary}},
            "train": {"num_train_epochs": passes, "learning_rate": rate, "warmup_steps": 100},
        }

    def warm(self) -> dict[str, Any]:
        """What differs for whatever starts from a trained host."""
        return {
            "train": {
                "num_train_epochs": self.further,
                "learning_rate": 0.002,
                "learning_rates": RATES,
                "warmup_steps": 30,
            }
        }

    def staged(self) -> dict[str, Any]:
        """The same budget in three stages: glue, host and glue, then the encoder too."""
        passes = self.further / 3
        return {
            "train": {"learning_rates": RATES, "warmup_steps": 10},
            "stages": [
                {"train": ["glue"], "passes": passes, "learning_rate": RATES["glue"]},
                {"train": ["host", "glue"], "passes": passes},
                {"train": "all", "passes": passes},
            ],
        }


SCALES = {
    "tiny": Small(
        pairs=200,
        held_out=4,
        passes=2,
        further=1,
        vocabulary=160,
        width=16,
        layers=(1, 1),
        deeper=(2, 1),
    ),
    "quick": Small(),
}
