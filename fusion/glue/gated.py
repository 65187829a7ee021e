"""Gated cross-attention: memory read through a tanh gate that starts closed (Flamingo)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.glue.attention import MemoryAttention
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class GatedCrossAttention(Glue):
    """Add a gated reading of an encoder's memory to the output of the host's sublayer.

    y = A + tanh(g) Attn(LN x, memory), and with `feed_forward` > 0 then
    y + tanh(f) W_2 gelu(W_1 LN y). g and f start at 0, so y = A exactly: neutral.

    Shapes:  x [B, T, D], memory [B, S, M] -> [B, T, D]
    Source:  Alayrac et al. 2022 (arXiv:2204.14198), section 2.2 and figure 4
    Differs: reads text memory, so no media masking; sits inside a sublayer, so the host's dropout
             and residual come after it; `feed_forward` is a multiple of D and off by default
    """

    def __init__(
        self, place: Place, *, feed_forward: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__(place)
        self.norm = nn.LayerNorm(place.width, eps=place.eps)
        self.attention = MemoryAttention(
            place.width, place.memory_width, place.heads, attention_dropout
        )
        self.gate = nn.Parameter(torch.zeros(1))
        self.inner: nn.ModuleDict | None = None
        if feed_forward > 0:
            hidden = int(place.width * feed_forward)
            self.inner = nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(place.width, eps=place.eps),
                    "fc1": nn.Linear(place.width, hidden),
                    "fc2": nn.Linear(hidden, place.width),
                }
            )
            self.inner_gate = nn.Parameter(torch.zeros(1))

    def initial(self) -> dict[str, str]:
        return {"gate": "zeros", "inner_gate": "zeros"}

    @property
    def neutral(self) -> bool:
        return True

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        y: Tensor = host() + self.attention(self.norm(x), memory, torch.tanh(self.gate))
        if self.inner is not None:
            hidden = F.gelu(self.inner["fc1"](self.inner["norm"](y)))
            y = y + torch.tanh(self.inner_gate) * self.inner["fc2"](hidden)
        return y
