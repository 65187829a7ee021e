"""`load_time` and `save_size`: records beside those of the other programs, one for each scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import RunModule

pytestmark = pytest.mark.slow


def test_records_and_the_report_are_where_they_were_asked_for(
    run_module: RunModule, tmp_path: Path
) -> None:
    from benchmarks.load_time import SIDES

    results, report = tmp_path / "results", tmp_path / "report.html"
    results.mkdir()
    quick = results / "save_size-quick.json"
    quick.write_text("{}", encoding="utf-8")
    places = ["--results", str(results), "--report", str(report)]
    done = run_module("benchmarks", "--scale", "tiny", "--only", "load_time,save_size", *places)
    assert done.returncode == 0, done.stderr
    assert quick.read_text(encoding="utf-8") == "{}"
    page = report.read_text(encoding="utf-8")
    for program, told in (("load_time", SIDES), ("save_size", ["without", "full"])):
        content = json.loads((results / f"{program}-tiny.json").read_text(encoding="utf-8"))
        assert content["scale"] == "tiny"
        assert content["command"].startswith(f"python -m benchmarks.{program} --scale tiny")
        table = content["sections"][0]["table"]
        assert table in done.stdout
        assert all(f"| {one} |" in table for one in told)
        assert f'<section id="{program}-tiny">' in page
        assert content["command"] in page
