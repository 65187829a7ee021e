"""What a recipe's `train:` says about how a step is computed and what is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fusion.estimates.step import How
from fusion.memory_cache.prepare import why_off
from fusion.model import FusedModel
from fusion.recipe import Recipe

# Bytes that an optimizer keeps for each trained value; bitsandbytes: a byte and its share of a
# scale per 256 values. Adafactor keeps a row and a column of each matrix, which is next to nothing.
_STATES: dict[str, float] = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
    "adagrad": 4.0,
    "adafactor": 0.02,
    "lion": 4.0,
    "lion_8bit": 1.02,
    "rmsprop": 4.0,
    "sgd": 0.0,
}
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


def how_of(recipe: Recipe, model: FusedModel, *, gpu: bool) -> How:
    """The step of a recipe."""
    given = recipe.train.arguments
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return How(
        half=next((dtype for key, dtype in half.items() if _on(given, key)), None),
        checkpointing=any(_on(given, key) for key in CHECKPOINTING),
        cached=cacheable(model) if recipe.memory_cache is not None else frozenset(),
        accumulates=accumulation(recipe) > 1,
        gpu=gpu,
    )


def _on(given: dict[str, Any], key: str) -> bool:
    return str(given.get(key, False)).lower() in ("true", "1")


def cacheable(model: FusedModel) -> frozenset[str]:
    """The encoders whose memory can be cached."""
    builders = {name: spec["builder"] for name, spec in model.config.encoders.items()}
    parts = model.encoder_parts.items()
    return frozenset(name for name, part in parts if why_off(part, builders[name]) is None)


def accumulation(recipe: Recipe) -> int:
    """Batches of an update."""
    return max(1, int(recipe.train.arguments.get("gradient_accumulation_steps", 1)))


def state_bytes(recipe: Recipe) -> float:
    """Bytes that the optimizer keeps for each trained value; of one not known, as AdamW."""
    name = str(recipe.train.arguments.get("optim", "adamw_torch"))
    small = "_8bit" if "8bit" in name else ""
    for kind in ("adamw", "adagrad", "adafactor", "lion", "rmsprop", "sgd"):
        if kind in name:
            return _STATES.get(kind + small, _STATES[kind])
    return _STATES["adamw"]


def part_of(name: str) -> str:
    """host, encoders.NAME, or glue with the layer mixes."""
    first, _, rest = name.partition(".")
    return (
        f"encoders.{rest.partition('.')[0]}"
        if first == "encoders"
        else ("host" if first == "host" else "glue")
    )


def trained_values(model: nn.Module) -> int:
    """Parameters that need a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
