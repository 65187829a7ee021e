"""What `fusion plan` adds to the plan: memory, choices, a fit, and a corpus of some size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from fusion.estimates import tables
from fusion.estimates.calibration import hardware
from fusion.estimates.fit import Choices, Fit, Load, choices, fit
from fusion.estimates.hardware import TABLE
from fusion.estimates.memory import Memory, memory_of, planned_model
from fusion.estimates.scale import Scale, scale_of
from fusion.memory_cache.listing import shown_bytes

USUAL = TABLE["a100"]  # a card; of its figures, memory uses only that it is one, with bf16


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        data: size of a corpus
        hardware: name; default: a card for memory, this machine for times
        choices: the memory of each choice
        fit: bytes
    """

    data: str | None = None
    hardware: str | None = None
    choices: bool = False
    fit: int | None = None


@dataclass(frozen=True)
class Report:
    """What was found."""

    memory: Memory
    choices: Choices | None
    fit: Fit | None
    scale: Scale | None

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; what was not asked for is not in it."""
        content: dict[str, Any] = {"memory": self.memory.to_json()}
        if self.choices is not None:
            content |= self.choices.to_json()
        if self.fit is not None:
            content["fit"] = self.fit.to_json()
        if self.scale is not None:
            content["scale"] = self.scale.to_json()
        return content

    def show(self, out: Console) -> None:
        """Print tables, and below each what its figures are of."""
        out.print(tables.memory_table(self.memory))
        for line in tables.memory_notes(self.memory):
            out.print(line)
        if self.choices is not None:
            out.print(tables.trials_table("one change each", self.choices.trials))
            for line in tables.notes(self.choices.left_out):
                out.print(line)
        if self.fit is not None:
            title = f"to fit {shown_bytes(self.fit.limit)}: each with all above it"
            out.print(tables.trials_table(title, self.fit.trials))
            for line in tables.fit_lines(self.fit):
                out.print(line)
        if self.scale is not None:
            for table in tables.scale_tables(self.scale):
                out.print(table)
            for line in tables.scale_notes(self.scale):
                out.print(line)


def report(load: Load, asked: Asked) -> Report:
    """Estimate what is asked for.

    Args:
        load: overrides -> the recipe

    Raises:
        FusionError: no such hardware or corpus.
    """
    where = hardware(asked.hardware) if asked.hardware is not None else None
    recipe = load([])
    model = planned_model(recipe)
    scale = None
    if asked.data is not None:
        scale = scale_of(recipe, model, asked.data, where)
    card = where or USUAL
    return Report(
        memory=memory_of(recipe, gpu=card.gpu, model=model),
        choices=choices(load, card) if asked.choices else None,
        fit=fit(load, asked.fit, card) if asked.fit is not None else None,
        scale=scale,
    )
