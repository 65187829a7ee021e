"""Memory that training needs: weights, gradients, the optimizer's moments, activations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fusion.composition import recipe_parts
from fusion.estimates.settings import how_of, part_of, state_bytes
from fusion.estimates.step import Batch, How, UncountedError, run_step
from fusion.model import FusedModel
from fusion.recipe import Recipe

CONTEXT = 6e8  # of a GPU: CUDA's context, kernels and cuBLAS's workspace
FRAGMENTS = 1.05  # what the allocator holds over what is in use
COMPILED = (  # 5 GB after ten passes of Multi30k, 1.9 with 128: benchmarks/results.md
    "in bf16 on a CPU oneDNN keeps what it compiles for every shape of batch, gigabytes in a long "
    "run, which are not counted; ONEDNN_PRIMITIVE_CACHE_CAPACITY=128 (usually 1024) keeps less"
)


@dataclass
class PartMemory:
    """Bytes of one part; all in fp32, as the tensors are."""

    weights: int = 0
    gradients: int = 0
    moments: int = 0


@dataclass
class Memory:
    """What training a recipe needs, in bytes.

    The total is weights + moments + the most that is alive at once of gradients and activations,
    in a batch of the longest sentences, which are all of one length: every token of the budget is
    then a real one for host, encoder and decoder. On a GPU 5% for fragments and 0.6 GB for CUDA
    are added.

    Attributes:
        activations: that most, less all gradients; inputs, loss and temporary tensors included
        at_peak: whose the live bytes are at that moment; gradients are under `backward`
        counted: whether activations could be; if not, they are 0, and the total is the least
        notes: what is not counted
    """

    parts: dict[str, PartMemory]
    activations: int
    batch: Batch
    gpu: bool
    at_peak: dict[str, int] = field(default_factory=dict)
    counted: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Of the device."""
        kept = sum(p.weights + p.gradients + p.moments for p in self.parts.values())
        used = kept + self.activations
        return round(used * FRAGMENTS + CONTEXT) if self.gpu else used

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return {
            "parts": {name: vars(part) for name, part in self.parts.items()},
            "activations": self.activations if self.counted else None,
            "counted": self.counted,
            "total": self.total,
            "batch": vars(self.batch),
            "at_peak": self.at_peak,
            "notes": self.notes,
        }


def planned_model(recipe: Recipe) -> FusedModel:
    """A recipe's model on meta, with a gradient only where something is ever trained."""
    return recipe_parts(recipe)[0]


def memory_of(recipe: Recipe, *, gpu: bool, model: FusedModel | None = None) -> Memory:
    """The memory that a recipe's training needs on one device."""
    model = model or planned_model(recipe)
    return memory_for(model, worst_batch(recipe, model), how_of(recipe, model, gpu=gpu), recipe)


def memory_for(model: FusedModel, batch: Batch, how: How, recipe: Recipe) -> Memory:
    """As `memory_of`, of another batch or way to compute."""
    parts = part_memory(model, state_bytes(recipe))
    gradients = sum(part.gradients for part in parts.values())
    try:
        step = run_step(model, batch, how, mean=False)
    except UncountedError as error:
        note = f"activations are not counted, as {error}"
        return Memory(parts, 0, batch, how.gpu, counted=False, notes=[note])
    activations = max(0, step.peak - gradients)
    notes = [COMPILED] if how.half and not how.gpu else []
    return Memory(parts, activations, batch, how.gpu, step.at_peak, notes=notes)


def part_memory(model: FusedModel, states: float) -> dict[str, PartMemory]:
    """Per part, tied tensors once, buffers among the weights.

    Args:
        states: bytes that the optimizer keeps for each trained value
    """
    parts: dict[str, PartMemory] = {}
    for name, parameter in model.named_parameters():
        part = parts.setdefault(part_of(name), PartMemory())
        part.weights += parameter.numel() * parameter.itemsize
        if parameter.requires_grad:
            part.gradients += parameter.numel() * parameter.itemsize
            part.moments += round(parameter.numel() * states)
    for name, buffer in model.named_buffers():
        parts.setdefault(part_of(name), PartMemory()).weights += buffer.numel() * buffer.itemsize
    return parts


def longest_pair(recipe: Recipe, model: FusedModel) -> int:
    """Tokens of the longest sentences that training takes."""
    limits = [recipe.data.filters.max_length, recipe.data.batch_tokens]
    if (positions := model.family.source_positions(model.host)) is not None:
        limits.append(positions)
    return min(limits)


def worst_batch(recipe: Recipe, model: FusedModel) -> Batch:
    """All of the token budget in the longest sentences."""
    longest = longest_pair(recipe, model)
    tokens = {name: min(longest, part.limit) for name, part in model.encoder_parts.items()}
    return Batch(max(1, recipe.data.batch_tokens // longest), longest, longest, tokens)
