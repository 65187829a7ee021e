"""Transformer layers with memory, in plain tensor algebra from the papers' equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Mix = Callable[[Tensor, Tensor], Tensor]


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, p[f"{name}.weight"]) + p[f"{name}.bias"]


def norm(p: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def attention(
    p: Weights, name: str, x: Tensor, memory: Tensor, allowed: Tensor, heads: int
) -> Tensor:
    """Head by head: softmax(q k / sqrt(d)) v; `allowed` [B, T, S] says which keys a query sees."""
    q, k, v = (
        linear(p, f"{name}.{which}_proj", states)
        for which, states in (("q", x), ("k", memory), ("v", memory))
    )
    size = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("btd,bsd->bts", q[..., part], k[..., part]) / size**0.5
        scores = scores.masked_fill(~allowed, float("-inf"))
        weights = (scores - scores.amax(-1, keepdim=True)).exp()  # exp alone overflows at 709
        weights = weights / weights.sum(-1, keepdim=True)
        outputs.append(torch.einsum("bts,bsd->btd", weights, v[..., part]))
    return linear(p, f"{name}.out_proj", torch.cat(outputs, -1))


@dataclass
class Layer:
    """One layer: `mixes` says what a sublayer's query and own output become."""

    p: Weights
    heads: int
    pre_norm: bool
    mixes: dict[str, Mix]

    def sublayer(
        self, name: str, norm_name: str, x: Tensor, memory: Tensor | None, allowed: Tensor
    ):
        query = norm(self.p, norm_name, x) if self.pre_norm else x
        own = attention(
            self.p, name, query, query if memory is None else memory, allowed, self.heads
        )
        x = x + (self.mixes[name](query, own) if name in self.mixes else own)
        return x if self.pre_norm else norm(self.p, norm_name, x)

    def feed_forward(self, x: Tensor) -> Tensor:
        query = norm(self.p, "final_layer_norm", x) if self.pre_norm else x
        x = x + linear(self.p, "fc2", gelu(linear(self.p, "fc1", query)))
        return x if self.pre_norm else norm(self.p, "final_layer_norm", x)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        allowed = mask[:, None, :].expand(-1, x.shape[1], -1)
        x = self.sublayer("self_attn", "self_attn_layer_norm", x, None, allowed)
        return self.feed_forward(x)

    def decode(self, x: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        length = x.shape[1]
        causal = torch.ones(length, length).tril().bool().expand(x.shape[0], -1, -1)
        allowed = mask[:, None, :].expand(-1, length, -1)
        x = self.sublayer("self_attn", "self_attn_layer_norm", x, None, causal)
        x = self.sublayer("encoder_attn", "encoder_attn_layer_norm", x, encoded, allowed)
        return self.feed_forward(x)
