"""Position tables of another size: what sinusoids go on with is what their formula gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from fusion.errors import KeyMapError
from fusion.positions import resized


def published(rows: int, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, number by number: sines and cosines take turns."""
    table = torch.zeros(rows, width)
    for position in range(rows):
        for i in range(0, width, 2):
            angle = position / 10000 ** (i / width)
            table[position, i], table[position, i + 1] = math.sin(angle), math.cos(angle)
    return table


def fairseq(rows: int, width: int, padding: int = 1) -> Tensor:
    """fairseq's: a row per position id from 0 on, the padding id's row zero."""
    half = width // 2
    steps = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(rows)[:, None] * steps
    table = torch.cat([angles.sin(), angles.cos()], 1)
    table[padding] = 0
    return table


def marian(rows: int, width: int) -> Tensor:
    return MarianSinusoidalPositionalEmbedding(rows, width).create_weight()


@pytest.mark.parametrize(
    ("whole", "offset"),
    [
        (published(40, 12), 0),
        (fairseq(40, 12), 2),
        (marian(40, 12), 0),
        (marian(40, 12).double(), 0),
        (torch.cat([torch.randn(3, 12), published(37, 12)]), 3),
        (published(41, 12)[1:], 0),
    ],
)
def test_sinusoids_go_on_as_their_formula_does(whole: Tensor, offset: int) -> None:
    more = resized(whole[:11], 40, "sinusoidal", offset)
    assert torch.equal(more[:11], whole[:11]), "rows that were there are kept bit for bit"
    assert torch.allclose(more, whole, rtol=0, atol=1e-5)
    assert more.dtype == whole.dtype
    assert torch.equal(resized(whole, 11, "sinusoidal", offset), whole[:11])


def test_half_precision_is_no_obstacle() -> None:
    whole = published(40, 12).bfloat16()
    assert torch.allclose(
        resized(whole[:11], 40, "sinusoidal").float(), whole.float(), rtol=0, atol=0.01
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.randn(9, 12), "of no sinusoids known.*is it learned"),
        (published(9, 12).flip(0), "of no sinusoids known"),
        (fairseq(9, 12)[2:], "of no sinusoids known"),  # from position 2: only the offset tells
        (torch.zeros(9, 5), "of no sinusoids known"),
        (published(1, 12), "one row does not tell"),
        (torch.ones(9, 12, dtype=torch.int64), "a table of torch.int64"),
    ],
)
def test_a_table_of_no_sinusoids_is_refused(table: Tensor, message: str) -> None:
    with pytest.raises(KeyMapError, match=message):
        resized(table, 20, "sinusoidal")


def test_a_plan_knows_the_shape_without_the_table() -> None:
    meta = torch.empty(9, 12, device="meta")
    assert resized(meta, 20, "sinusoidal").shape == (20, 12)
    assert resized(meta, 4, "sinusoidal").shape == (4, 12)
