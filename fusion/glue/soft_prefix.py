"""Soft prefix: memory, projected, before what the decoder reads (LangBridge, LLaVA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fusion.errors import RecipeError
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class SoftPrefix(Glue):
    """[P(H_B); b; X]: X is the host encoder's output, or a language model's token embeddings.

    `projector: linear`: P(h) = W h + c. `mlp`: P(h) = W_2 gelu(W_1 h + c_1) + c_2, D wide inside.
    b is a learned vector that marks the boundary (`boundary: false`: none).

    There is no neutral start: what may be attended to takes weight from the host's own positions,
    whatever its values, and what the mask hides gets no gradient. Where the host must be kept at
    the start, `gated`, `calm` and `joint-attention` read the same memory.

    Shapes:  X [B, T, D], memory [B, S, M] -> [B, S + 1 + T, D], [B, S + T, D] without b
    Raises:  RecipeError if projector is neither
    Source:  Yoon et al. 2024 (LangBridge, arXiv:2401.10695), section 3 (linear, boundary); Liu et
             al. 2023 (LLaVA 1.5, arXiv:2310.03744), section 3.2 (two-layer MLP)
    Differs: in a seq2seq host the prefix goes where the decoder attends to, behind the encoder's
             last norm; in the papers it goes into a language model's input, as it does here in a
             decoder-only host
    """

    default_sites = ("encoder.output",)
    causal_sites = ("decoder.embeddings",)
    sequence = "prefix"

    def __init__(
        self,
        place: Place,
        *,
        projector: Literal["linear", "mlp"] = "linear",
        boundary: bool = True,
    ) -> None:
        super().__init__(place)
        if projector not in ("linear", "mlp"):
            raise RecipeError(f'projector: "linear" or "mlp"; found {projector!r}')
        self.project: nn.Module = nn.Linear(place.memory_width, place.width)
        if projector == "mlp":
            self.project = nn.Sequential(
                self.project, nn.GELU(), nn.Linear(place.width, place.width)
            )
        self.boundary = nn.Parameter(torch.zeros(place.width)) if boundary else None

    def initial(self) -> dict[str, str]:
        return {} if self.boundary is None else {"boundary": "normal"}

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        own = host()
        dtype = next(self.project.parameters()).dtype
        parts = [self.project(memory.states.to(dtype)).to(own.dtype), own]
        if self.boundary is not None:
            parts.insert(1, self.boundary.to(own.dtype).expand(own.shape[0], 1, -1))
        return torch.cat(parts, dim=1)

    def mask_of(self, mask: Tensor, memory: Memory) -> Tensor:
        before = memory.mask
        if before is None:
            before = mask.new_ones(memory.states.shape[:2])
        parts = [before.to(mask.dtype), mask]
        if self.boundary is not None:
            parts.insert(1, mask.new_ones(mask.shape[0], 1))
        return torch.cat(parts, dim=1)
