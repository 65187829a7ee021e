"""Joint attention against its equation in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from layers import check_layers
from reference import Layer, Weights, linear, norm
from torch import Tensor

from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.joint_attention import JointAttention

EVERYWHERE = [
    "encoder.*.self_attention",
    "decoder.*.self_attention",
    "decoder.*.cross_attention",
]
SITES = {
    ("encoder", "self_attn"): "self_attention",
    ("decoder", "self_attn"): "self_attention",
    ("decoder", "encoder_attn"): "cross_attention",
}


@dataclass
class Further:
    """Keys and values beside the host's: memory states, which of them are real, the glue."""

    states: Tensor
    real: Tensor
    glue: Any


def softmax_over_both(
    p: Weights, name: str, x: Tensor, states: Tensor, allowed: Tensor, further: list[Further]
) -> Tensor:
    """Head by head: one softmax over the host's keys and those of every memory."""
    q, k, v = (
        linear(p, f"{name}.{which}_proj", s)
        for which, s in (("q", x), ("k", states), ("v", states))
    )
    keys, values, seen = [k], [v], [allowed]
    for one in further:
        own = dict(one.glue.state_dict())
        keys.append(linear(own, "k_proj", one.states))
        values.append(linear(own, "v_proj", one.states))
        seen.append(one.real[:, None, :].expand(-1, x.shape[1], -1))
    k, v, allowed = torch.cat(keys, 1), torch.cat(values, 1), torch.cat(seen, 2)
    outputs = []
    for head in range(4):
        part = slice(head * 8, (head + 1) * 8)
        scores = torch.einsum("btd,bsd->bts", q[..., part], k[..., part]) / 8**0.5
        scores = scores.masked_fill(~allowed, float("-inf"))
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        outputs.append(torch.einsum("bts,bsd->btd", weights, v[..., part]))
    return linear(p, f"{name}.out_proj", torch.cat(outputs, -1))


@dataclass
class Joint(Layer):
    """A layer whose attention sublayers read memories beside the host's states."""

    bench: Any = None
    side: str = ""
    number: int = 0

    def sublayer(
        self, name: str, norm_name: str, x: Tensor, memory: Tensor | None, allowed: Tensor
    ) -> Tensor:
        query = norm(self.p, norm_name, x) if self.pre_norm else x
        states = query if memory is None else memory
        site = f"{self.side}.{self.number}.{SITES[self.side, name]}"
        further = [
            Further(
                self.bench.model.memories(self.bench.batch)[encoder].states,
                self.bench.batch[f"{encoder}_attention_mask"].bool(),
                self.bench.model.glue[key][site.replace(".", "_")],
            )
            for key, encoder in READ[len(self.bench.model.glue)]
            if site.replace(".", "_") in self.bench.model.glue[key]
        ]
        own = softmax_over_both(self.p, name, query, states, allowed, further)
        if further and further[0].glue.start == "neutral":
            gate = torch.tanh(further[0].glue.gate)
            own = (1 - gate) * softmax_over_both(self.p, name, query, states, allowed, []) + (
                gate * own
            )
        x = x + own
        return x if self.pre_norm else norm(self.p, norm_name, x)


READ = {
    1: [("joint_attention", "bert")],
    2: [("first", "bert"), ("second", "other")],
}


@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("memory_width", [24, 32])
@pytest.mark.parametrize("start", ["paper", "neutral"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_layers_output_is_the_equations(
    make_bench: Any, norm_place: str, memory_width: int, start: str, attention: str
) -> None:
    bench = make_bench(
        norm=norm_place,
        memory_width=memory_width,
        method="joint-attention",
        start=start,
        sites=EVERYWHERE,
    )
    bench.model.host.set_attn_implementation(attention)
    check_layers(bench, lambda side, i, p: Joint(p, 4, bench.pre_norm, {}, bench, side, i))


def test_two_glues_at_one_site_share_one_softmax(make_bench: Any, make_bert: Any) -> None:
    bench = make_bench(
        encoders={"bert": {"source": str(make_bert(24))}, "other": {"source": str(make_bert(32))}},
        glue=[
            {"method": "joint-attention", "encoder": "bert", "name": "first"},
            {"method": "joint-attention", "encoder": "other", "name": "second"},
        ],
    )
    check_layers(bench, lambda side, i, p: Joint(p, 4, bench.pre_norm, {}, bench, side, i))
    attention = bench.model.host.model.encoder.layers[0].self_attn
    bench.model.placement.placed[0].module.leave()
    assert attention.config._attn_implementation == "fusion-joint"
    bench.model.remove_glue()


def test_taking_it_out_gives_the_hosts_attention_its_config_back(make_bench: Any) -> None:
    bench = make_bench(method="joint-attention")
    attention = bench.model.host.model.decoder.layers[0].encoder_attn
    usual = bench.model.host.config._attn_implementation
    assert attention.config._attn_implementation == "fusion-joint"
    assert bench.model.host.model.decoder.layers[0].self_attn.config is bench.model.host.config
    with bench.model.without_glue():
        assert attention.config is bench.model.host.config
        assert attention.config._attn_implementation == usual
        assert "_fusion_joint" not in attention.__dict__
    assert attention.config._attn_implementation == "fusion-joint"


def test_an_implementation_without_masks_of_its_shape_is_refused(make_bench: Any) -> None:
    model = (bench := make_bench(method="joint-attention")).model
    model.show(model.memories(bench.batch))
    model.host.config._attn_implementation = "flash_attention_2"
    with pytest.raises(RecipeError, match='eager or sdpa; found "flash_attention_2"'):
        model.host.model.encoder.layers[0].self_attn(torch.zeros(3, 3, 32).double())


def test_a_start_of_another_name_is_refused() -> None:
    with pytest.raises(RecipeError, match='start: "paper" or "neutral"'):
        JointAttention(Place("encoder.0.self_attention", 8, 2, 6), start="zero")  # type: ignore[arg-type]
