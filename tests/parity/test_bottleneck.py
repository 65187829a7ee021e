"""Bottleneck adapters against their equation in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import check_layers, glue_at
from reference import linear, norm
from torch import Tensor

from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.bottleneck import Bottleneck


def adapted(glue: Any, x: Tensor, eps: float = 1e-5) -> Tensor:
    """h + W_2 relu(W_1 LN h)."""
    p = dict(glue.state_dict())
    return x + linear(p, "up", linear(p, "down", norm(p, "norm", x, eps)).clamp(min=0))


@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("width", [5, 64])
def test_a_layers_output_is_the_equations(make_bench: Any, norm_place: str, width: int) -> None:
    bench = make_bench(norm=norm_place, glue=[{"method": "bottleneck", "width": width}])
    glue = glue_at(bench, "decoder.1.output")
    assert glue.down.out_features == width

    def after(side: str, i: int, x: Tensor) -> Tensor:
        return adapted(glue_at(bench, f"{side}.{i}.output"), x)

    check_layers(bench, after=after)


def test_in_a_frozen_encoder_it_changes_the_memory_by_the_equation(make_bench: Any) -> None:
    glue = [
        {"method": "bottleneck", "sites": ["bert.*.output"]},
        {"method": "gated", "encoder": "bert"},
    ]
    bench = make_bench(glue=glue)
    part = bench.model.encoder_parts["bert"]
    adapters = [bench.model.glue["bottleneck"][f"bert_{i}_output"] for i in range(2)]
    ids, mask = bench.batch["bert_input_ids"], bench.batch["bert_attention_mask"]
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
        for layer in part.model.encoder.layer
    ]
    changed = part(ids, mask).states
    for hook in hooks:
        hook.remove()
    bench.model.remove_glue()
    allowed = mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
    for i, (x, found) in enumerate(seen):
        plain = part.model.encoder.layer[i](x, allowed)
        expected = adapted(adapters[i], plain, eps=part.config.layer_norm_eps)
        assert (found - expected).abs().max() < 1e-10
    assert torch.equal(changed, seen[-1][1])


def test_a_width_below_1_is_refused() -> None:
    with pytest.raises(RecipeError, match="width: of the bottleneck, 1 or more; found 0"):
        Bottleneck(Place("encoder.0.output", 8, 2, 0), width=0)
