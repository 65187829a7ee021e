"""Positions of the toolkits' Transformer: sinusoidal tables in their layouts, or learned ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.marian import modeling_marian as marian

from fusion.errors import ShapeError
from fusion.hosts.transformer_config import TransformerConfig

LAYOUTS = ("tensor2tensor", "halves", "interleaved")


def sinusoids(rows: int, width: int, layout: str) -> Tensor:
    """A table of sinusoidal positions `[rows, width]` in float32, as the toolkits compute it.

    Raises:
        ShapeError: the layout is not known, or needs an even width.
    """
    if layout not in LAYOUTS:
        raise ShapeError(f'position_layout "{layout}"; known: {", ".join(LAYOUTS)}')
    if width < 4 or (width % 2 and layout != "tensor2tensor"):
        raise ShapeError(f"position_layout {layout} needs an even width of 4 or more; got {width}")
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32)
    if layout == "tensor2tensor":
        rates = torch.exp(steps * -(math.log(10000) / (half - 1)))
    else:
        rates = torch.exp(2 * steps * -(math.log(10000.0) / width))
    angles = torch.arange(rows, dtype=torch.float32)[:, None] * rates[None]
    if layout == "interleaved":
        return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(rows, width)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class Positions(marian.MarianSinusoidalPositionalEmbedding):  # type: ignore[misc]
    """Positions of real tokens; sinusoidal and frozen, or learned.

    Shapes: mask `[B, past + T]` or None, length T -> `[B or 1, T, D]`
    Raises: ShapeError for more positions than the table has
    """

    def __init__(self, config: TransformerConfig, count: int, learned: bool) -> None:
        super().__init__(count + config.position_offset, config.d_model)
        self.layout, self.offset = config.position_layout, config.position_offset
        self.learned = learned
        self.weight.requires_grad_(learned)

    def create_weight(self) -> Tensor:
        """What an untrained model's table holds."""
        rows, width = self.weight.shape
        if self.learned:
            table = torch.empty(rows, width).normal_(std=width**-0.5)
        else:
            table = sinusoids(rows, width, self.layout)
        if self.offset:
            table[self.offset - 1] = 0
        return table.to(self.weight.dtype)

    def forward(self, mask: Tensor | None, past: int, length: int) -> Tensor:
        if past + length + self.offset > self.weight.shape[0]:
            raise ShapeError(
                f"{past + length} tokens; the model has "
                f"{self.weight.shape[0] - self.offset} positions"
            )
        if mask is None or mask.dim() != 2:
            index = torch.arange(past, past + length, device=self.weight.device)[None]
            return F.embedding(index + self.offset, self.weight)
        real = mask.bool().long()
        index = real.cumsum(1) * real + (self.offset - 1)
        return F.embedding(index.clamp(min=0)[:, -length:], self.weight)
