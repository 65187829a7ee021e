"""A loss term of a glue is the same however an update is cut into batches and over ranks."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from .conftest import Trained, Workspace

DRAWN = """
extends: fused.yaml
name: tiny-drawn
host: {source: ./host_of_drawn}
glue:
  - {method: gated, encoder: bert}
  - {method: distill, encoder: bert, weight: 0.5}
train: {max_steps: 2, eval_steps: 2}
"""


def losses(workspace: Workspace, run: str) -> list[float]:
    record = json.loads((workspace.folder / run / "run.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in record["history"] if "loss" in entry]


@pytest.mark.slow
def test_two_ranks_train_with_a_penalty_as_one_that_accumulates(trained: Trained) -> None:
    workspace = trained.workspace
    (workspace.folder / "drawn.yaml").write_text(DRAWN, encoding="utf-8")
    still = workspace.folder / "host_of_drawn"
    shutil.copytree(workspace.folder / "runs" / "host" / "model", still)
    config = json.loads((still / "config.json").read_text(encoding="utf-8"))
    (still / "config.json").write_text(json.dumps(config | {"dropout": 0.0}), encoding="utf-8")

    two = workspace.ranks(2, "train", "drawn.yaml", "output=runs/drawn_two")
    assert two.returncode == 0, two.stderr.decode()
    accumulated = ("output=runs/drawn_one", "train.gradient_accumulation_steps=2")
    one = workspace.run("train", "drawn.yaml", *accumulated)
    assert one.returncode == 0, one.stderr.decode()
    bare = workspace.run(
        "train", "drawn.yaml", *accumulated[1:], "output=runs/bare", "glue.1.weight=1e-9"
    )
    assert bare.returncode == 0, bare.stderr.decode()

    here, there = losses(workspace, "runs/drawn_one"), losses(workspace, "runs/drawn_two")
    assert len(here) == 2
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-6)
    assert abs(losses(workspace, "runs/bare")[0] - here[0]) > 0.1  # the penalty is in the loss
    torch.testing.assert_close(
        workspace.tensors("runs/drawn_one/model"),
        workspace.tensors("runs/drawn_two/model"),
        atol=1e-5,
        rtol=0,
    )
