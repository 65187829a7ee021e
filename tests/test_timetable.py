"""A timetable has every tensor's rate in every update, as published or as transformers has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from fusion.errors import RecipeError
from fusion.recipe import Recipe, validate_recipe
from fusion.timetable import Curve, Defaults, Timetable, own_name, stage_lengths, timetable

RecipeMaker = Callable[..., Recipe]
HOST = [f"host.model.encoder.layers.{i}.fc1.weight" for i in range(3)]
BERT = "encoders.bert.model.encoder.layer.0.output.dense.weight"
GLUE = "glue.gated.encoder_0_self_attention.gate"
TENSORS = [*HOST, BERT, GLUE]
BASE = 0.01


@pytest.fixture
def table(make_recipe: RecipeMaker) -> Callable[..., Timetable]:
    """`table(train={...}, stages=[...], total=20)` of a recipe with a trained encoder."""

    def make(
        train: dict[str, Any] | None = None,
        stages: list[dict[str, Any]] | None = None,
        total: int = 20,
    ) -> Timetable:
        raw = make_recipe(encoder={"freeze": False}).model_dump(mode="json")
        raw |= {"train": train or {}, "stages": stages or []}
        recipe = validate_recipe(raw, Path("test.yaml"))
        given = recipe.train.arguments
        defaults = Defaults(
            BASE, given.get("lr_scheduler_type", "linear"), lambda n: given.get("warmup_steps", 0)
        )
        return timetable(recipe, TENSORS, defaults, stage_lengths(recipe, total, per_pass=10))

    return make


def rates(table: Timetable, tensor: str) -> list[float]:
    return [sum(turn.rate(u) for turn in table.turns[tensor]) for u in range(table.total)]


def transformers_rates(kind: str, warmup: int, total: int, peak: float = BASE) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(kind, optimizer, warmup, total)
    found = []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_ctnmt_rises_to_one_falls_to_zero_and_stays_there() -> None:
    curve = Curve("ctnmt", 0, warmup=10_000, length=20_000)
    for t, rho in [(0, 0.0), (2500, 0.25), (10_000, 1.0), (15_000, 0.5), (20_000, 0.0), (9e9, 0.0)]:
        assert curve.factor(int(t)) == pytest.approx(rho, abs=1e-15)


def test_ctnmt_multiplies_the_runs_own_rate_and_freezes_at_its_end(
    table: Callable[..., Timetable],
) -> None:
    ctnmt = {"type": "ctnmt", "warmup_steps": 4, "end": 8}
    made = table({"warmup_steps": 2, "policies": {"encoders": {"schedule": ctnmt}}})
    base = transformers_rates("linear", 2, 20)
    rho = [t / 4 if t < 4 else max(0.0, 1 - (t - 4) / 4) for t in range(20)]
    assert rates(made, BERT) == pytest.approx([b * r for b, r in zip(base, rho, strict=True)])
    assert rates(made, GLUE) == pytest.approx(base)
    assert BERT in made.trained(7) and BERT not in made.trained(8)
    assert made.changes == [0, 8]


@pytest.mark.parametrize(
    "kind", ["linear", "cosine", "inverse_sqrt", "constant", "constant_with_warmup", "polynomial"]
)
def test_every_stage_starts_transformers_schedule_anew(
    table: Callable[..., Timetable], kind: str
) -> None:
    made = table(
        {"lr_scheduler_type": kind, "warmup_steps": 3, "learning_rates": {"host": 0.02}},
        [
            {"train": ["glue"], "passes": 0.7},
            {"train": ["host", "glue"], "updates": 9, "learning_rate": 0.005, "warmup_steps": 2},
            {"train": "all", "updates": 4},
        ],
    )
    first, second, third = (
        transformers_rates(kind, 3, 7),
        transformers_rates(kind, 2, 9, 0.005),
        transformers_rates(kind, 3, 4),
    )
    assert made.total == 20 and made.changes == [0, 7, 16]
    assert rates(made, GLUE) == pytest.approx([*first, *second, *third], abs=1e-6)
    assert rates(made, HOST[0]) == pytest.approx(
        [*[0] * 7, *second, *(2 * r for r in third)], abs=1e-6
    )
    assert rates(made, BERT) == pytest.approx([*[0] * 16, *third], abs=1e-6)
    assert made.trained(6) == {GLUE}
    assert made.trained(7) == {GLUE, *HOST}
    assert made.trained(16) == set(TENSORS)


def test_a_schedule_of_ones_own_counts_from_where_the_part_is_first_trained(
    table: Callable[..., Timetable],
) -> None:
    own = {"type": "cosine", "warmup_steps": 2}
    made = table({"policies": {"host": {"after": 5, "schedule": own}}})
    assert rates(made, HOST[0]) == pytest.approx([0] * 5 + transformers_rates("cosine", 2, 15))


def test_layers_join_one_after_the_other_from_the_top(table: Callable[..., Timetable]) -> None:
    made = table({"policies": {"host": {"after": 2, "unfreeze": {"every": 4}}}})
    begins = [next(u for u in range(20) if name in made.trained(u)) for name in HOST]
    assert begins == [10, 6, 2]
    assert made.changes == [0, 2, 6, 10]
    base = transformers_rates("linear", 0, 20)
    assert rates(made, HOST[0]) == pytest.approx([0] * 10 + base[10:])


def test_a_stages_policy_holds_in_that_stage_only_and_counts_from_its_start(
    table: Callable[..., Timetable],
) -> None:
    made = table(
        {},
        [
            {"train": "all", "updates": 6, "policies": {"host": {"freeze": True}}},
            {"train": "all", "updates": 6, "policies": {"encoders.bert": {"after": 2}}},
        ],
    )
    assert made.trained(0) == {BERT, GLUE}
    assert made.trained(6) == {*HOST, GLUE}
    assert made.trained(8) == set(TENSORS)


def test_a_part_that_is_trained_later_keeps_what_is_never_trained_frozen(
    table: Callable[..., Timetable],
) -> None:
    never = {"host.model.encoder.layers.0": {"freeze": True}}
    made = table(
        {"policies": never},
        [{"train": ["host", "glue"], "updates": 9, "policies": {"host": {"after": 7}}}],
    )
    assert made.turns[HOST[0]] == ()
    assert made.trained(6) == {GLUE}
    assert made.trained(7) == {*HOST[1:], GLUE}


@pytest.mark.parametrize(
    "policy", [{"after": 20}, {"after": 4, "unfreeze": {"every": 8}}], ids=["after", "unfreeze"]
)
def test_what_would_be_trained_after_the_end_only_is_an_error(
    table: Callable[..., Timetable], policy: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=r"from update 20 on, but there are only 20; lower after"):
        table({"policies": {"host": policy}})


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "linaer"])
def test_a_schedule_that_needs_more_than_the_updates_number_does_not_go_with_policies(
    table: Callable[..., Timetable], kind: str
) -> None:
    with pytest.raises(RecipeError, match=f"train.lr_scheduler_type: {kind} does not go with stag"):
        table({"lr_scheduler_type": kind, "policies": {"host": {"after": 1}}})


def test_names_are_the_same_within_wrappers() -> None:
    for wrapped in (f"module.{GLUE}", f"_orig_mod.{GLUE}", f"module._orig_mod.{GLUE}"):
        assert own_name(wrapped) == GLUE
