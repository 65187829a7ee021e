"""The optimizer's groups: tensors that share learning rate, schedule and weight decay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fusion.policies import peak_rate
from fusion.timetable import Timetable, Turn, own_name


@dataclass(frozen=True)
class Rates:
    """Peak learning rates by name, or a timetable, which has them too."""

    base: float
    by_name: Mapping[str, float]
    table: Timetable | None = None


@dataclass(frozen=True)
class Group:
    """One group of the optimizer; with turns its rate is 1, and the schedule is the rate."""

    parameters: list[nn.Parameter]
    rate: float
    decays: bool
    turns: tuple[Turn, ...] = ()

    def to_torch(self, weight_decay: float) -> dict[str, Any]:
        """As torch's optimizers take it."""
        decay = weight_decay if self.decays else 0.0
        return {"params": self.parameters, "lr": self.rate, "weight_decay": decay}


def grouped(target: nn.Module, rates: Rates, decayed: Collection[str]) -> list[Group]:
    """The groups of all that is not frozen for good, in an order that a resumed run repeats.

    Args:
        target: the model, maybe in wrappers
        decayed: names of the tensors that weight decay is for
    """
    found: dict[tuple[Any, ...], Group] = {}
    for wrapped, parameter in target.named_parameters():
        if not parameter.requires_grad:
            continue
        name, decays = own_name(wrapped), wrapped in decayed
        if rates.table is not None:
            turns = rates.table.turns[name]
            key: tuple[Any, ...] = (turns, decays)
            group = Group([], 1.0, decays, turns)
        else:
            rate = peak_rate(rates.by_name, name, rates.base)
            key = (_part(name), rate, decays)
            group = Group([], rate, decays)
        found.setdefault(key, group).parameters.append(parameter)
    return list(found.values()) if rates.table is not None else [found[k] for k in sorted(found)]


def _part(name: str) -> str:
    """host, encoders or glue; a layer mix is glue."""
    first = name.partition(".")[0]
    return first if first in ("host", "encoders") else "glue"


def keep_embeddings_in_32_bits(model: nn.Module) -> None:
    """Moments of embeddings are not for 8 bits, as bitsandbytes and the Trainer have it."""
    from bitsandbytes.optim import GlobalOptimManager  # type: ignore[import-not-found]

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(
                module, "weight", {"optim_bits": 32}
            )
