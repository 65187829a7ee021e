"""Stacked attention: memory read in a sublayer of its own, after the host's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from fusion.errors import RecipeError
from fusion.glue.attention import MemoryAttention
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class Stacked(Glue):
    """One more sublayer with its own residual and norm, x being the output at the site.

    x' = LN(x + Drop(Attn(x, H_B))) where the host's norms come after the residual, and
    x' = x + Drop(Attn(LN x, H_B)) where they come before a sublayer.
    `start: neutral` takes the second form in every host, with W_o and its bias at 0, so the start
    is the host bit for bit.

    Sits on whole outputs. By default these are those of the layers, `encoder.*.output`, which every
    family has; `encoder.*.after_self_attention` and `decoder.*.after_cross_attention`, between a
    layer's sublayers as published, are there where a module of the host gives that state: in hosts
    with norms after the residual, in T5 and its kin, and in BERT2BERT.

    Shapes:  x [B, T, D], memory [B, S, M] -> [B, T, D]
    Raises:  RecipeError if start is neither
    Source:  Zhu et al. 2020 (arXiv:2002.06823), the stacked variant of the ablation study
    Differs: the place, see above; `neutral` is ours
    """

    default_sites = ("encoder.*.output", "decoder.*.output")
    causal_sites = ("decoder.*.output",)

    def __init__(
        self,
        place: Place,
        *,
        start: Literal["paper", "neutral"] = "paper",
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(place)
        if start not in ("paper", "neutral"):
            raise RecipeError(f'start: "paper" or "neutral"; found {start!r}')
        self.start = start
        self.norm_first = start == "neutral" or place.norm == "pre"
        self.norm = nn.LayerNorm(place.width, eps=place.eps)
        self.attention = MemoryAttention(
            place.width, place.memory_width, place.heads, attention_dropout
        )

    def initial(self) -> dict[str, str]:
        return {"attention.out_proj.{p}": "zeros"} if self.neutral else {}

    @property
    def neutral(self) -> bool:
        return self.start == "neutral"

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        read = self.attention(self.norm(x) if self.norm_first else x, memory)
        added = host() + F.dropout(read, self.place.dropout, self.training)
        mixed: Tensor = added if self.norm_first else self.norm(added)
        return mixed
