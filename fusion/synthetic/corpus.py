"""The parallel corpus: training, dev and three test sets that ask different things.

known     new sentences of words that training repeats
rare      each sentence has a word that training has one to three times
synonyms  each sentence has an English word that training never has, for a German word that it
          repeats: only knowledge from elsewhere (a pretrained encoder) can help
"""

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from fusion.synthetic.lexicon import (
    ADJECTIVE_LIST,
    NOUN_LIST,
    SPLIT_FORMS,
    SYNONYM_LIST,
    VERB_LIST,
    Lexeme,
    Synonym,
    forms,
)
from fusion.synthetic.sentences import SentenceSampler

T = TypeVar("T")

VERSION = "1"
MIN_TRAIN_PAIRS = 2000
MAX_TRAIN_PAIRS = 500_000
DEV_PAIRS = TEST_PAIRS = 500
# In 20,000 training pairs, a word in `known`, or beside the special one in `rare` and `synonyms`,
# occurs at least this often; the German of `synonyms` likewise.  Scales with the training size.
KNOWN_COUNT = 10
PATIENCE = 60


class Pair(NamedTuple):
    source: str
    target: str


@dataclass(frozen=True)
class Corpus:
    """`splits` has keys train, dev, known, rare, synonyms; no sentence is in two of them."""

    splits: dict[str, list[Pair]]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; `teacher's` gives `teacher`, `s`."""
    return re.findall(r"\w+", text.lower())


class _Counts:
    """How often each word is in the training text."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.source = Counter(w for p in pairs for w in words(p.source))
        self.target = Counter(w for p in pairs for w in words(p.target))
        self._least = max(2, KNOWN_COUNT * len(pairs) // 20_000)

    def knows_source(self, text: str, but: frozenset[str] = frozenset()) -> bool:
        return all(self.source[w] >= self._least for w in words(text) if w not in but)

    def knows_target(self, text: str) -> bool:
        return all(self.target[w] >= self._least for w in words(text))


class _Generator:
    def __init__(self, seed: int, train_pairs: int) -> None:
        self._rng = random.Random(seed)
        self._sampler = SentenceSampler(self._rng)
        self._train_pairs = train_pairs
        self._seen: set[str] = set()
        everything: list[Lexeme] = [*NOUN_LIST, *VERB_LIST, *ADJECTIVE_LIST]
        self._rare = [lexeme for lexeme in everything if lexeme.rare]

    def splits(self) -> dict[str, list[Pair]]:
        train = self._train()
        counts = _Counts(train)

        def known(_: None, pair: Pair) -> bool:
            return counts.knows_source(pair.source) and counts.knows_target(pair.target)

        def rare(lexeme: Lexeme, pair: Pair) -> bool:
            return counts.knows_source(pair.source, but=frozenset(forms(lexeme)))

        def synonym(pick: Synonym, pair: Pair) -> bool:
            whole = not SPLIT_FORMS.intersection(words(pair.source))
            repeated = counts.knows_source(pair.source, but=frozenset(forms(pick.held_out)))
            return whole and repeated and counts.knows_target(pair.target)

        return {
            "train": train,
            "dev": self._take(DEV_PAIRS, [None], self._plain),
            "known": self._take(TEST_PAIRS, [None], self._plain, known),
            "rare": self._take(TEST_PAIRS, self._rare, self._with_rare, rare),
            "synonyms": self._take(TEST_PAIRS, SYNONYM_LIST, self._with_held_out, synonym),
        }

    def _train(self) -> list[Pair]:
        pairs: list[Pair] = []
        for i, lexeme in enumerate(self._rare):
            pairs += self._take(1 + i % 3, [lexeme], self._with_rare)
        pairs += self._take(self._train_pairs - len(pairs), [None], self._plain)
        for i in range(len(pairs) - 1, 0, -1):
            j = int(self._rng.random() * (i + 1))
            pairs[i], pairs[j] = pairs[j], pairs[i]
        return pairs

    def _take(
        self,
        count: int,
        topics: Sequence[T],
        draw: Callable[[T], Pair],
        accept: Callable[[T, Pair], bool] = lambda _, pair: True,
    ) -> list[Pair]:
        """`count` pairs that are new on both sides, from each topic in turn.

        A topic is given up when nothing acceptable comes in PATIENCE draws, unless it is the last.
        """
        pairs: list[Pair] = []
        topics, turn, failures = list(topics), 0, 0
        while len(pairs) < count:
            topic = topics[turn % len(topics)]
            pair = draw(topic)
            new = pair.source not in self._seen and pair.target not in self._seen
            if new and accept(topic, pair):
                self._seen.update(pair)
                pairs.append(pair)
                turn, failures = turn + 1, 0
                continue
            failures += 1
            if failures >= PATIENCE and len(topics) > 1:
                topics.remove(topic)
                failures = 0
        return pairs

    def _plain(self, _: None) -> Pair:
        return Pair(*self._sampler.draw())

    def _with_rare(self, lexeme: Lexeme) -> Pair:
        return Pair(*self._sampler.draw_with(lexeme))

    def _with_held_out(self, pick: Synonym) -> Pair:
        return Pair(*self._sampler.draw_with(pick.held_out, instead_of=pick.known))


def generate(seed: int = 1, train_pairs: int = 20000) -> Corpus:
    """The corpus of this seed: the same bytes on every platform.

    Raises:  ValueError if train_pairs is outside MIN_TRAIN_PAIRS to MAX_TRAIN_PAIRS
    """
    if not MIN_TRAIN_PAIRS <= train_pairs <= MAX_TRAIN_PAIRS:
        raise ValueError(
            f"{train_pairs} training pairs; possible are {MIN_TRAIN_PAIRS} to {MAX_TRAIN_PAIRS}"
        )
    return Corpus(_Generator(seed, train_pairs).splits())


def write(corpus: Corpus, directory: str | os.PathLike[str]) -> None:
    """Write `{split}.en` and `{split}.de`; each file appears whole or not at all."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for split, pairs in corpus.splits.items():
        for suffix, lines in (("en", [p.source for p in pairs]), ("de", [p.target for p in pairs])):
            path = folder / f"{split}.{suffix}"
            temporary = folder / f".{split}.{suffix}.{os.getpid()}.tmp"
            temporary.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
            os.replace(temporary, path)
