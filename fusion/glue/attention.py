"""Multi-head attention from the host's states to an encoder's memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.errors import ShapeError
from fusion.memory import Memory


class MemoryAttention(nn.Module):
    """Attn(q = x, k = memory, v = memory), H heads, all projections with bias.

    Keys and values depend on the sentence only: for a memory that is reusable they are projected
    once and kept with it. With beams, x has k adjacent rows per sentence; they are read as k*T
    queries of one sentence, so nothing of the memory is repeated per beam.

    Shapes:  x [B*k, T, D], memory states [B, S, M], mask [B, S] -> [B*k, T, D]
    Raises:  ShapeError if D or M differ from the widths it was built with
    Source:  Vaswani et al. 2017, section 3.2.2; q scaled by (D/H)^-0.5
    """

    def __init__(self, width: int, memory_width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ShapeError(f"width {width} is not a multiple of {heads} heads")
        self.width, self.memory_width, self.heads = width, memory_width, heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(memory_width, width)
        self.v_proj = nn.Linear(memory_width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if x.shape[-1] != self.width or memory.states.shape[-1] != self.memory_width:
            raise ShapeError(
                f"glue was built for host width {self.width} and memory width {self.memory_width}; "
                f"got {x.shape[-1]} and {memory.states.shape[-1]}"
            )
        keys, values = self._keys_values(memory)
        sentences, rows = keys.shape[0], x.shape[0]
        if rows % sentences:
            raise ShapeError(f"{rows} rows of host states for {sentences} sentences of memory")
        query = self._split(self.q_proj(x).reshape(sentences, -1, self.width))
        mask = None if memory.mask is None else memory.mask[:, None, None, :]
        mixed = self._attend(query, keys, values, mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(rows, -1, self.width))  # type: ignore[no-any-return]

    def _split(self, states: Tensor) -> Tensor:
        batch, length, _ = states.shape
        return states.view(batch, length, self.heads, -1).transpose(1, 2)

    def _keys_values(self, memory: Memory) -> tuple[Tensor, Tensor]:
        key = str(id(self))
        if memory.reusable and key in memory.projected:
            return memory.projected[key]
        states = memory.states.to(self.k_proj.weight.dtype)
        pair = self._split(self.k_proj(states)), self._split(self.v_proj(states))
        if memory.reusable:
            memory.projected[key] = pair
        return pair

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if q.device.type != "cpu":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        # On a CPU the plain form trains faster than the fused kernel's backward pass.
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = F.dropout(torch.softmax(scores, dim=-1), dropout, self.training)
        return torch.matmul(weights, v)
