"""Attention to memory: masks, beams, widths, and what is kept between steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


def formula(module: MemoryAttention, x: Tensor, read: Memory) -> Tensor:
    """softmax(q k^T d^-0.5) v as it is written, by autograd, with the memory repeated for beams."""
    beams = x.shape[0] // read.states.shape[0]
    states = read.states.repeat_interleave(beams, dim=0)
    q, k, v = (
        projection(part).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for projection, part in (
            (module.q_proj, x),
            (module.k_proj, states),
            (module.v_proj, states),
        )
    )
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if read.mask is not None:
        mask = read.mask.repeat_interleave(beams, dim=0)[:, None, None, :]
        scores = scores.masked_fill(~mask, -torch.inf)
    return module.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_output_and_every_gradient_are_those_of_the_formula(
    attention: MemoryAttention, padded: bool, beams: int
) -> None:
    read = memory()
    read.mask = read.mask if padded else None
    x = torch.randn(2 * beams, 4, 8, dtype=torch.float64, requires_grad=True)
    read.states.requires_grad_()
    wanted = [x, read.states, *attention.parameters()]
    up = torch.randn(2 * beams, 4, 8, dtype=torch.float64)
    found, expected = attention(x, read), formula(attention, x, read)
    assert torch.allclose(found, expected, atol=1e-12)
    ours = torch.autograd.grad((found * up).sum(), wanted)
    theirs = torch.autograd.grad((expected * up).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("length", [1, 6])  # fewer rows than the width of 8, and more
def test_a_gate_multiplies_the_output_and_learns(attention: MemoryAttention, length: int) -> None:
    read, x = memory(), torch.randn(2, length, 8, dtype=torch.float64)
    for value in (0.0, 0.7):
        gate = torch.full((1,), value, dtype=torch.float64, requires_grad=True)
        bare = attention(x, read).detach()
        gated = attention(x, read, gate)
        assert torch.allclose(gated, value * bare, atol=1e-12)
        (slope,) = torch.autograd.grad(gated.sum(), [gate])
        assert torch.allclose(slope, bare.sum(), atol=1e-10)


def test_gradients_hold_under_dropout() -> None:
    module = MemoryAttention(4, 3, heads=2, dropout=0.4).double()
    x = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    states = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)

    def same_draw(x: Tensor, states: Tensor) -> Tensor:
        torch.manual_seed(5)
        return module(x, Memory(states, None))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(same_draw, (x, states))


def test_under_autocast_the_states_are_cast_once_for_all_that_read_them() -> None:
    modules = [MemoryAttention(8, 6, heads=2) for _ in range(3)]
    read, x = Memory(torch.randn(2, 5, 6), None), torch.randn(2, 4, 8)
    seen: list[Tensor] = []
    for module in modules:
        for projection in (module.k_proj, module.v_proj):
            projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain = [module(x, read) for module in modules]
    assert all(states is read.states for states in seen)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        halves = [module(x, read) for module in modules]
        assert seen[0].dtype == torch.bfloat16 and all(states is seen[0] for states in seen)
        read.states = torch.zeros_like(read.states)
        modules[0](x, read)
    assert bool((seen[-1] == 0).all())
    for one, other in zip(plain, halves, strict=True):
        assert torch.allclose(one, other.float(), atol=0.03)


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
