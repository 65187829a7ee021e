"""Stacked attention against its equations in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from layers import check_layers, glue_at
from reference import Layer, Weights, attention, norm
from torch import Tensor

from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.stacked import Stacked
from fusion.memory import Memory

BETWEEN = ["encoder.*.after_self_attention", "decoder.*.after_cross_attention"]


def stacked(bench: Any, glue: Any, x: Tensor, norm_first: bool) -> Tensor:
    """x + Attn(LN x, H_B), or LN(x + Attn(x, H_B))."""
    p = dict(glue.state_dict())
    allowed = bench.memory_mask[:, None, :].expand(-1, x.shape[1], -1)
    query = norm(p, "norm", x) if norm_first else x
    added = x + attention(p, "attention", query, bench.memory, allowed, 4)
    return added if norm_first else norm(p, "norm", added)


@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("memory_width", [24, 32])
@pytest.mark.parametrize("start", ["paper", "neutral"])
def test_a_layers_output_is_the_equations(
    make_bench: Any, norm_place: str, memory_width: int, start: str
) -> None:
    bench = make_bench(norm=norm_place, memory_width=memory_width, method="stacked", start=start)
    first = norm_place == "pre" or start == "neutral"

    def after(side: str, i: int, x: Tensor) -> Tensor:
        return stacked(bench, glue_at(bench, f"{side}.{i}.output"), x, first)

    check_layers(bench, after=after)


@dataclass
class Between(Layer):
    """A layer in which something follows one of the attention sublayers."""

    after: Any = None

    def sublayer(self, name: str, *rest: Any) -> Tensor:
        return self.after(name, super().sublayer(name, *rest))


@pytest.mark.parametrize("start", ["paper", "neutral"])
def test_between_two_sublayers_it_reads_as_published(make_bench: Any, start: str) -> None:
    bench = make_bench(method="stacked", start=start, sites=BETWEEN)

    def make(side: str, i: int, p: Weights) -> Layer:
        wanted, kind = ("self_attn", "self") if side == "encoder" else ("encoder_attn", "cross")
        glue = glue_at(bench, f"{side}.{i}.after_{kind}_attention")

        def after(name: str, x: Tensor) -> Tensor:
            return stacked(bench, glue, x, start == "neutral") if name == wanted else x

        return Between(p, 4, bench.pre_norm, {}, after)

    check_layers(bench, make)


def test_training_drops_out_what_is_added_and_nothing_else() -> None:
    place = Place("encoder.0.output", width=8, heads=2, memory_width=6, norm="pre", dropout=0.5)
    glue = Stacked(place).double()
    memory = Memory(torch.randn(1, 3, 6, dtype=torch.float64), None)
    x = torch.randn(1, 400, 8, dtype=torch.float64)
    glue.eval()
    added = glue(x, lambda: x, memory) - x
    torch.manual_seed(0)
    dropped = glue.train()(x, lambda: x, memory) - x
    kept = dropped.abs() > 1e-12
    assert torch.allclose(dropped[kept], 2 * added[kept])
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_start_of_another_name_is_refused() -> None:
    with pytest.raises(RecipeError, match='start: "paper" or "neutral"'):
        Stacked(Place("encoder.0.output", 8, 2, 6), start="zero")  # type: ignore[arg-type]
