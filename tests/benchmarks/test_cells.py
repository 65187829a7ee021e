"""The matrix: which pairs its scales run, that cells work and train, that results are kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from benchmarks import matrix
from benchmarks.matrix import NONE, PAIRS, REFUSED, SOME_ENCODERS, SOME_HOSTS, Cell, chosen
from fusion.errors import FusionError
from fusion.registry import GLUE

if TYPE_CHECKING:
    from .conftest import RunModule

METHODS = GLUE.names()
READING = [name for name in METHODS if GLUE.get(name).reads_memory]


def pairs(scale: str, kind: str) -> set[tuple[str, str]]:
    found = [pair for cell in chosen(scale) for pair in cell.pairs]
    return {(one, other) for what, one, other in found if what == kind}


def test_tiny_scale_has_every_pair_of_its_hosts_encoders_and_methods_but_those_refused() -> None:
    hosts, encoders, both = (pairs("tiny", kind) for kind in PAIRS)
    assert hosts == set(itertools.product(SOME_HOSTS, METHODS)) - REFUSED
    assert encoders == set(itertools.product(SOME_HOSTS, SOME_ENCODERS))
    assert both == set(itertools.product(SOME_ENCODERS, READING))
    assert len(chosen("tiny")) == len(both) + len(SOME_HOSTS) * (len(METHODS) - len(READING))


def test_quick_scale_has_every_host_with_every_method_and_never_the_same_pair_twice() -> None:
    hosts, encoders, both = (pairs("quick", kind) for kind in PAIRS)
    assert hosts == set(itertools.product(matrix.hosts(), METHODS))
    assert {one for one, _ in both} == set(matrix.ENCODERS)
    reading = [cell for cell in chosen("quick") if cell.encoder != NONE]
    assert len(reading) == len(encoders) == len(both) == len(matrix.hosts()) * len(READING)


def test_a_method_that_reads_no_encoder_does_not_count_as_run_with_one() -> None:
    cells = [cell for scale in ("tiny", "quick", "full") for cell in chosen(scale)]
    assert {cell.method for cell in cells if cell.encoder == NONE} == set(METHODS) - set(READING)
    assert Cell("t5", NONE, "lora").pairs == [("host and method", "t5", "lora")]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("glue", "does not move the glue"),
        ("frozen", "moves frozen.weight, which is frozen"),
        ("still", "does not move still.weight"),
    ],
)
def test_a_training_step_that_moves_too_little_or_too_much_is_no_training_step(
    fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.ModuleDict({"glue": nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)})})
    model.update({name: nn.Linear(2, 2, bias=False) for name in ("frozen", "still")})
    model.frozen.requires_grad_(False)  # type: ignore[union-attr]

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        if fault == "frozen":
            model.frozen.weight.data.add_(1)
        glue = model.glue.a(batch).detach() if fault == "glue" else model.glue.a(batch)
        total: torch.Tensor = model.still(model.frozen(glue)).sum()
        return total

    class Step(torch.optim.Adam):
        def step(self, closure: Any = None) -> None:
            if fault == "still":
                model.still.weight.grad, kept = None, model.still.weight.grad
            super().step()
            if fault == "still":
                model.still.weight.grad = kept

    monkeypatch.setattr(matrix, "loss_of", loss)
    monkeypatch.setattr(torch.optim, "Adam", Step)
    with pytest.raises(FusionError, match=words):
        matrix._train(model, SimpleNamespace(batch=torch.ones(1, 2)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(run_module: RunModule, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The record of all cells of the tiny scale, and what was printed."""
    folder = tmp_path_factory.mktemp("matrix")
    done = run_module("benchmarks.matrix", "--scale", "tiny", "--results", str(folder))
    assert done.returncode == 0, done.stderr
    return folder / "matrix-tiny.json", done.stdout


def test_every_pair_of_a_few_hosts_and_encoders_and_all_methods_works(
    tiny: tuple[Path, str],
) -> None:
    record, text = tiny
    cells = json.loads(record.read_text(encoding="utf-8"))["results"]["cells"]
    assert {key: one["result"] for key, one in cells.items()} == {
        cell.key: "works" for cell in chosen("tiny")
    }
    assert "48 cells run, 48 work; 4 of 42 hosts, 4 of 60 encoders, 12 of 12 methods" in text
    assert "| host and encoder | 16 | 16 | 2,520 |" in text


def test_cells_are_run_once_and_their_results_kept_with_their_commits(
    tiny: tuple[Path, str], run_module: RunModule, tmp_path: Path
) -> None:
    path = tmp_path / tiny[0].name
    record = json.loads(tiny[0].read_text(encoding="utf-8"))
    cells, keys = record["results"]["cells"], [cell.key for cell in chosen("tiny")]
    cells |= {key: {"result": "broken", "commit": "abc1234"} for key in keys[:4]}
    cells |= {key: {"result": "works", "commit": "abc1234"} for key in keys[5:]}
    del cells[keys[4]]
    path.write_text(json.dumps(record), encoding="utf-8")

    def printed(*options: str) -> str:
        places = ("--scale", "tiny", "--results", str(tmp_path), "--workers", "1")
        done = run_module("benchmarks.matrix", *places, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ran() -> list[str]:
        kept = json.loads(path.read_text(encoding="utf-8"))["results"]["cells"]
        return [key for key in keys if kept[key]["commit"] != "abc1234"]

    text = printed()
    assert ran() == keys[4:5]
    assert "48 cells run, 44 work" in text and "commits " in text and "abc1234" in text
    assert text.count("| broken |") == 4
    assert "2 cells run, 2 work" in printed("--again", "--first", "2")
    assert ran() == [*keys[:2], keys[4]]


def test_a_reason_is_the_same_wherever_the_cell_was_run() -> None:
    reasons = {matrix.run(Cell("llama", "bert", "replace-encoder")) for _ in range(2)}
    assert reasons == {"a decoder-only host has no encoder to replace"}


@pytest.mark.slow
def test_every_host_works_with_every_method_or_says_why_not(
    run_module: RunModule, tmp_path: Path
) -> None:
    done = run_module("benchmarks.matrix", "--scale", "quick", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    path = tmp_path / "matrix-quick.json"
    cells = json.loads(path.read_text(encoding="utf-8"))["results"]["cells"]
    reasons = [one["result"] for one in cells.values() if one["result"] != "works"]
    words = (
        "attention interface",
        "no site",
        "distill is for",
        "no encoder to replace",
        "several lengths",
    )
    assert len(cells) == 504
    assert [one for one in reasons if not any(word in one for word in words)] == []
