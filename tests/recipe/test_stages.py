"""Stages, policies and learning rates name parts that are there and may be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import RecipeError
from fusion.recipe import Recipe, load_recipe, validate_recipe

RecipeMaker = Callable[..., Recipe]
STAGE = {"train": ["glue"], "updates": 5}


def read(recipe: Recipe, **places: Any) -> Recipe:
    return validate_recipe(recipe.model_dump(mode="json") | places, Path("test.yaml"))


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (
            {"train": {"policies": {"encoder": {"after": 3}}}},
            'train.policies.encoder: unknown key "encoder"; nearest: "encoders"',
        ),
        (
            {"train": {"learning_rates": {"encoders.brt": 0.1}}},
            'train.learning_rates.encoders.brt: no encoder "brt"; this recipe has: bert',
        ),
        (
            {"train": {"policies": {"glue.bert_fused": {"after": 3}}}},
            'train.policies.glue.bert_fused: no glue "bert_fused"; this recipe has: gated',
        ),
        (
            {"train": {"policies": {"host": {"afterr": 3}}}},
            'train.policies.host.afterr: unknown key "afterr"; nearest: "after"',
        ),
        (
            {"train": {"policies": {"host": {"unfreeze": {"evry": 3, "every": 1}}}}},
            'train.policies.host.unfreeze.evry: unknown key "evry"; nearest: "every"',
        ),
        (
            {"train": {"policies": {"encoders.bert": {"after": 3}}}},
            "train.policies.encoders.bert: encoders.bert is frozen for good (freeze: true, the "
            "default); set encoders.bert.freeze to false",
        ),
        (
            {"stages": [STAGE, {"train": ["host", "encoders"], "passes": 1}]},
            "stages[1].train: encoders.bert is frozen for good (freeze: true, the default); set "
            "encoders.bert.freeze to false",
        ),
        (
            {"stages": [STAGE, {"train": ["hosts"], "passes": 1}]},
            'stages[1].train.hosts: unknown key "hosts"; nearest: "host"',
        ),
        ({"stages": [{"train": ["glue"]}]}, "stages[0]: say either updates or passes, one of the"),
        ({"stages": [{"train": [], "updates": 1}]}, "stages[0]: train: names nothing"),
        (
            {"stages": [STAGE | {"update": 1}]},
            'stages[0].update: unknown key "update"; nearest: "updates"',
        ),
        (
            {"stages": [STAGE], "train": {"num_train_epochs": 3}},
            "train.num_train_epochs: the stages say how long the run is; remove it",
        ),
        (
            {"train": {"policies": {"host": {"schedule": {"type": "ctnmt"}}}}},
            "train.policies.host.schedule: ctnmt needs end",
        ),
        (
            {"train": {"policies": {"host": {"schedule": {"type": "linaer"}}}}},
            "train.policies.host.schedule.type: found 'linaer'; should be 'ctnmt', 'constant'",
        ),
    ],
)
def test_a_mistake_in_a_policy_or_stage_names_the_key_and_what_would_work(
    make_recipe: RecipeMaker, places: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as error:
        read(make_recipe(), **places)
    assert str(error.value).startswith(f"test.yaml: {said}"), str(error.value)


def test_a_frozen_host_cannot_be_a_stage(
    make_recipe: RecipeMaker, host_dirs: dict[str, Path]
) -> None:
    recipe = make_recipe(host_settings={"source": str(host_dirs["marian"]), "freeze": True})
    with pytest.raises(RecipeError, match="host is frozen for good"):
        read(recipe, stages=[{"train": ["host.model.decoder"], "updates": 3}])


def test_a_base_recipes_length_is_unsaid_by_null(make_recipe: RecipeMaker) -> None:
    recipe = read(make_recipe(), stages=[STAGE], train={"max_steps": None, "warmup_steps": 3})
    assert recipe.train.arguments == {"warmup_steps": 3}


def test_stages_null_takes_away_what_a_base_recipe_has(make_recipe: RecipeMaker) -> None:
    assert read(make_recipe(), stages=None).stages == []


def test_stages_and_policies_count_in_the_digest_and_their_absence_does_not(
    make_recipe: RecipeMaker,
) -> None:
    recipe = make_recipe()
    digests = {
        recipe.digest(),
        read(recipe, stages=[STAGE]).digest(),
        read(recipe, train={"policies": {"host": {"after": 3}}}).digest(),
    }
    assert len(digests) == 3
    assert read(recipe, stages=[], train={"policies": {}}).digest() == recipe.digest()


def test_an_override_reaches_a_name_with_dots_that_is_there() -> None:
    path = Path(__file__).parents[2] / "recipes" / "quickstart" / "stages.yaml"
    recipe = load_recipe(
        path,
        [
            "stages.2.policies.encoders.bert.unfreeze.every=2",
            "train.policies.host.model.shared.freeze=false",
        ],
    )
    unfreeze = recipe.stages[2].policies["encoders.bert"].unfreeze
    assert unfreeze is not None and unfreeze.every == 2
    assert recipe.train.policies["host.model.shared"].freeze is False
