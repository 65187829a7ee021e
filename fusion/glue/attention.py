"""Multi-head attention from the host's states to an encoder's memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fusion.errors import ShapeError
from fusion.memory import Memory


class MemoryAttention(nn.Module):
    """Attn(q = x, k = memory, v = memory), H heads, all projections with bias.

    Keys and values depend on the sentence only: for a memory that is reusable they are projected
    once and kept with it. With beams, x has k adjacent rows per sentence; they are read as k*T
    queries of one sentence, so nothing of the memory is repeated per beam.

    Shapes:  x [B*k, T, D], memory states [B, S, M], mask [B, S], gate [1] -> [B*k, T, D]
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

    def forward(self, x: Tensor, memory: Memory, gate: Tensor | None = None) -> Tensor:
        """Read the memory.

        Args:
            gate: what the output is multiplied by; where there are fewer weights than states, taken
                into the output projection
        """
        if x.shape[-1] != self.width or memory.states.shape[-1] != self.memory_width:
            raise ShapeError(
                f"glue was built for host width {self.width} and memory width {self.memory_width}; "
                f"got {x.shape[-1]} and {memory.states.shape[-1]}"
            )
        sentences, rows = memory.states.shape[0], x.shape[0]
        if rows % sentences:
            raise ShapeError(f"{rows} rows of host states for {sentences} sentences of memory")
        query = self._heads(self.q_proj(x).reshape(sentences, -1, self.width))
        keys, values = self._keys_values(memory)
        dropout = self.dropout if self.training else 0.0
        if query.device.type == "cpu":
            mixed = _PlainAttention.apply(  # type: ignore[no-untyped-call]
                query, keys, values, memory.hidden, dropout
            )
        else:
            mask = None if memory.mask is None else memory.mask[:, None, None, :]
            mixed = F.scaled_dot_product_attention(query, keys, values, mask, dropout)
        mixed = mixed.transpose(1, 2).reshape(rows, -1, self.width)
        if gate is None or mixed.shape[:2].numel() < self.width:
            read: Tensor = self.out_proj(mixed)
            return read if gate is None else gate * read
        return F.linear(mixed, gate * self.out_proj.weight, gate * self.out_proj.bias)

    def _heads(self, states: Tensor) -> Tensor:
        """`[B, L, D]` -> `[B, H, L, D/H]`."""
        batch, length, _ = states.shape
        return states.view(batch, length, self.heads, -1).transpose(1, 2)

    def _keys_values(self, memory: Memory) -> tuple[Tensor, Tensor]:
        key = str(id(self))
        if memory.reusable and key in memory.projected:
            return memory.projected[key]
        states = memory.in_type(self.k_proj.weight.dtype)
        pair = self._heads(self.k_proj(states)), self._heads(self.v_proj(states))
        if memory.reusable:
            # in the order in which they are read, step after step
            pair = pair[0].mT.contiguous().mT, pair[1].contiguous()
            memory.projected[key] = pair
        return pair


class _PlainAttention(torch.autograd.Function):
    """softmax(q k^T d^-0.5) v on a CPU, with the softmax in fp32 as autocast has it.

    For sentences of a few dozen tokens this takes a third of the time of the fused kernel with its
    backward pass, and half of what autograd takes for the same products: each factor is laid out
    once, head by head, for all the products that it is in.

    Shapes: q `[B, H, T, d]`, k, v `[B, H, S, d]`, hidden `[B, 1, 1, S]` True at padding
            -> `[B, H, T, d]`
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, dropout: float
    ) -> Tensor:
        q3, k3, v3 = (_flat(part.to(q.dtype)) for part in (q, k, v))
        scores = torch.bmm(q3, k3.mT)
        if scores.dtype in (torch.bfloat16, torch.float16):
            scores = scores.float()
        scores *= (scale := q.shape[-1] ** -0.5)
        if hidden is not None:
            shaped = scores.view(*q.shape[:3], -1)
            shaped.masked_fill_(hidden, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1)
        kept = F.dropout(torch.ones_like(weights), dropout) if dropout else None
        used = (weights if kept is None else weights * kept).to(q.dtype)
        ctx.save_for_backward(q3, k3, v3, weights, used, kept)
        ctx.scale, ctx.shape = scale, (q.shape, k.shape)
        return torch.bmm(used, v3).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, used, kept = ctx.saved_tensors
        of_queries, of_keys = ctx.shape
        grad = _flat(grad)
        of_v = torch.bmm(used.mT, grad).view(of_keys)
        of_weights = torch.bmm(grad, v.mT).to(weights.dtype)
        if kept is not None:
            of_weights *= kept
        of_weights *= weights
        of_scores = of_weights.addcmul_(weights, of_weights.sum(-1, keepdim=True), value=-1)
        of_scores = (of_scores * ctx.scale).to(q.dtype)
        of_q = torch.bmm(of_scores, k).view(of_queries)
        return of_q, torch.bmm(of_scores.mT, q).view(of_keys), of_v, None, None


def _flat(states: Tensor) -> Tensor:
    """`[B, H, L, d]` -> `[B*H, L, d]`, head by head where it is not laid out so or transposed."""
    flat = states.flatten(0, 1)
    return flat if flat.mT.is_contiguous() else flat.contiguous()
