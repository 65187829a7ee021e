"""Every fault in files of every model: none may be silent.

    python -m tests.faults [--examples N] [--seed N]

A case is caught if an error names every tensor it is about and no other one; where shapes and
dtypes are as they should be (swapped layers, a square matrix transposed), if the recorded digests
name exactly these. A truncated file has no names: the error names the file. A row without a fault
shows that the untouched file loads.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from torch import nn

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import Source
from fusion.errors import FusionError, SourceError, WarmStartError
from fusion.warmstart import warm_start

from .kinds import DEEP, FAULTS, Draw, Fault, prefix
from .models import KINDS, WRITERS, State, Tiny, tiny

ALL = {"none": lambda draw, model, state: Fault("untouched"), **FAULTS}


@dataclass
class Cell:
    """The cases of one fault in one model: what was done -> why it was not caught, or None."""

    cases: dict[str, str | None] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """The cases that were not caught, with the reason."""
        return [f"{text}: {why}" for text, why in self.cases.items() if why is not None]


def changed(recorded: Mapping[str, str], source: Source) -> list[str]:
    """Tensors that are not what was recorded, that are gone, or that are new."""
    now = source.tensors()
    gone = [key for key in recorded if key not in now]
    return gone + [key for key in now if source.digest(key) != recorded.get(key)]


def run(name: str, fault: str, examples: int, seed: int = 0) -> Cell:
    """Cases of one fault in one model, drawn by hypothesis."""
    cell = Cell()
    model = tiny(name, DEEP if ALL[fault] is prefix else 3)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.data())
    def one(data: st.DataObject) -> None:
        text, why = _case(data.draw, model, fault)
        cell.cases[text] = why

    one()
    return cell


def _case(draw: Draw, model: Tiny, name: str) -> tuple[str, str | None]:
    state = dict(model.state)
    fault = ALL[name](draw, model, state)
    writer = draw(st.sampled_from(list(WRITERS)))
    with tempfile.TemporaryDirectory() as folder:
        return f"{writer}: {fault.text}", _why_missed(model, fault, state, Path(folder), writer)


def _why_missed(model: Tiny, fault: Fault, state: State, folder: Path, writer: str) -> str | None:
    """None: the fault was caught."""
    file = WRITERS[writer](state, folder)
    if fault.cut is not None:
        os.truncate(file, int(file.stat().st_size * fault.cut))
        fault.names = (str(file),)
    loads = fault.by_digest or not fault.names
    module = model.fresh() if loads else model.empty
    before = _tensors(module)
    try:
        source = open_source(folder)
        _load(model, module, source, fault)
    except (WarmStartError, SourceError) as error:
        if loads:
            return f"refused: {error}"
        if _tensors(module) != before:
            return "the module was changed"
        return _badly_said(fault, str(error))
    except FusionError as error:
        return f"raised {type(error).__name__}: {error}"
    except Exception as error:  # a crash is a miss, and belongs into the table
        return f"crashed with {type(error).__name__}: {error}"
    if not loads:
        return "silent"
    found = changed(model.digests, source)
    return None if sorted(found) == sorted(fault.names) else f"digests name {found}"


def _load(model: Tiny, module: nn.Module, source: Source, fault: Fault) -> None:
    warm_start(
        module,
        source,
        rules=fault.rules,
        compute=module._init_weights,
        computed=lambda name: name not in model.state,  # what save_pretrained leaves out
    )


def _tensors(module: nn.Module) -> list[tuple[str, int, bool]]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return [(name, id(tensor), tensor.is_meta) for name, tensor in named]


def _badly_said(fault: Fault, message: str) -> str | None:
    """What is wrong with a message."""
    unsaid = [name for name in fault.names if not _has(message, name)]
    if unsaid:
        return f"does not name {unsaid[0]}: {message}"
    for line in message.split("\n"):
        if not any(_has(line, name) for name in fault.names):
            return f"a line about something else: {line}"
        subject = line.split(": ")[0]
        if subject in fault.strangers:
            return f"names {subject}: {line}"
    return None


def _has(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text) is not None


def run_all(examples: int, seed: int = 0) -> dict[tuple[str, str], Cell]:
    """All cells by (fault, model)."""
    return {(fault, name): run(name, fault, examples, seed) for fault in ALL for name in KINDS}


def table(cells: Mapping[tuple[str, str], Cell]) -> str:
    """Caught of cases, per fault and model, and the sum."""
    lines = [f"{'fault':<22}" + "".join(f"{name:>10}" for name in KINDS)]
    for fault in ALL:
        row = [cells[fault, name] for name in KINDS]
        shown = [f"{len(c.cases) - len(c.missed)}/{len(c.cases)}" for c in row]
        lines.append(f"{fault:<22}" + "".join(f"{text:>10}" for text in shown))
    faulty = [cell for (fault, _), cell in cells.items() if fault != "none"]
    cases = sum(len(cell.cases) for cell in faulty)
    missed = sum(len(cell.missed) for cell in faulty)
    lines.append(f"cases: {cases}, caught: {cases - missed}, silent or badly named: {missed}")
    return "\n".join(lines)


def misses(cells: Mapping[tuple[str, str], Cell]) -> list[str]:
    """Every case that was not caught, and every untouched file that did not load."""
    return [f"{name}: {f}: {text}" for (f, name), cell in cells.items() for text in cell.missed]


def main() -> int:
    parser = argparse.ArgumentParser(description="the fault matrix")
    parser.add_argument("--examples", type=int, default=40, help="drawn per fault and model")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FUSION_CACHE"] = cache
        cells = run_all(told.examples, told.seed)
    for line in misses(cells):
        print(line)
    print(table(cells))
    return int(bool(misses(cells)))
