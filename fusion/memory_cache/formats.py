"""How the states of one token are written: fp32, fp16, bf16, int8 and q3.

Every format gives a token a fixed number of bytes, so that a token is found by counting, and reads
zero bytes as zeros, so that padding needs no code of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor


class MemoryFormat(ABC):
    """States `[..., M]` <-> bytes `[..., bytes_per_token(M)]`."""

    @abstractmethod
    def bytes_per_token(self, width: int) -> int:
        """Bytes of one state of M = `width` values, scales included."""

    @abstractmethod
    def encode(self, states: Tensor) -> Tensor:
        """float32 `[N, M]` -> uint8 `[N, bytes]`."""

    @abstractmethod
    def decode(self, raw: Tensor, width: int) -> Tensor:
        """uint8 `[..., bytes]` -> `[..., M]` of the format's own floating type."""


class Plain(MemoryFormat):
    """A floating type as it is; values beyond its range become its largest ones."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def bytes_per_token(self, width: int) -> int:
        return self.dtype.itemsize * width

    def encode(self, states: Tensor) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return states.clamp(-limit, limit).to(self.dtype).contiguous().view(torch.uint8)

    def decode(self, raw: Tensor, width: int) -> Tensor:
        return raw.view(self.dtype)


class Int8(MemoryFormat):
    """x = scale * q with q in -127..127 and one float32 scale per token: M + 4 bytes.

    The error is at most half a step: the token's largest magnitude / 254.
    """

    def bytes_per_token(self, width: int) -> int:
        return width + 4

    def encode(self, states: Tensor) -> Tensor:
        scale = states.abs().amax(dim=-1, keepdim=True) / 127
        codes = (states / scale.clamp_min(1e-30)).round().clamp(-127, 127).to(torch.int8)
        return torch.cat([scale.contiguous().view(torch.uint8), codes.view(torch.uint8)], dim=-1)

    def decode(self, raw: Tensor, width: int) -> Tensor:
        scale = raw[..., :4].contiguous().view(torch.float32)
        return raw[..., 4:].view(torch.int8) * scale


class Q3(MemoryFormat):
    """x = scale * q with q in -4..4, five values in 16 bits, one scale byte per 16 values.

    9^5 = 59049 < 2^16, so a value takes 3.2 bits; with its share of the scale 3.7 bits, less than
    the 4 bits that are a quarter of fp16. Width 384: 154 + 24 = 178 bytes, fp16: 768.

    A scale byte c > 0 means 2^((c - 128) / 8), steps of 9%; 0 means 0. It is the first that does
    not clip the group's largest magnitude, or one of the four smaller ones where clipping gives a
    smaller squared error.
    """

    GROUP = 16
    TOP = 4

    def bytes_per_token(self, width: int) -> int:
        return 2 * -(-width // 5) + -(-width // self.GROUP)

    def encode(self, states: Tensor) -> Tensor:
        count, width = states.shape
        groups = -(-width // self.GROUP)
        padded = states.new_zeros(count, groups * self.GROUP)
        padded[:, :width] = states
        grouped = padded.view(count, groups, self.GROUP)
        codes, scales = self._quantise(grouped)
        flat = codes.reshape(count, -1)[:, :width]
        words = -(-width // 5)
        values = flat.new_full((count, words * 5), self.TOP)
        values[:, :width] = flat
        packed = (values.view(count, words, 5) * _powers()).sum(-1) - _BIAS
        packed = torch.where(packed < 0, packed + 65536, packed)
        low, high = packed % 256, packed // 256
        pairs = torch.stack([low, high], dim=-1).reshape(count, -1).to(torch.uint8)
        return torch.cat([pairs, scales], dim=-1)

    def _quantise(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """Codes 0..8 `[N, G, 16]` and scale bytes `[N, G]`."""
        largest = grouped.abs().amax(dim=-1)
        exact = torch.log2((largest / self.TOP).clamp_min(1e-30)) * 8 + 128
        first = exact.ceil().clamp(1, 255)
        first = torch.where(largest > 0, first, torch.zeros_like(first))
        best_codes = torch.zeros_like(grouped)
        best_scale, best_error = first, torch.full_like(largest, torch.inf)
        table = _scales()
        for smaller in range(5):
            candidate = torch.where(first > 0, (first - smaller).clamp_min(1), first)
            scale = table[candidate.long()].unsqueeze(-1)
            codes = (grouped / scale.clamp_min(1e-30)).round().clamp(-self.TOP, self.TOP)
            error = (codes * scale - grouped).square().sum(-1)
            better = error < best_error
            best_codes = torch.where(better.unsqueeze(-1), codes, best_codes)
            best_scale = torch.where(better, candidate, best_scale)
            best_error = torch.where(better, error, best_error)
        return best_codes.long() + self.TOP, best_scale.to(torch.uint8)

    def decode(self, raw: Tensor, width: int) -> Tensor:
        words = -(-width // 5)
        packed = raw[..., : 2 * words].contiguous().view(torch.int16).int() & 0xFFFF
        codes = _words()[packed].flatten(-2)[..., :width]
        scales = _scales()[raw[..., 2 * words :].int()]
        return codes * scales.repeat_interleave(self.GROUP, dim=-1)[..., :width]


_BIAS = 4 * (1 + 9 + 81 + 729 + 6561)  # five zeros; taken off, so that zero bytes read as zeros


@lru_cache(maxsize=1)
def _powers() -> Tensor:
    return torch.tensor([1, 9, 81, 729, 6561])


@lru_cache(maxsize=1)
def _words() -> Tensor:
    """The five values of every 16-bit word `[65536, 5]`."""
    biased = (torch.arange(65536) + _BIAS) % 65536
    return (biased.unsqueeze(-1) // _powers() % 9 - 4).float()


@lru_cache(maxsize=1)
def _scales() -> Tensor:
    """The scale of every byte `[256]`."""
    scales = torch.exp2((torch.arange(256, dtype=torch.float32) - 128) / 8)
    scales[0] = 0
    return scales


FORMATS: dict[str, MemoryFormat] = {
    "fp32": Plain(torch.float32),
    "fp16": Plain(torch.float16),
    "bf16": Plain(torch.bfloat16),
    "int8": Int8(),
    "q3": Q3(),
}
