"""Attention to memory: masks, beams, widths, and what is kept between steps."""

from __future__ import annotations

import pytest
import torch

from fusion.errors import ShapeError
from fusion.glue.attention import MemoryAttention
from fusion.glue.mix import LayerMix
from fusion.memory import Memory


@pytest.fixture
def attention() -> MemoryAttention:
    torch.manual_seed(0)
    return MemoryAttention(8, 6, heads=2).double().eval()


def memory(sentences: int = 2, length: int = 5, reusable: bool = False) -> Memory:
    mask = torch.ones(sentences, length, dtype=torch.bool)
    mask[0, 3:] = False
    states = torch.randn(sentences, length, 6, dtype=torch.float64)
    return Memory(states, mask, reusable=reusable)


def test_what_the_mask_hides_has_no_influence(attention: MemoryAttention) -> None:
    read, x = memory(), torch.randn(2, 3, 8, dtype=torch.float64)
    before = attention(x, read)
    read.states[0, 3:] = 1e6
    assert torch.equal(attention(x, read)[0], before[0])
    cut = Memory(read.states[:1, :3], None)
    assert torch.allclose(attention(x[:1], cut), before[:1], atol=1e-12)


def test_no_mask_reads_as_a_mask_without_padding(attention: MemoryAttention) -> None:
    read, x = memory(), torch.randn(2, 3, 8, dtype=torch.float64)
    everything = torch.ones_like(read.mask)
    assert torch.allclose(
        attention(x, Memory(read.states, None)), attention(x, Memory(read.states, everything))
    )


def test_beams_read_as_if_the_memory_were_repeated(attention: MemoryAttention) -> None:
    read, x = memory(), torch.randn(8, 3, 8, dtype=torch.float64)
    repeated = Memory(
        read.states.repeat_interleave(4, dim=0), read.mask.repeat_interleave(4, dim=0)
    )
    assert torch.allclose(attention(x, read), attention(x, repeated), atol=1e-12)


def test_keys_and_values_are_kept_with_a_reusable_memory_only(attention: MemoryAttention) -> None:
    projected: list[int] = []
    attention.k_proj.register_forward_hook(lambda *_: projected.append(1))
    x = torch.randn(2, 1, 8, dtype=torch.float64)
    for reusable, expected in ((False, 3), (True, 1)):
        projected.clear()
        read = memory(reusable=reusable)
        outputs = [attention(x, read) for _ in range(3)]
        assert len(projected) == expected
        assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_two_modules_never_share_the_keys_of_one_memory(attention: MemoryAttention) -> None:
    other = MemoryAttention(8, 6, heads=2).double().eval()
    x = torch.randn(2, 1, 8, dtype=torch.float64)
    read = memory()
    expected = [attention(x, read), other(x, read)]
    read.reusable = True
    for _ in range(2):
        assert torch.equal(attention(x, read), expected[0])
        assert torch.equal(other(x, read), expected[1])


def test_dropout_acts_in_training_only() -> None:
    module = MemoryAttention(8, 6, heads=2, dropout=0.5).double()
    x, read = torch.randn(2, 3, 8, dtype=torch.float64), memory()
    torch.manual_seed(0)
    assert not torch.equal(module.train()(x, read), module(x, read))
    assert torch.equal(module.eval()(x, read), module(x, read))


@pytest.mark.parametrize(
    ("x", "states"), [((2, 3, 8), (2, 5, 8)), ((2, 3, 6), (2, 5, 6)), ((3, 3, 8), (2, 5, 6))]
)
def test_shapes_that_do_not_fit_are_named(
    attention: MemoryAttention, x: tuple[int, ...], states: tuple[int, ...]
) -> None:
    read = Memory(torch.randn(states, dtype=torch.float64), None)
    with pytest.raises(ShapeError, match=r"host width 8 and memory width 6; got|3 rows .* 2 sent"):
        attention(torch.randn(x, dtype=torch.float64), read)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ShapeError, match="width 8 is not a multiple of 3 heads"):
        MemoryAttention(8, 6, heads=3)


def test_a_layer_mix_is_gamma_times_the_softmax_weighted_sum() -> None:
    mix = LayerMix(3).double()
    states = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    assert torch.allclose(mix(states), states.mean(0))
    with torch.no_grad():
        mix.scores.copy_(torch.tensor([0.0, 1.0, -2.0]))
        mix.gamma.fill_(3.0)
    weights = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64).exp()
    expected = 3 * sum(w * h for w, h in zip(weights / weights.sum(), states, strict=True))
    assert torch.allclose(mix(states), expected, atol=1e-12)
