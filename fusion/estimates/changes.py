"""Overrides of a recipe that save memory, and ones that take a saving back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fusion.encoders.part import EncoderPart
from fusion.estimates.naming import without_names
from fusion.estimates.settings import CHECKPOINTING, cacheable, how_of, state_bytes
from fusion.model import FusedModel
from fusion.recipe import Recipe, training_argument_names

_QUERIES_AND_VALUES = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v")


@dataclass(frozen=True)
class Change:
    """Some overrides, in words."""

    words: str
    overrides: list[str]


@dataclass(frozen=True)
class State:
    """A recipe, its model on meta, and the 16-bit type of the hardware."""

    recipe: Recipe
    model: FusedModel
    half: str = "bf16"


def autocast(now: State) -> Iterator[Change]:
    """16-bit matrix products."""
    if how_of(now.recipe, now.model, gpu=True).half is None:
        yield Change(f"autocast to {now.half}", [f"train.{now.half}=true"])


def checkpointing(now: State) -> Iterator[Change]:
    """Activations computed a second time in the backward pass."""
    if not how_of(now.recipe, now.model, gpu=True).checkpointing:
        key = next(key for key in CHECKPOINTING if key in training_argument_names())
        yield Change("activations computed twice", [f"train.{key}=true"])


def cache(now: State) -> Iterator[Change]:
    """The memory of encoders that are frozen already, from disk."""
    if now.recipe.memory_cache is None and cacheable(now.model):
        yield Change("memory of frozen encoders from disk", ["memory_cache={}"])


def small_optimizer(now: State) -> Iterator[Change]:
    """Two bytes of moments for a value in place of eight."""
    if state_bytes(now.recipe) > 3:
        yield Change("8-bit optimizer (needs bitsandbytes)", ["train.optim=adamw_bnb_8bit"])


def lora(now: State) -> Iterator[Change]:
    """Encoders that are trained: frozen, with LoRA at their queries and values."""
    glue = [spec.model_dump(exclude_defaults=True) for spec in now.recipe.glue]
    overrides, instead = [], {}
    for name, part in now.model.encoder_parts.items():
        leaves = _queries_and_values(part)
        if part.freeze or not leaves:
            continue
        overrides.append(f"encoders.{name}.freeze=true")
        sites = [f"{name}:**.{leaf}" for leaf in leaves]
        glue.append({"method": "lora", "name": f"lora_{name}", "sites": sites})
        instead[f"encoders.{name}."] = f"glue.lora_{name}"
    if overrides:
        overrides.append(f"glue={json.dumps(glue)}")
        overrides += without_names(now.recipe, now.model, [*instead], instead)
        yield Change("LoRA in place of training encoders (needs peft)", overrides)


def frozen_encoders(now: State) -> Iterator[Change]:
    """Encoders that are trained, or have glue inside: frozen without it, their memory from disk."""
    trained = [n for n, part in now.model.encoder_parts.items() if not part.freeze or part.glued]
    if not trained:
        return
    overrides = [f"encoders.{name}.freeze=true" for name in trained]
    heads = tuple(f"{name}{mark}" for name in trained for mark in ":.")
    glue = now.recipe.glue
    kept = [spec for spec in glue if not all(s.startswith(heads) for s in spec.sites or [""])]
    if len(kept) < len(glue):
        specs = [spec.model_dump(exclude_defaults=True) for spec in kept]
        overrides.append(f"glue={json.dumps(specs)}")
    gone = [f"encoders.{name}." for name in trained]
    gone += [f"glue.{spec.key}." for spec in glue if spec not in kept]
    overrides += without_names(now.recipe, now.model, gone)
    yield Change("encoders frozen, their memory from disk", [*overrides, "memory_cache={}"])


def frozen_host(now: State) -> Iterator[Change]:
    """Glue alone is trained; not with a host that has learnt nothing yet."""
    host = now.recipe.host
    if now.recipe.glue and host.new is None and not host.freeze:
        overrides = ["host.freeze=true", *without_names(now.recipe, now.model, ["host."])]
        yield Change("host frozen: glue alone is trained", overrides)


def reversals(now: State) -> Iterator[Change]:
    """What a recipe saves already, each taken back."""
    recipe, model = now.recipe, now.model
    how = how_of(recipe, model, gpu=True)
    given = recipe.train.arguments
    if how.half is not None:
        halves = [f"train.{key}=false" for key in ("bf16", "fp16") if key in given]
        yield Change("without autocast", halves)
    if how.checkpointing:
        keys = [key for key in CHECKPOINTING if key in given]
        yield Change("activations computed once", [f"train.{key}=false" for key in keys])
    if how.cached:
        yield Change("without the memory cache", ["memory_cache=null"])
    if state_bytes(recipe) < 3:
        yield Change("AdamW in fp32", ["train.optim=adamw_torch_fused"])
    frozen = [name for name, spec in recipe.encoders.items() if spec.freeze]
    if frozen:
        overrides = [f"encoders.{name}.freeze=false" for name in frozen]
        yield Change("encoders trained", [*overrides, "memory_cache=null"])


def _queries_and_values(part: EncoderPart) -> list[str]:
    """What an encoder's query and value projections are called: what LoRA's paper adapts."""
    found = {
        name.rpartition(".")[2]
        for name, module in part.model.named_modules()
        if isinstance(module, nn.Linear)
    }
    return [leaf for leaf in _QUERIES_AND_VALUES if leaf in found]
