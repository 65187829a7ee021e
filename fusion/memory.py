"""What an encoder gives and glue reads: hidden states and their mask."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Memory:
    """One encoder's memory of a batch.

    Attributes:
        states: `[B, S, M]`, or `[L, B, S, M]` where a learned layer mix still has to be taken
        mask: `[B, S]` bool, True at a real token; None where no row has padding
        reusable: the same memory is read step after step (generation), so that keys and values
            projected from it are kept in `projected`, by the name of the glue that made them
    """

    states: Tensor
    mask: Tensor | None
    reusable: bool = False
    projected: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
