"""Tokens of a sentence, for the host and every encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
from transformers import PreTrainedTokenizerBase

from fusion.checkpoints.directory import locate
from fusion.encoders.sentence_transformers import default_prompt
from fusion.errors import FusionError
from fusion.estimates.corpus import Corpus
from fusion.estimates.step import Batch
from fusion.parts import encoder_directory, host_directory, untrained_host
from fusion.processor import load_tokenizer
from fusion.recipe import Recipe, SentencePieceSpec

_LONGEST = 1.12  # the longest side of a pair over the longer mean, where no text can be read
# Share of positions that hold padding (TokenBatchSampler.padding) where the text makes so many full
# batches. Measured on Multi30k, 4,000 pieces, with batches of 128 to 32,768 tokens; a quarter and a
# sixteenth of it gave the same shares at the same numbers of batches.
_BATCHES = (16, 33, 66, 131, 263, 527, 1053, 2106, 4213)
_PADDING = (0.114, 0.080, 0.054, 0.035, 0.022, 0.013, 0.0075, 0.0039, 0.0017)
_PADDING_WITH_ENCODER = (0.163, 0.114, 0.082, 0.061, 0.046, 0.033, 0.023, 0.015, 0.008)
_USUAL_VOCABULARY = 32_000


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a sentence, special ones included.

    Attributes:
        longest: mean of the longest of a pair's lengths, which a batch's budget counts
        notes: what was not measured
    """

    source: float
    target: float
    encoders: dict[str, float]
    longest: float
    notes: list[str] = field(default_factory=list)

    def batch(self, tokens: int, pairs: int) -> Batch:
        """A usual batch of so many tokens, where a text of so many pairs is cut into them."""
        padded = 1 / (1 - padding(pairs * self.longest / tokens, bool(self.encoders)))
        return Batch(
            sentences=max(1, round(tokens / (self.longest * padded))),
            source=max(2, round(self.source * padded)),
            target=max(2, round(self.target * padded)),
            encoders={name: max(2, round(n * padded)) for name, n in self.encoders.items()},
        )


def padding(batches: float, with_encoder: bool) -> float:
    """Share of positions of batches that are alike in their lengths; the more, the more alike."""
    shares = _PADDING_WITH_ENCODER if with_encoder else _PADDING
    return float(np.interp(math.log(batches), np.log(_BATCHES), shares))


def lengths(recipe: Recipe, text: Corpus, own: Corpus | None) -> Lengths:
    """Words of a corpus times tokens per word: measured on the recipe's text, or a usual figure."""
    notes: list[str] = []
    sample = () if own is None else own.sample
    host = _host_tokenizer(recipe)
    size = _vocabulary(recipe) if host is None else len(host)
    if not sample:
        notes.append("tokens per word: usual figures, as the recipe's text cannot be read")
    elif host is None:
        notes.append(f"tokens per word of the host: a usual figure for {size:,} pieces")
    sides = [_Side.of(host, [pair[side] for pair in sample], size) for side in (0, 1)]
    every = [*sides]
    names = list(recipe.encoders)
    for name in names:
        spec = recipe.encoders[name]
        tokenizer = load_tokenizer(encoder_directory(spec))
        prompt = default_prompt(locate(spec.source))
        sources = [prompt + source for source, _ in sample]
        every.append(_Side.of(tokenizer, sources, len(tokenizer)))
    words = [text.words[0], text.words[1], *(text.words[0] for _ in names)]
    means = [side.mean(count) for side, count in zip(every, words, strict=True)]
    return Lengths(
        source=means[0],
        target=means[1],
        encoders=dict(zip(names, means[2:], strict=True)),
        longest=max(means) * _longest(every),
        notes=notes,
    )


@dataclass(frozen=True)
class _Side:
    """Tokens of one text: `special` + `per_word` x words; `counts` of the sample."""

    special: int
    per_word: float
    counts: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase | None, texts: list[str], size: int) -> _Side:
        words = sum(len(text.split()) for text in texts)
        if tokenizer is None or not words:
            return cls(2, usual_tokens_per_word(size), [])
        special = len(tokenizer("")["input_ids"])
        counts = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        return cls(special, (sum(counts) - special * len(texts)) / words, counts)

    def mean(self, words: float) -> float:
        return self.special + self.per_word * words


def _longest(sides: list[_Side]) -> float:
    counted = [side.counts for side in sides]
    if not all(counted):
        return _LONGEST
    return fmean(map(max, zip(*counted, strict=True))) / max(map(fmean, counted))


def usual_tokens_per_word(vocabulary: int) -> float:
    """Of European text: 1.9 with 2,000 pieces, 1.6 with 8,000, 1.3 with 32,000; about."""
    return max(1.2, 3.54 - 0.216 * math.log(max(vocabulary, 2000)))


def _host_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase | None:
    """The host's tokenizer; None where it has yet to be trained."""
    spec = recipe.host.tokenizer
    try:
        if (below := untrained_host(recipe)) is not None:
            return _host_tokenizer(below)
        if isinstance(spec, SentencePieceSpec):
            trained = Path(recipe.output) / "tokenizer"
            return load_tokenizer(trained) if trained.is_dir() else None
        if spec is not None:
            return load_tokenizer(locate(spec))
        return load_tokenizer(host_directory(recipe))
    except FusionError:
        return None


def _vocabulary(recipe: Recipe) -> int:
    below = untrained_host(recipe)
    spec = (below or recipe).host.tokenizer
    return spec.vocab_size if isinstance(spec, SentencePieceSpec) else _USUAL_VOCABULARY
