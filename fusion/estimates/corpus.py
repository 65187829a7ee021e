"""How much text: the recipe's own, a well-known corpus, or a number of pairs."""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusion.data import read_corpus
from fusion.errors import DataError, FusionError, nearest
from fusion.recipe import CorpusSpec, Recipe

SAMPLE = 2000  # pairs that are tokenised
MOST_PAIRS = 10**12
_COUNTED = 1_000_000  # lines among which repeated sentences are looked for


@dataclass(frozen=True)
class Corpus:
    """Size of a parallel corpus.

    Attributes:
        words: per sentence, between spaces: of source and target
        distinct: share of source sentences that differ from all others; None: nobody counted
        sample: some pairs; none where the text cannot be read
    """

    name: str
    pairs: int
    words: tuple[float, float]
    distinct: float | None = None
    sample: tuple[tuple[str, str], ...] = ()


# Pairs as published; words of raw text, about.
KNOWN: dict[str, Corpus] = {
    one.name: one
    for one in (
        Corpus("multi30k", 29_000, (11.9, 11.1), 28_991 / 29_000),
        Corpus("iwslt14", 160_239, (17.5, 16.5)),
        Corpus("wmt14", 4_500_966, (22.5, 21.0)),
    )
}
_USUAL = (22.0, 21.0)  # words of a sentence of web and news text
_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(e\d{1,2})?([kmb]?)", re.IGNORECASE)
_TIMES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}


def corpus(size: str, own: Corpus | None) -> Corpus:
    """What `--data` says: `recipe`, a known name, or a number of pairs such as 29k or 100M.

    A number of pairs is taken to be like the recipe's own text, where that can be read.

    Raises:
        FusionError: it is none of these, or the recipe's text cannot be read.
    """
    key = size.lower()
    if key == "recipe":
        if own is None:
            raise FusionError("--data recipe: its training text cannot be read; say a size: 29k")
        return own
    if key in KNOWN:
        return KNOWN[key]
    match = _NUMBER.fullmatch(key)
    pairs = 0
    if match is not None:
        whole, part, power, times = (found or "" for found in match.groups())
        pairs = round(float(whole.replace(",", "") + part + power) * _TIMES[times])
    if not 1 <= pairs <= MOST_PAIRS:
        known = ["recipe", *KNOWN]
        raise FusionError(
            f'--data: no corpus "{size}"{nearest(key, known)}; a name ({", ".join(known)}) or a '
            "number of pairs such as 29k, 4.5M or 100M"
        )
    if own is None:
        return Corpus(f"{pairs:,} pairs", pairs, _USUAL)
    return Corpus(f"{pairs:,} pairs like {own.name}", pairs, own.words, own.distinct)


def own_corpus(recipe: Recipe) -> Corpus | str:
    """The training text of a recipe; or why it cannot be read. Nothing is fetched from a hub."""
    specs = recipe.data.train if isinstance(recipe.data.train, list) else [recipe.data.train]
    if any(spec.hub is not None for spec in specs):
        return "it is on a hub"
    sampler = _Sampler()
    try:
        for number, spec in enumerate(specs):
            for source, target in _pairs(spec, recipe, f"data.train[{number}]"):
                sampler.add(source, target)
    except DataError as error:
        return str(error)
    if not sampler.kept:
        return "it is empty"
    return sampler.corpus()


def _pairs(spec: CorpusSpec, recipe: Recipe, where: str) -> Iterator[tuple[str, str]]:
    if spec.synthetic is None and spec.file is None:
        sides = [_lines(Path(str(place))) for place in (spec.source, spec.target)]
        yield from zip(*sides, strict=False)
        return
    found = read_corpus(spec, recipe.data, where, empty="drop")
    yield from zip(found["source"], found["target"], strict=True)


def _lines(path: Path) -> Iterator[str]:
    kind = gzip.open if path.suffix == ".gz" else open
    try:
        with kind(path, "rt", encoding="utf-8", newline="\n") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: {why}") from None


class _Sampler:
    """Pairs at even distances, of a stream whose end is not known."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str]] = []
        self._every = 1
        self._seen = 0
        self._hashes: set[int] = set()

    def add(self, source: str, target: str) -> None:
        """One more pair."""
        if self._seen < _COUNTED:
            self._hashes.add(hash(source.strip()))
        if self._seen % self._every == 0:
            self.kept.append((source.strip(), target.strip()))
            if len(self.kept) == 2 * SAMPLE:
                self.kept, self._every = self.kept[::2], 2 * self._every
        self._seen += 1

    def corpus(self) -> Corpus:
        """What was seen."""
        sides = zip(*self.kept, strict=True)
        source, target = (sum(len(t.split()) for t in side) / len(side) for side in sides)
        distinct = len(self._hashes) / min(self._seen, _COUNTED)
        sample = tuple(itertools.islice(self.kept, 0, None, max(1, len(self.kept) // SAMPLE)))
        return Corpus("the recipe's text", self._seen, (source, target), distinct, sample)
