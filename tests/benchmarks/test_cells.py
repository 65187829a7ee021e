"""The matrix runs cells, keeps what was found, and says what works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import RunModule


def test_cells_are_run_once_and_their_results_kept(run_module: RunModule, tmp_path: Path) -> None:
    options = ("benchmarks.matrix", "--scale", "tiny", "--results", str(tmp_path))
    done = run_module(*options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("3 cells, 3 work\n")
    path = tmp_path / "matrix-tiny.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert len(record["cells"]) == 3
    broken = dict.fromkeys(record["cells"], "broken")
    path.write_text(json.dumps(record | {"cells": broken}), encoding="utf-8")
    assert run_module(*options).stdout.endswith("3 cells, 0 work\n")
    assert run_module(*options, "--again").stdout.endswith("3 cells, 3 work\n")
