"""LoRA at a host's linear layers against its equation and against peft's own layer, in float64."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from layers import check_layers, glue_at
from peft import LoraConfig
from peft.tuners.lora import Linear
from reference import Layer, Weights
from torch import Tensor, nn

from fusion.composition import compose
from fusion.errors import RecipeError, SiteError
from fusion.glue.base import Place
from fusion.glue.lora import Lora

QUERY = "host:model.decoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_layer_computes_with_w_plus_b_a(
    make_bench: Any, norm_place: str, use_rslora: bool
) -> None:
    settings = {"method": "lora", "r": 3, "alpha": 5.0, "use_rslora": use_rslora}
    bench = make_bench(norm=norm_place, glue=[settings])
    scale = 5.0 / (3**0.5 if use_rslora else 3)

    def make(side: str, i: int, p: Weights) -> Layer:
        changed = dict(p)
        names = [n for n in p if n.endswith((".q_proj.weight", ".v_proj.weight"))]
        assert len(names) == (2 if side == "encoder" else 4)
        for name in names:
            module = name.removesuffix(".weight")
            own = glue_at(bench, f"host:model.{side}.layers.{i}.{module}").state_dict()
            a, b = own["lora.lora_A.default.weight"], own["lora.lora_B.default.weight"]
            changed[name] = p[name] + scale * torch.einsum("or,ri->oi", b, a)
        return Layer(changed, 4, bench.pre_norm, {})

    check_layers(bench, make)


@pytest.mark.parametrize("training", [False, True])
def test_it_is_pefts_own_layer_on_the_plain_linear(
    make_recipe: Any, open_glue: Any, training: bool
) -> None:
    glue = [{"method": "lora", "sites": [QUERY], "r": 4, "alpha": 8.0, "dropout": 0.3}]
    model = open_glue(compose(make_recipe(encoders={}, glue=glue)).model.double())
    ours = model.host.model.decoder.layers[0].self_attn.q_proj
    plain = nn.Linear(32, 32).double()
    plain.load_state_dict(ours.state_dict())
    config = LoraConfig(r=4, lora_alpha=8.0, lora_dropout=0.3)
    theirs = Linear(plain, "default", config, r=4, lora_alpha=8.0)
    own = next(iter(model.glue_modules.values())).lora.state_dict()
    theirs.load_state_dict(own, strict=False)
    model.train(training)
    theirs.train(training)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    outputs: list[Tensor] = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(layer(x))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-10
    assert not torch.allclose(outputs[0], plain(x))


def test_a_starts_as_pefts_reset_does_and_b_at_zero(make_recipe: Any) -> None:
    model = compose(make_recipe(encoders={}, glue=[{"method": "lora", "r": 8}])).model
    for module in model.glue_modules.values():
        a = module.lora.lora_A["default"].weight
        bound = a.shape[1] ** -0.5  # Kaiming uniform with slope sqrt(5)
        assert 0.9 * bound < a.abs().max() <= bound
        assert not module.lora.lora_B["default"].weight.any()


def test_the_hosts_tensors_keep_their_names_and_glue_has_a_and_b_alone(
    make_recipe: Any,
) -> None:
    plain = compose(make_recipe(encoders={}, glue=[])).model
    model = compose(make_recipe(encoders={}, glue=[{"method": "lora"}])).model
    assert set(model.host.state_dict()) == set(plain.host.state_dict())
    assert len(model.glue_modules) == 12  # q and v of 6 attentions
    kinds = {name.partition(".lora.")[2] for name, _ in model.glue.named_parameters()}
    assert kinds == {"lora_A.default.weight", "lora_B.default.weight"}


def test_only_linear_layers_by_name_can_be_its_sites(make_recipe: Any) -> None:
    def build(site: str) -> None:
        compose(make_recipe(encoders={}, glue=[{"method": "lora", "sites": [site]}]))

    with pytest.raises(RecipeError, match="lora sits at linear layers by name"):
        build("encoder.*.output")
    with pytest.raises(SiteError, match="is a LayerNorm; a Linear is needed"):
        build("host:model.encoder.layers.*.final_layer_norm")


@pytest.mark.parametrize("options", [{"r": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="r: 1 or more, dropout: from 0 to 1"):
        Lora(Place(QUERY, 8, 2, 0, inner=4), **options)


def test_without_peft_it_says_how_to_install_it() -> None:
    program = """
import sys
sys.modules["peft"] = None
from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.lora import Lora
try:
    Lora(Place("host:x", 8, 2, 0, inner=4))
except RecipeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install fusion[lora]" in run.stdout, run.stderr


def test_a_copy_of_the_model_computes_on_its_own(make_recipe: Any, open_glue: Any) -> None:
    composition = compose(make_recipe(encoders={}, glue=[{"method": "lora"}]))
    model = open_glue(composition.model)
    batch = composition.processor(["the cat sleeps ."], ["ein Hund ."])
    again = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**batch).logits
        for parameter in model.glue.parameters():
            parameter.zero_()
        assert torch.equal(again(**batch).logits, expected)
        assert not torch.allclose(model(**batch).logits, expected)
