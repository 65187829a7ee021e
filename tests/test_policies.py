"""Names decide which tensors are trained, in which order, and how fast."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusion.composition import compose, plan, recipe_parts
from fusion.errors import RecipeError
from fusion.policies import (
    freezes_for_a_time,
    never_trained,
    part_of,
    peak_rate,
    phases,
    unfreezing_order,
)
from fusion.recipe import Recipe, validate_recipe

RecipeMaker = Callable[..., Recipe]
FC1 = "host.model.encoder.layers.1.fc1.weight"


def with_training(
    recipe: Recipe, train: dict[str, Any], stages: list[dict[str, Any]] | None = None
) -> Recipe:
    raw = recipe.model_dump(mode="json")
    return validate_recipe(raw | {"train": train, "stages": stages or []}, Path("test.yaml"))


def names(recipe: Recipe) -> list[str]:
    model, _ = recipe_parts(recipe)
    return [name for name, tensor in model.named_parameters() if tensor.requires_grad]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({}, 0.1),
        ({"host": 0.2}, 0.2),
        ({"host.model.encoder": 0.3, "host": 0.2}, 0.3),
        ({"host.model.{side}.layers.{i}.fc1.{p}": 0.4, "host.model.encoder.layers.1": 0.3}, 0.4),
        ({"host.model.encoder.layers.10": 0.5, "glue": 0.6}, 0.1),
        ({"host": 0.0}, 0.0),
    ],
)
def test_the_most_specific_name_has_the_last_word(rates: dict[str, float], expected: float) -> None:
    assert peak_rate(rates, FC1, 0.1) == expected


def test_a_layer_mix_is_glue_unless_it_is_named() -> None:
    assert peak_rate({"glue": 0.2}, "mixes.bert.scores", 0.1) == 0.2
    assert peak_rate({"glue": 0.2, "mixes": 0.3}, "mixes.bert.scores", 0.1) == 0.3


def test_what_a_specific_name_leaves_out_a_less_specific_one_says(
    make_recipe: RecipeMaker,
) -> None:
    policies = {"host": {"after": 7}, "host.model.encoder": {"unfreeze": {"every": 2}}}
    recipe = with_training(make_recipe(), {"policies": policies})
    again = validate_recipe(recipe.model_dump(mode="json"), Path("echo.yaml"))
    for (phase,) in (phases(recipe), phases(again)):
        policy = phase.policy(FC1)
        assert policy.after == 7
        assert policy.unfreeze is not None and policy.unfreeze.every == 2


@pytest.mark.parametrize(
    ("policies", "after"),
    [
        ({"host": {"after": 7}, "host.model": {"freeze": True}}, None),
        ({"host": {"unfreeze": {"every": 2}}, "host.model": {"freeze": True}}, None),
        ({"host": {"freeze": True}, "host.model": {"after": 7}}, 7),
        ({"host": {"after": 7}, "host.model": {"freeze": True}, FC1: {"freeze": False}}, 7),
        ({"host": {"after": 7}, "host.model": {"freeze": True}, FC1: {"after": 3}}, 3),
    ],
)
def test_between_never_and_when_the_more_specific_name_decides(
    make_recipe: RecipeMaker, policies: dict[str, Any], after: int | None
) -> None:
    (phase,) = phases(with_training(make_recipe(), {"policies": policies}))
    assert phase.trains(FC1) == (after is not None)
    assert phase.policy(FC1).after == after


@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
def test_layers_are_unfrozen_from_the_top_and_embeddings_last(
    make_recipe: RecipeMaker, host: str
) -> None:
    tensors = [name for name in names(make_recipe(host)) if name.startswith("host.")]
    order = unfreezing_order(tensors, "top")
    for name, turn in order.items():
        embedding = "shared" in name or "embed" in name
        lower = re.search(r"\.(layers|block)\.0\.", name) is not None
        assert turn == (2 if embedding else 1 if lower else 0), name
    assert set(order.values()) == {0, 1, 2}
    upwards = unfreezing_order(tensors, "bottom")
    assert all(upwards[name] == 2 - turn for name, turn in order.items())


def test_every_stack_of_layers_is_counted_from_its_own_top() -> None:
    deep = [f"host.encoder.block.{i}.w" for i in range(4)]
    shallow = [f"host.decoder.block.{i}.w" for i in range(2)]
    order = unfreezing_order([*deep, *shallow, "host.shared.weight"], "top")
    assert [order[name] for name in deep] == [3, 2, 1, 0]
    assert [order[name] for name in shallow] == [1, 0]
    assert order["host.shared.weight"] == 4


@pytest.mark.parametrize(
    "layers",
    [
        "encoders.bert_2.model.encoder.layer.{i}.output.dense.weight",
        "glue.gated_2.decoder_{i}_cross_attention.gate",
        "glue.bottleneck.bert_2_{i}_output.down.weight",
        "glue.lora.bert_2__encoder_layer_{i}_output_dense.lora.lora_A.default.weight",
    ],
)
def test_a_number_in_a_name_that_the_recipe_gives_is_no_layer(layers: str) -> None:
    tensors = [layers.format(i=i) for i in range(3)]
    assert list(unfreezing_order(tensors, "top").values()) == [2, 1, 0]


def test_what_has_no_layers_cannot_be_unfrozen_one_by_one() -> None:
    with pytest.raises(RecipeError, match="no numbered layers"):
        unfreezing_order(["mixes.bert.scores", "mixes.bert_2.scores"], "top")


def test_tensors_that_no_stage_trains_are_frozen_in_the_ledger_and_in_the_plan(
    make_recipe: RecipeMaker,
) -> None:
    stages = [{"train": ["glue"], "updates": 5}, {"train": ["host.model.decoder"], "updates": 5}]
    train = {"policies": {"host.model.decoder.layers.0": {"freeze": True}}}
    recipe = with_training(make_recipe(encoder={"freeze": False}), train, stages)
    composition = compose(recipe)
    for entry in composition.ledger:
        if entry.kind == "parameter" and "embed_positions" not in entry.name:
            trained = entry.name.startswith(("glue.", "host.model.decoder.layers.1."))
            assert entry.frozen is not trained, entry.name
    model = composition.model
    assert model.encoder_parts["bert"].freeze and not model.host_at_rest
    host = next(row for row in plan(recipe).parts if row.name == "host")
    assert host.trainable == sum(
        p.numel() for n, p in model.host.named_parameters() if "decoder.layers.1." in n
    )


def test_a_host_that_no_stage_trains_is_a_frozen_host(make_recipe: RecipeMaker) -> None:
    recipe = with_training(make_recipe(), {}, [{"train": ["glue"], "updates": 5}])
    model = compose(recipe).model
    assert model.config.freeze_host and not model.train().host.training
    assert never_trained(recipe, ["host.a", "glue.b"]) == {"host.a"}


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"policies": {"host.model.encodr": {"after": 3}}},
            "train.policies: .host.model.encodr. m",
        ),
        (
            {"learning_rates": {"host.{x}.nothing": 0.1}},
            "train.learning_rates: .*matches no tensor",
        ),
        ({"policies": {"host.{": {"after": 3}}}, "a brace that is no hole"),
        (
            {"policies": {"host": {"freeze": True}, "glue": {"freeze": True}}},
            "everything is frozen",
        ),
    ],
)
def test_a_name_that_matches_no_tensor_is_an_error_before_anything_is_loaded(
    make_recipe: RecipeMaker, train: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        plan(with_training(make_recipe(), train))


def test_only_what_changes_during_the_run_counts_as_frozen_for_a_time(
    make_recipe: RecipeMaker,
) -> None:
    recipe = make_recipe()
    assert not freezes_for_a_time(recipe)
    assert not freezes_for_a_time(with_training(recipe, {"policies": {"host": {"freeze": True}}}))
    assert freezes_for_a_time(with_training(recipe, {"policies": {"host": {"after": 1}}}))
    assert freezes_for_a_time(with_training(recipe, {}, [{"train": "all", "passes": 1}]))


def test_parts_in_the_log_have_the_names_of_the_recipe() -> None:
    assert part_of(FC1) == "host"
    assert part_of("encoders.bert.model.embeddings.word_embeddings.weight") == "encoders.bert"
    assert part_of("glue.gated.encoder_0_self_attention.gate") == "glue.gated"
