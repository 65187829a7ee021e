"""`methods`: a row per recipe, in pieces; and two frozen encoders at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Results, RunModule

pytestmark = pytest.mark.slow
TRAINED = {"host-continued", "deeper-host", "fused", "stages", "two-encoders"}


@pytest.fixture(scope="session")
def record(methods: Results) -> dict[str, Any]:
    path = methods.folder / "methods-tiny.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_pieces_are_merged_into_one_table(record: dict[str, Any]) -> None:
    rows = record["results"]["rows"]
    assert set(rows) == {"host", *TRAINED}
    table = record["sections"][0]["table"]
    labels = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert labels == ["host", "host trained on", "deeper-host", "gated", "stages", "two-encoders"]


def test_budgets_are_equal_and_glue_adds_parameters(record: dict[str, Any]) -> None:
    rows = {row: runs["1"] for row, runs in record["results"]["rows"].items()}
    assert rows["deeper-host"]["updates"] == rows["host"]["updates"] + rows["fused"]["updates"]
    assert rows["host-continued"]["size"] == rows["host"]["size"] < rows["fused"]["size"]
    for run in rows.values():
        assert set(run["tests"]) == {"known", "rare", "synonyms"}


def test_a_step_is_timed_against_the_hosts(record: dict[str, Any]) -> None:
    steps = record["results"]["steps"]
    assert set(steps) == TRAINED
    assert steps["host-continued"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(0 < step["low"] <= step["median"] <= step["high"] for step in steps.values())


def test_an_unknown_method_is_one_error_that_lists_the_recipes(run_module: RunModule) -> None:
    done = run_module("benchmarks.methods", "--scale", "tiny", "--methods", "gatedd")
    assert done.returncode == 2
    assert "no recipe gatedd" in done.stderr and "bert-fused" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_glue_method_that_is_built_in_has_a_recipe() -> None:
    from benchmarks.methods import RECIPES, recipes
    from fusion.recipe import load_recipe
    from fusion.registry import GLUE

    have = {
        spec.method for name in recipes() for spec in load_recipe(RECIPES / f"{name}.yaml").glue
    }
    assert have == set(GLUE.builtin)


def test_two_frozen_encoders_train_verify_and_generate(
    methods: Results, run_module: RunModule
) -> None:
    run = methods.runs / "methods-tiny" / "two-encoders-1"
    kept = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert set(kept["memory_cache"]) == {"bert", "lower"}
    assert all(report["share"] == 1 for report in kept["memory_cache"].values())
    verified = run_module("fusion", "verify", str(run))
    assert verified.returncode == 0, verified.stderr
    text = methods.folder.parent / "text.en"
    text.write_text("The old dog sleeps.\nA child sees the garden.\n", encoding="utf-8")
    translated = run_module("fusion", "translate", str(run), str(text))
    assert translated.returncode == 0, translated.stderr
    assert len(translated.stdout.splitlines()) == 2
