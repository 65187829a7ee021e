"""What every glue module offers, and what it is told about its place."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fusion.memory import Memory


@dataclass(frozen=True)
class Place:
    """Where a glue module sits.

    Attributes:
        site: the host's site, `encoder.0.self_attention`
        width: D, the host's width
        heads: the host's attention heads there
        memory_width: M, the encoder's width
        eps: the host's layer norm epsilon
    """

    site: str
    width: int
    heads: int
    memory_width: int
    eps: float = 1e-5


class Glue(nn.Module, ABC):
    """One method at one site. Keyword-only parameters of `__init__` are the recipe's options."""

    may_drop = False

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    @abstractmethod
    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        """Mix memory into the output of the host's sublayer.

        Args:
            x: the sublayer's input `[B, T, D]`, the query of the host's own attention
            host: computes the host's own output `[B, T, D]`; not called: not computed
            memory: the encoder's memory of `B` sentences, or of `B / beams` with beams adjacent

        Returns:
            what the host drops out and adds to its residual `[B, T, D]`
        """

    def initial(self) -> dict[str, str]:
        """Own name pattern -> init rule, for tensors that do not start as `transformer`."""
        return {}

    def draw(self, rng: random.Random) -> None:
        """Make this step's random choice, once per batch, the same on every rank."""

    @property
    def neutral(self) -> bool:
        """Whether the start leaves the host's output bit for bit unchanged."""
        return False
