"""Position tables of another size: learned ones extended or interpolated, sinusoids computed."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fusion.errors import KeyMapError

_CLOSE = 1e-3  # or the dtype's step: a table of another toolkit was computed in its own precision


def resized(table: Tensor, size: int, method: str, offset: int = 0) -> Tensor:
    """A position table with another number of rows.

    Shapes: `[P, D]` -> `[size, D]`

    Args:
        method: `extend`: the table again from its start, as Longformer's (Beltagy et al. 2020,
            section 5); `interpolate`: linear between the old positions; `sinusoidal`: rows are kept
            and further ones computed by the formula that gave them (Vaswani et al. 2017, section
            3.5, and its variants)
        offset: rows before the first position, kept as they are

    Raises:
        KeyMapError: the sizes do not fit, or the table is of no sinusoids known.
    """
    rows = len(table) if table.dim() else 0
    if table.dim() != 2 or not 0 <= offset < min(rows, size):
        raise KeyMapError(f"positions: {list(table.shape)} to {size} with offset {offset}")
    if method == "sinusoidal":
        return table[:size] if size <= rows else _continued(table, size, offset)
    head, body = table[:offset], table[offset:]
    if method == "extend":
        return torch.cat([head, body.repeat(-(-size // len(body)), 1)[: size - offset]])
    spread = body.double().T[None]
    between = torch.nn.functional.interpolate(
        spread, size - offset, mode="linear", align_corners=True
    )
    return torch.cat([head, between[0].T.to(table.dtype)])


def _continued(table: Tensor, size: int, offset: int) -> Tensor:
    """A table of sinusoids with more rows."""
    rows, width = table.shape
    if table.is_meta:
        return table.new_empty(size, width)
    if not table.is_floating_point():
        raise KeyMapError(f"positions: sinusoidal: a table of {table.dtype}")
    if rows - offset < 2:
        raise KeyMapError("positions: sinusoidal: one row does not tell which waves these are")
    old, close = table[offset:].double(), max(_CLOSE, torch.finfo(table.dtype).eps)
    starts = dict.fromkeys((0, offset, 1))  # the position that the first row stands for
    for start, apart, halves in itertools.product(starts, (0, 1), (True, False)):
        if width % 2 == 0 and width // 2 > apart:
            wave = _sinusoids(start, size - offset, width, apart, halves)
            if torch.allclose(wave[: rows - offset], old, rtol=0, atol=close):
                return torch.cat([table, wave[rows - offset :].to(table.dtype)])
    raise KeyMapError(
        "positions: sinusoidal: the table is of no sinusoids known (sines beside cosines or before "
        "them, from position 0, 1 or the offset); is it learned? extend or interpolate it"
    )


def _sinusoids(start: int, rows: int, width: int, apart: int, halves: bool) -> Tensor:
    """(rows, width) float64.

    Args:
        apart: 0: frequencies 10000^(-2i/width), as published; 1: 10000^(-i/(width/2 - 1)), as in
            tensor2tensor and fairseq
        halves: sines in the first half of the columns, cosines in the second; or taking turns
    """
    half = width // 2
    scales = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - apart))
    angles = torch.arange(start, start + rows, dtype=torch.float64)[:, None] * scales
    both = [angles.sin(), angles.cos()]
    return torch.cat(both, 1) if halves else torch.stack(both, 2).reshape(rows, width)
