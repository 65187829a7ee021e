"""A reduced fault matrix: no fault in any model's file is silent."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.kinds import FAULTS
from faults.matrix import Cell, misses, run, table
from faults.models import KINDS

EXAMPLES = 3


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], Cell]:
    return {}


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_no_fault_is_silent_in_any_model(
    fault: str,
    cells: dict[tuple[str, str], Cell],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path))
    found = {(fault, name): run(name, fault, EXAMPLES) for name in KINDS}
    cells |= found
    assert all(cell.cases for cell in found.values())
    assert misses(found) == []
    if fault == list(FAULTS)[-1] and len(cells) == len(KINDS) * (len(FAULTS) + 1):
        print(f"\n{table(cells)}")
