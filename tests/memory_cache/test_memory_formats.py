"""Every format of a token's states: its size, its error, its zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.memory_cache.formats import FORMATS

WIDTHS = [24, 32, 64, 128, 256, 384, 512, 768, 1024]


def states(width: int, scale: float = 1.0, outlier: float = 8.0) -> Tensor:
    """Normal values, with outliers in every 97th dimension as BERTs have them."""
    generator = torch.Generator().manual_seed(width)
    drawn = torch.randn(200, width, generator=generator)
    drawn[:, ::97] *= outlier
    return drawn * scale


def round_trip(name: str, given: Tensor) -> Tensor:
    width = given.shape[-1]
    raw = FORMATS[name].encode(given)
    assert raw.dtype == torch.uint8
    assert raw.shape == (len(given), FORMATS[name].bytes_per_token(width))
    return FORMATS[name].decode(raw, width).float()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bytes_of_a_token_scales_included(width: int) -> None:
    size = {name: form.bytes_per_token(width) for name, form in FORMATS.items()}
    assert (size["fp32"], size["fp16"], size["bf16"]) == (4 * width, 2 * width, 2 * width)
    assert size["int8"] == width + 4
    assert size["q3"] * 4 <= size["fp16"]


@pytest.mark.parametrize("width", WIDTHS)
def test_fp32_gives_back_the_same_bits(width: int) -> None:
    given = states(width)
    assert torch.equal(round_trip("fp32", given), given)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_value_is_within_the_formats_error(width: int, scale: float) -> None:
    given = states(width, scale)
    largest = given.abs().amax(-1, keepdim=True)
    bounds = {"fp16": given.abs() * 2**-11 + 2**-25, "bf16": given.abs() * 2**-8}
    bounds["int8"] = largest / 254 * (1 + 1e-5)
    for name, bound in bounds.items():
        assert bool(((round_trip(name, given) - given).abs() <= bound).all()), name


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_quarter_of_fp16_keeps_the_states_to_a_seventh_of_their_norm(
    width: int, scale: float
) -> None:
    given = states(width, scale, outlier=1)
    error = (round_trip("q3", given) - given).norm(dim=-1) / given.norm(dim=-1)
    assert error.mean() < 1 / 7 and error.max() < 1 / 4


def test_an_outlier_costs_its_own_group_of_16_only() -> None:
    calm, loud = states(384, outlier=1), states(384, outlier=20)
    beside = torch.tensor([any(d // 16 == o // 16 for o in range(0, 384, 97)) for d in range(384)])
    difference = round_trip("q3", loud) != round_trip("q3", calm)
    assert bool(difference[:, beside].any()) and not bool(difference[:, ~beside].any())


@pytest.mark.parametrize("name", FORMATS)
def test_zero_bytes_read_as_zeros_and_zeros_stay_zeros(name: str) -> None:
    form = FORMATS[name]
    raw = torch.zeros(2, 3, form.bytes_per_token(40), dtype=torch.uint8)
    assert torch.equal(form.decode(raw, 40).float(), torch.zeros(2, 3, 40))
    assert torch.equal(round_trip(name, torch.zeros(5, 40)), torch.zeros(5, 40))


def test_values_beyond_fp16_become_its_largest() -> None:
    given = torch.tensor([[1e6, -1e6, 1.0, 0.0]])
    expected = torch.tensor([[65504.0, -65504.0, 1.0, 0.0]])
    assert torch.equal(round_trip("fp16", given), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_token_is_read_alike_alone_and_among_others(name: str) -> None:
    form, given = FORMATS[name], states(64)
    together = form.decode(form.encode(given).view(10, 20, -1), 64).view(200, 64)
    alone = torch.cat([form.decode(form.encode(given[i : i + 1]), 64) for i in range(200)])
    assert torch.equal(together, alone)
