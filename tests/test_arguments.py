"""A recipe's training arguments have the types of transformers' fields, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusion.arguments import checked_values, training_arguments
from fusion.composition import compose
from fusion.errors import RecipeError
from fusion.recipe import Recipe, validate_recipe


@pytest.fixture
def values(make_recipe: Callable[..., Recipe]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`values({"bf16": True})` of a recipe that trains so."""

    def make(train: dict[str, Any]) -> dict[str, Any]:
        raw = make_recipe().model_dump(mode="json") | {"train": train}
        return checked_values(validate_recipe(raw, Path("test.yaml")))

    return make


def test_text_that_is_a_number_is_one_and_yamls_no_is_no_evaluation(values: Any) -> None:
    given = {"learning_rate": "3e-4", "eval_strategy": False, "bf16": True, "max_steps": -1}
    assert values(given) == {
        "learning_rate": 0.0003,
        "eval_strategy": "no",
        "bf16": True,
        "max_steps": -1,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"warmup_steps": "few"}, "train.warmup_steps: found 'few'; should be a valid number"),
        ({"max_steps": -2}, "train.max_steps: found -2; should be a number from -1 on"),
        ({"weight_decay": float("inf")}, "train.weight_decay: found inf"),
        ({"per_device_eval_batch_size": 0}, "found 0; should be a number from 1 on"),
        ({"label_smoothing_factor": 1.0}, "train.label_smoothing_factor: found 1.0"),
        ({"metric_for_best_model": "eval_rouge"}, "'rouge'; dev has bleu, chrf, loss"),
    ],
)
def test_values_that_cannot_be_are_named(values: Any, given: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        values(given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("train", "saved", "best"),
    [
        ({}, "epoch", True),
        ({"eval_strategy": "steps", "eval_steps": 7}, "steps", True),
        ({"eval_strategy": "no"}, "epoch", False),
        ({"eval_strategy": "no", "save_steps": 5}, "steps", False),
    ],
)
def test_a_run_is_saved_when_it_is_evaluated_and_also_when_it_is_not(
    make_recipe: Any, tmp_path: Path, train: dict[str, Any], saved: str, best: bool
) -> None:
    raw = make_recipe().model_dump(mode="json") | {"train": train, "output": str(tmp_path)}
    recipe = validate_recipe(raw, Path("test.yaml"))
    arguments, _ = training_arguments(recipe, compose(recipe).model)
    assert arguments.save_strategy.value == saved
    assert arguments.load_best_model_at_end is best
    assert arguments.save_steps == train.get("save_steps", train.get("eval_steps", 500))
