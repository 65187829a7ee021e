"""Memories of several encoders, joined: read together as if each had projections of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.glue.attention import MemoryAttention
from fusion.memory import Memory, joined

WIDTHS, LENGTHS = (6, 4, 5), (5, 3, 2)


def memories(padded: bool = True) -> list[Memory]:
    torch.manual_seed(0)
    found = []
    for number, (width, length) in enumerate(zip(WIDTHS, LENGTHS, strict=True)):
        mask = None
        if padded and number != 1:  # one without padding among others
            mask = torch.ones(2, length, dtype=torch.bool)
            mask[number % 2, 1:] = False
        found.append(Memory(torch.randn(2, length, width, dtype=torch.float64), mask))
    return found


def columns(weight: Tensor) -> list[Tensor]:
    """The part of a projection that each encoder meets."""
    return list(weight.split(WIDTHS, dim=1))


@pytest.mark.parametrize("padded", [True, False])
def test_a_projection_of_joined_memories_is_a_projection_of_each(padded: bool) -> None:
    one, parts = memories(padded), memories(padded)
    both = joined(one)
    assert both.states.shape == (2, sum(LENGTHS), sum(WIDTHS))
    assert (both.mask is None) is not padded
    weight, bias = torch.randn(8, sum(WIDTHS)).double(), torch.randn(8).double()
    each = [
        F.linear(memory.states, w, bias) for memory, w in zip(parts, columns(weight), strict=True)
    ]
    found = F.linear(both.states, weight, bias)
    assert (found - torch.cat(each, 1)).abs().max() < 1e-12


@pytest.mark.parametrize("padded", [True, False])
def test_attention_to_joined_memories_is_one_softmax_over_keys_projected_apart(
    padded: bool,
) -> None:
    torch.manual_seed(1)
    module = MemoryAttention(8, sum(WIDTHS), heads=2).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    keys, values, masks = [], [], []
    for memory, k, v in zip(
        memories(padded),
        columns(module.k_proj.weight),
        columns(module.v_proj.weight),
        strict=True,
    ):
        keys.append(memory.states @ k.T + module.k_proj.bias)
        values.append(memory.states @ v.T + module.v_proj.bias)
        real = torch.ones(memory.states.shape[:2], dtype=torch.bool)
        masks.append(real if memory.mask is None else memory.mask)
    q, key, value, mask = module.q_proj(x), *(torch.cat(c, 1) for c in (keys, values, masks))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ key[..., part].transpose(1, 2) / 2.0
        scores = scores.masked_fill(~mask[:, None, :], float("-inf"))
        heads.append(torch.softmax(scores, -1) @ value[..., part])
    expected = module.out_proj(torch.cat(heads, -1))
    assert (module(x, joined(memories(padded))) - expected).abs().max() < 1e-12


def test_no_encoder_reaches_the_columns_of_another() -> None:
    both = joined(memories())
    begin, column = 0, 0
    for width, length in zip(WIDTHS, LENGTHS, strict=True):
        block = both.states[:, begin : begin + length]
        assert block[..., column : column + width].any()
        assert not block[..., :column].any()
        assert not block[..., column + width :].any()
        begin, column = begin + length, column + width
