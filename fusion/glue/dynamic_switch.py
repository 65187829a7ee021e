"""Dynamic switch: a gate per token and dimension between memory and host embedding (CTNMT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fusion.errors import RecipeError
from fusion.glue.align import Aligned
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class DynamicSwitch(Glue):
    """g H + (1 - g) E with g = sigmoid(W H + U E + b), H being memory with the host's positions.

    H = H~ of `fusion.glue.align` where M equals D, as published, else P H~ with P linear. E is the
    output at the site, by default the token embeddings before scale, positions and norm.
    `start: neutral`: E + tanh(a) g (H - E), a starting at 0; at tanh(a) = 1 it is the equation
    above.

    Shapes:  E [B, T, D], memory [B, S, M], W, U [D, D] -> [B, T, D]
    Raises:  RecipeError if an option has another value; ShapeError, see Aligned
    Source:  Yang et al. 2020 (CTNMT, arXiv:1908.05672), section "Dynamic Switch"
    Differs: `align: attention` and `start: neutral` are ours, and so is P; in the paper M equals D
             and the encoder reads the host's tokens (`align: tokens`)
    """

    default_sites = ("encoder.embeddings",)
    causal_sites = ("decoder.embeddings",)

    def __init__(
        self,
        place: Place,
        *,
        align: Literal["attention", "tokens"] = "attention",
        start: Literal["paper", "neutral"] = "paper",
    ) -> None:
        super().__init__(place)
        if start not in ("paper", "neutral"):
            raise RecipeError(f'start: "paper" or "neutral"; found {start!r}')
        width, memory_width = place.width, place.memory_width
        self.align = Aligned(place, align)
        self.project = nn.Linear(memory_width, width) if memory_width != width else None
        self.of_memory = nn.Linear(width, width, bias=False)
        self.of_host = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(1)) if start == "neutral" else None

    def initial(self) -> dict[str, str]:
        return {} if self.gate is None else {"gate": "zeros"}

    @property
    def neutral(self) -> bool:
        return self.gate is not None

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        own, read = host(), self.align(x, memory)
        if self.project is not None:
            read = self.project(read)
        switch = torch.sigmoid(self.of_memory(read) + self.of_host(own))
        if self.gate is not None:
            mixed: Tensor = own + torch.tanh(self.gate) * switch * (read - own)
        else:
            mixed = switch * read + (1 - switch) * own
        return mixed
