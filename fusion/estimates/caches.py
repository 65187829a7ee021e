"""What the memory caches of a recipe take: bytes, time to fill them, time to read a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusion.encoders.part import EncoderPart
from fusion.estimates.corpus import Corpus
from fusion.estimates.hardware import Hardware
from fusion.estimates.lengths import Lengths
from fusion.estimates.settings import cacheable, how_of
from fusion.estimates.step import Batch, run_encoder
from fusion.memory_cache.formats import FORMATS
from fusion.memory_cache.listing import shown_bytes
from fusion.memory_cache.prepare import BATCH_TOKENS
from fusion.memory_cache.store import PER_SENTENCE
from fusion.model import FusedModel
from fusion.recipe import Recipe

# How often values are read and written on their way into a format, and out of it: on a CPU, in
# batches that stay in its caches.
_WRITE_PASSES = {"fp32": 3, "fp16": 3, "bf16": 3, "int8": 8, "q3": 90}
_READ_PASSES = {"fp32": 2, "fp16": 3, "bf16": 3, "int8": 3, "q3": 8}
# Nanoseconds of a value where a GPU computes: formats are coded on the CPU beside it, of which
# nothing is known. Measured at width 384, on a Xeon with AVX-512. Written: coded by two cores; 3 of
# each are the check that all values are finite, and copies, half of what one core takes for 65,536
# tokens, as a GPU gives them. Read: by one core, 8,192 tokens at a time.
_WRITE_NS = {"fp32": 3.4, "fp16": 4.0, "bf16": 4.1, "int8": 5.9, "q3": 66.5}
_READ_NS = {"fp32": 0.5, "fp16": 0.3, "bf16": 0.3, "int8": 1.3, "q3": 4.4}


@dataclass(frozen=True)
class CacheEstimate:
    """The memory cache of one encoder.

    Attributes:
        bytes: by format
        seconds: to encode the text once, and write it in the recipe's format or fp32
    """

    tokens: int
    bytes: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Reading:
    """Cached memory in training.

    Attributes:
        share: of the memory, that memory_cache.max_bytes has room for
        seconds: to make a batch's memories of their bytes, as without workers of the data loader
        notes: what is taken to be so
    """

    share: float
    seconds: float
    notes: list[str]


def caches_of(
    recipe: Recipe, model: FusedModel, text: Corpus, tokens: Lengths, where: Hardware
) -> dict[str, CacheEstimate]:
    """Of every encoder that allows it, whether the recipe asks for it or not.

    Raises:
        UncountedError: an encoder asks for values.
    """
    format = _format(recipe)
    half = _encodes_in(recipe, model, where)
    sentences = round(text.pairs * (1 if text.distinct is None else text.distinct))
    found = {}
    for name in sorted(cacheable(model)):
        part = model.encoder_parts[name]
        count = round(sentences * tokens.encoders[name])
        states = count * _states(part)
        sizes = {
            one: states * how.bytes_per_token(part.width) + sentences * PER_SENTENCE
            for one, how in FORMATS.items()
        }
        length = max(2, round(tokens.encoders[name]))
        rows = max(1, BATCH_TOKENS["cuda" if where.gpu else "cpu"] // length)
        batches = sentences / rows
        seconds = where.seconds(run_encoder(part, rows, length, half, gpu=where.gpu)) * batches
        seconds += _coding(_WRITE_PASSES[format], _WRITE_NS[format], where) * states * part.width
        seconds += sizes[format] / where.disk
        found[name] = CacheEstimate(count, sizes, seconds)
    return found


def reading_of(
    recipe: Recipe,
    model: FusedModel,
    caches: dict[str, CacheEstimate],
    batch: Batch,
    where: Hardware,
) -> Reading:
    """How caches are read in training on some hardware."""
    format, spec, notes = _format(recipe), recipe.memory_cache, []
    size, share = sum(one.bytes[format] for one in caches.values()), 1.0
    if spec is not None and spec.max_bytes is not None and size > spec.max_bytes:
        share = int(spec.max_bytes) / size
        notes.append(
            f"memory_cache.max_bytes holds {share:.1%} of the memory; the rest is computed in "
            "every step, and training is counted so"
        )
    missed = 0.0
    if size * share > where.kept_files:
        missed = 1 - where.kept_files / (size * share)
        shown = [shown_bytes(round(n)) for n in (size * share, where.kept_files)]
        notes.append(
            f"memory cache: of {shown[0]}, {shown[1]} are taken to stay in RAM; the rest is read "
            "from disk in every pass"
        )
    if caches and where.gpu:
        notes.append("memory cache: formats are coded on the CPU, counted as two cores do it")
    seconds = 0.0
    for name in caches:
        part = model.encoder_parts[name]
        states = batch.sentences * batch.encoders[name] * _states(part)
        seconds += _coding(_READ_PASSES[format], _READ_NS[format], where) * states * part.width
        seconds += missed * states * FORMATS[format].bytes_per_token(part.width) / where.disk
    return Reading(share, seconds, notes)


def _format(recipe: Recipe) -> str:
    return recipe.memory_cache.format if recipe.memory_cache is not None else "fp32"


def _states(part: EncoderPart) -> int:
    """Of a token, those that a cache keeps."""
    return part.layers if part.stacked else 1


def _encodes_in(recipe: Recipe, model: FusedModel, where: Hardware) -> torch.dtype | None:
    """What autocast computes memories in: bf16 where training and hardware do."""
    asked = how_of(recipe, model, gpu=where.gpu).half is torch.bfloat16
    able = where.gpu or where.half_flops > where.flops
    return torch.bfloat16 if asked and able else None


def _coding(passes: int, nanoseconds: float, where: Hardware) -> float:
    """Seconds of one value."""
    if where.gpu:
        return nanoseconds * 1e-9
    return 4 * passes / (where.bandwidth * where.bandwidth_share)
