"""`warm_vs_scratch`: six rows trained, read, compared; and what it says of reaching a score."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Results, RunModule

ROWS = ["host", "continued", "fused", "published", "scratch", "deeper"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def record(warm: Results) -> dict[str, Any]:
    path = warm.folder / "warm_vs_scratch-tiny.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_every_row_is_trained_with_the_budget_that_it_should_have(record: dict[str, Any]) -> None:
    runs = record["results"]["runs"]
    assert list(runs) == ROWS
    passes = {row: several[0]["points"][-1]["passes"] for row, several in runs.items()}
    assert passes == {row: {"host": 2, "scratch": 3, "deeper": 3}.get(row, 1) for row in ROWS}
    sizes = {row: several[0]["size"] for row, several in runs.items()}
    assert sizes["host"] == sizes["continued"] < sizes["deeper"]
    assert sizes["host"] < sizes["fused"] and sizes["published"] == sizes["scratch"]


def test_the_text_says_that_the_deeper_host_is_started_and_trained_in_its_own_way(
    record: dict[str, Any],
) -> None:
    says = record["sections"][0]["says"]
    assert "deeper host has a start and schedule of its own" in says
    assert "init `default`, peak 0.003, warm-up of 300 updates; theirs: init `transformer`" in says


def test_only_what_reads_an_encoder_is_charged_for_its_memory(record: dict[str, Any]) -> None:
    runs = record["results"]["runs"]
    charged = {row for row, several in runs.items() if sum(several[0]["memory"].values()) > 0}
    assert charged == {"fused", "published", "scratch"}
    one = {row: set(runs[row][0]["memory"].items()) for row in charged}
    assert one["fused"] == one["published"] == one["scratch"]


def test_the_tables_count_the_hosts_training_in_one_column_and_not_in_the_other(
    record: dict[str, Any],
) -> None:
    says, table = (record["sections"][0][key] for key in ("says", "table"))
    assert "counts the host's own training" in says and "leaves it out" in says
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]
    out, counted = (lines[0].index(f"seconds, host {what}") for what in ("left out", "counted"))
    runs = record["results"]["runs"]
    for line, row in zip(lines[2:], ROWS, strict=True):
        run, host = runs[row][0], runs["host"][0]
        own = run["seconds"] + sum(run["memory"].values())
        before = host["seconds"] if row in ("continued", "fused", "published") else 0
        assert (line[out], line[counted]) == (f"{own:,.0f}", f"{own + before:,.0f}")


def test_curves_rise_in_updates_seconds_and_tokens(record: dict[str, Any]) -> None:
    for several in record["results"]["runs"].values():
        for key in ("updates", "seconds", "tokens"):
            values = [point[key] for point in several[0]["points"]]
            assert values == sorted(values) and values[0] > 0


def test_a_paired_bootstrap_stands_for_each_pair_and_test_set(record: dict[str, Any]) -> None:
    found = record["results"]["bootstrap"]
    assert "fused against continued" in found and "fused against scratch" in found
    for tests in found.values():
        assert set(tests) == {"known", "rare", "synonyms"}
        assert all(0 < one["p"] <= 1 for several in tests.values() for one in several)


def test_existing_runs_are_read_without_training(warm: Results, run_module: RunModule) -> None:
    runs = warm.runs / "warm_vs_scratch-tiny"
    given = [f"--{row}={runs / f'{row}-1'}" for row in ("host", "fused", "scratch")]
    other = warm.folder.parent / "again"
    done = run_module(
        "benchmarks.warm_vs_scratch", "--scale", "tiny", *given, "--results", str(other)
    )
    assert done.returncode == 0, done.stderr
    again = json.loads((other / "warm_vs_scratch-tiny.json").read_text(encoding="utf-8"))
    assert list(again["results"]["runs"]) == ["host", "fused", "scratch"]
    assert "deeper" not in again["sections"][0]["says"]
    assert (other / "warm_vs_scratch-tiny.png").read_bytes().startswith(b"\x89PNG")


def test_a_warm_start_that_is_the_host_has_its_score_before_the_first_update(warm: Results) -> None:
    from benchmarks.runs import Point, read_run
    from benchmarks.warm_vs_scratch import reach

    real = read_run(warm.runs / "warm_vs_scratch-tiny" / "fused-1")
    host = replace(real, points=[Point(10, 1.0, 7.0, 0.0, 20.0)], seconds=9.0, memory={})
    run = replace(real, points=[Point(4, 1.0, 3.0, 0.0, 15.0), Point(8, 2.0, 6.0, 0.0, 25.0)])
    at_start = reach(run, host, 20.0, 40, neutral=True)
    assert (at_start.updates, at_start.seconds, at_start.host, at_start.share) == (0, 0.0, 9.0, 0.0)
    published = reach(run, host, 20.0, 40, neutral=False)
    assert (published.updates, published.seconds, published.share) == (8, 6.0, 0.2)
    assert reach(run, host, 30.0, 40, neutral=True).updates is None
