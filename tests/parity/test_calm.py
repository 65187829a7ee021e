"""CALM against its equation in float64, and which layers it pairs."""

from __future__ import annotations

from typing import Any

import pytest
from layers import check_layers, glue_at
from reference import attention, linear
from torch import Tensor

from fusion.composition import compose
from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.calm import Calm

BOTH = ["encoder.*.output", "decoder.*.output"]


@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("memory_width", [24, 32])
@pytest.mark.parametrize("layers", ["all", "mix"])
def test_a_layers_output_is_the_equations(
    make_bench: Any, make_bert: Any, norm_place: str, memory_width: int, layers: str
) -> None:
    pairs = [1, 0, 2, 1]
    bench = make_bench(
        norm=norm_place,
        encoders={"bert": {"source": str(make_bert(memory_width)), "layer": layers}},
        method="calm",
        sites=BOTH,
        encoder_layers=pairs,
    )
    hidden = bench.model.encoders["bert"](
        bench.batch["bert_input_ids"], bench.batch["bert_attention_mask"]
    ).states

    def after(side: str, i: int, x: Tensor) -> Tensor:
        p = dict(glue_at(bench, f"{side}.{i}.output").state_dict())
        read = linear(p, "project", hidden[pairs[i + 2 * (side == "decoder")]])
        allowed = bench.memory_mask[:, None, :].expand(-1, x.shape[1], -1)
        return x + attention(p, "attention", x, read, allowed, 4)

    check_layers(bench, after=after)


@pytest.mark.parametrize(
    ("count", "layers", "expected"),
    [(3, 12, [4, 8, 12]), (12, 12, [*range(1, 13)]), (1, 6, [6]), (4, 2, [1, 1, 2, 2])],
)
def test_even_spreads_the_encoders_layers_over_the_sites_up_to_the_last(
    count: int, layers: int, expected: list[int]
) -> None:
    found = [
        Calm(
            Place("decoder.0.output", 8, 2, 6, index=i, count=count, memory_layers=layers + 1)
        ).layer
        for i in range(count)
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([1], "the layers of its 2 sites in order"),
        ("odd", "encoder_layers: found 'odd'; should be a valid list or should be 'even'"),
        ([1, 3], r"0 \(embeddings\) to 2; found 3"),
        ([1, -1], r"0 \(embeddings\) to 2; found -1"),
    ],
)
def test_layers_that_do_not_fit_are_refused(make_recipe: Any, layers: Any, message: str) -> None:
    recipe = make_recipe(encoder={"layer": "all"}, method="calm", encoder_layers=layers)
    with pytest.raises(RecipeError, match=message):
        compose(recipe)


def test_an_encoder_that_gives_one_layer_is_refused(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"set encoders\.bert\.layer to all"):
        compose(make_recipe(method="calm"))
