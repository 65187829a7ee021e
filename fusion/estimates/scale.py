"""What a corpus of some size costs: cache, encoding, steps, hours, checkpoints."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fusion.errors import FusionError
from fusion.estimates.caches import CacheEstimate, caches_of, reading_of
from fusion.estimates.calibration import hardware
from fusion.estimates.corpus import Corpus, corpus, own_corpus
from fusion.estimates.hardware import Hardware
from fusion.estimates.lengths import Lengths, lengths
from fusion.estimates.settings import accumulation, cacheable, how_of, state_bytes, trained_values
from fusion.estimates.step import Batch, How, Step, UncountedError, run_step
from fusion.estimates.work import Op, Work
from fusion.model import FusedModel
from fusion.recipe import Recipe
from fusion.saved import frozen_parts, parts_of, recomputed

_ADAM_PASSES = 10  # AdamW's seven of a trained value, and three to clip its gradient


@dataclass(frozen=True)
class StepEstimate:
    """One batch, forward and backward, with its share of the optimizer's step.

    Attributes:
        flops: by part; `backward` and `loss` are parts
    """

    seconds: float
    flops: dict[str, int]


@dataclass
class Scale:
    """What training a recipe on a corpus takes on some hardware.

    Attributes:
        steps: by the way it is computed: host alone, encoders in every step, memory cached
        recipe_step: which of them is the recipe's
        updates: of the whole run, at most: early stopping may end it before
        per_update: batches of an update
        cached: share of the memory that memory_cache.max_bytes has room for
        checkpoints: bytes of a saved model, of one saved in full, and of a training checkpoint
    """

    corpus: Corpus
    lengths: Lengths
    hardware: Hardware
    batch: Batch
    caches: dict[str, CacheEstimate]
    steps: dict[str, StepEstimate]
    recipe_step: str
    batches_per_pass: int
    updates: int
    checkpoints: dict[str, int]
    per_update: int = 1
    cached: float = 1.0
    notes: list[str] = field(default_factory=list)

    @property
    def encode_seconds(self) -> float:
        """To fill the caches; 0 where the recipe has none."""
        wanted = self.recipe_step == CACHED
        seconds = sum(cache.seconds for cache in self.caches.values())
        return seconds * self.cached if wanted else 0.0

    @property
    def training_seconds(self) -> float:
        """All updates, without decoding the dev set."""
        step = self.steps[self.recipe_step].seconds
        if self.recipe_step == CACHED:
            step = self.cached * step + (1 - self.cached) * self.steps[ON_THE_FLY].seconds
        return self.updates * self.per_update * step

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        text = {"name": self.corpus.name, "pairs": self.corpus.pairs}
        text |= {"distinct": self.corpus.distinct, "words": list(self.corpus.words)}
        return {
            "corpus": text,
            "tokens": vars(self.lengths),
            "hardware": vars(self.hardware),
            "batch": vars(self.batch),
            "caches": {name: vars(cache) for name, cache in self.caches.items()},
            "steps": {name: vars(step) for name, step in self.steps.items()},
            "recipe_step": self.recipe_step,
            "cached": self.cached,
            "batches_per_pass": self.batches_per_pass,
            "updates": self.updates,
            "encode_seconds": self.encode_seconds,
            "training_seconds": self.training_seconds,
            "checkpoints": self.checkpoints,
            "notes": self.notes,
        }


HOST, ON_THE_FLY, CACHED = "host alone", "encoders in every step", "memory cached"


def scale_of(recipe: Recipe, model: FusedModel, size: str, where: Hardware | None) -> Scale:
    """Estimate a recipe on a corpus: `size` as `--data` has it; on this machine if on no other.

    Raises:
        FusionError: the size is none, or steps of this model cannot be counted.
    """
    own = own_corpus(recipe)
    text = corpus(size, own if isinstance(own, Corpus) else None)
    where = where or hardware("here")
    tokens = lengths(recipe, text, own if isinstance(own, Corpus) else None)
    notes = [] if isinstance(own, Corpus) else [f"the recipe's text is not read: {own}"]
    batch = tokens.batch(recipe.data.batch_tokens, text.pairs)
    how = how_of(recipe, model, gpu=where.gpu)
    per_pass = math.ceil(text.pairs / batch.sentences)
    if where.gpu and where.half == "fp16" and how.half is torch.bfloat16:
        notes.append(f"{where.name} has no bf16; train.fp16=true in place of train.bf16 runs there")
    try:
        steps = _steps(recipe, model, batch, how, where)
        caches = caches_of(recipe, model, text, tokens, where)
    except UncountedError as error:
        raise FusionError(f"--data: steps are not counted, as {error}") from None
    recipe_step = CACHED if how.cached else ON_THE_FLY if model.encoder_parts else HOST
    reading = reading_of(recipe, model, caches, batch, where)
    if CACHED in steps:
        seconds = steps[CACHED].seconds + reading.seconds
        steps[CACHED] = replace(steps[CACHED], seconds=seconds)
    if caches and text.distinct is None:
        notes.append(f"{text.name}: nobody counted its repeated sentences; each takes room here")
    return Scale(
        corpus=text,
        lengths=tokens,
        hardware=where,
        batch=batch,
        caches=caches,
        steps=steps,
        recipe_step=recipe_step,
        batches_per_pass=per_pass,
        updates=updates(recipe, per_pass),
        checkpoints=checkpoint_bytes(model, state_bytes(recipe)),
        notes=[*notes, *reading.notes, *tokens.notes],
        per_update=accumulation(recipe),
        cached=reading.share,
    )


def updates(recipe: Recipe, batches_per_pass: int) -> int:
    """Of all stages, or of `train:`; three passes where it does not say."""
    per_pass = batches_per_pass / accumulation(recipe)
    if recipe.stages:
        return sum(s.updates or math.ceil((s.passes or 0) * per_pass) for s in recipe.stages)
    given = recipe.train.arguments
    steps = int(given.get("max_steps", -1))
    return steps if steps > 0 else math.ceil(float(given.get("num_train_epochs", 3)) * per_pass)


def _steps(
    recipe: Recipe, model: FusedModel, batch: Batch, how: How, where: Hardware
) -> dict[str, StepEstimate]:
    names = frozenset(model.encoder_parts)
    optimizer = _optimizer_work(model)
    found: dict[str, StepEstimate] = {}
    if model.is_composite:
        with model.without_glue():
            step = run_step(model, batch, replace(how, cached=names))
        host_only = _optimizer_work(model.host)
        found[HOST] = _estimate(step, host_only, recipe, where)
    ways = {ON_THE_FLY: frozenset[str](), CACHED: cacheable(model)} if names else {HOST: names}
    for way, cached in ways.items():
        if way != CACHED or cached:
            step = run_step(model, batch, replace(how, cached=cached))
            found[way] = _estimate(step, optimizer, recipe, where)
    return found


def _estimate(step: Step, optimizer: Work, recipe: Recipe, where: Hardware) -> StepEstimate:
    seconds = where.seconds(step.total)
    seconds += where.seconds(optimizer) / accumulation(recipe)
    return StepEstimate(seconds, {part: work.flops for part, work in step.work.items()})


def _optimizer_work(module: nn.Module) -> Work:
    trained = [p for p in module.parameters() if p.requires_grad]
    return Work(Counter(Op(0, 4 * _ADAM_PASSES * p.numel(), 0, False) for p in trained))


def checkpoint_bytes(model: FusedModel, states: float) -> dict[str, int]:
    """Tensors of a saved model, of one saved in full, and of a training checkpoint.

    A saved model leaves out the parts in which nothing is trained; a training checkpoint as well,
    and has the optimizer's state beside.
    """
    left_out = frozen_parts(model)
    sizes = dict.fromkeys([*parts_of(model), ""], 0)
    for name, parameter in model.named_parameters():
        prefix = next((p for p in parts_of(model) if name.startswith(p)), "")
        own = model.get_submodule(prefix.rstrip(".")) if prefix else model
        if not recomputed(own)(name.removeprefix(prefix)):
            sizes[prefix] += parameter.numel() * parameter.itemsize
    delta = sum(size for prefix, size in sizes.items() if prefix not in left_out)
    optimizer = round(trained_values(model) * states)
    return {"model": delta, "full": sum(sizes.values()), "training": delta + optimizer}
