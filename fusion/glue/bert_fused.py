"""BERT-fused: host attention and attention to an encoder's memory, averaged (Zhu et al. 2020)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from fusion.errors import RecipeError
from fusion.glue.attention import MemoryAttention
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class BertFused(Glue):
    """x = r + w_h Drop(A) + w_b Drop(Attn(q = x, k = H_B, v = H_B)).

    r is the residual, A the host's own attention; residual, dropout and norm are the host's.
    `start: paper`: (w_h, w_b) = (1/2, 1/2) at evaluation; in training, with u uniform once per
    batch and site, u < p/2: (1, 0); u > 1 - p/2: (0, 1); else (1/2, 1/2), p = `drop_net`.
    `start: neutral`: W_o and its bias start at 0 and (w_h, w_b) = (1, 1), so the start is the host
    bit for bit; drop-net then leaves the memory's branch out with probability p/2 and scales it by
    1 / (1 - p/2) otherwise; the host's branch is never dropped.
    `weights`: (w_h, w_b) at evaluation, and in training where drop-net drops nothing, in place of
    the start's own; the published code has (1, 1) where it trained without drop-net. A neutral
    start keeps w_h = 1.

    Shapes:  x [B, T, D], memory [B, S, M] -> [B, T, D]
    Raises:  RecipeError if drop_net is outside [0, 1], or weights are not two finite numbers
    Source:  Zhu et al. 2020 (arXiv:2002.06823), equations 6 to 9 and section 4.2 (drop-net);
             weights: encoder_ratio and bert_ratio of github.com/bert-nmt/bert-nmt
    Differs: the host applies one dropout mask to the mix, not one per branch; `neutral` is ours;
             the draw is a function of seed, update and site, so it is the same on all ranks
    """

    def __init__(
        self,
        place: Place,
        *,
        start: Literal["paper", "neutral"] = "paper",
        drop_net: float = 1.0,
        weights: Sequence[float] | None = None,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(place)
        if start not in ("paper", "neutral"):
            raise RecipeError(f'start: "paper" or "neutral"; found {start!r}')
        if not 0.0 <= drop_net <= 1.0:
            raise RecipeError(f"drop_net: the paper's p, from 0 to 1; found {drop_net}")
        self.start = start
        self.drop_net = drop_net
        self.may_drop = drop_net > 0
        self._both = _checked(weights, start)
        self.attention = MemoryAttention(
            place.width, place.memory_width, place.heads, attention_dropout
        )
        self._weights = self._both

    def initial(self) -> dict[str, str]:
        zero = {"attention.out_proj.{p}": "zeros"}
        return zero if self.start == "neutral" else {}

    @property
    def neutral(self) -> bool:
        return self.start == "neutral"

    def draw(self, rng: random.Random) -> None:
        u, p = rng.random(), self.drop_net
        if self.start == "paper":
            host_only, memory_only = u < p / 2, u > 1 - p / 2
            self._weights = (1.0, 0.0) if host_only else (0.0, 1.0) if memory_only else self._both
        else:
            kept = (1.0, self._both[1] / (1 - p / 2))
            self._weights = (1.0, 0.0) if u < p / 2 else kept

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        of_host, of_memory = self._weights if self.training else self._both
        if of_memory == 0:
            return host()
        read: Tensor = self.attention(x, memory)
        if of_memory != 1:
            read = of_memory * read
        if of_host == 0:
            return read
        own = host() if of_host == 1 else of_host * host()
        return own + read


def _checked(weights: Sequence[float] | None, start: str) -> tuple[float, float]:
    """(w_h, w_b) as given, or the start's own."""
    if weights is None:
        return (0.5, 0.5) if start == "paper" else (1.0, 1.0)
    try:
        host, memory = map(float, weights)
    except (TypeError, ValueError):
        host = memory = math.nan
    if not (math.isfinite(host) and math.isfinite(memory)):
        raise RecipeError(f"weights: two numbers, the host's and the memory's; found {weights}")
    if start == "neutral" and host != 1:
        raise RecipeError(f"weights: start: neutral keeps the host's at 1; found {weights}")
    return host, memory
