"""Two ranks do what one rank does with twice the accumulation."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from .conftest import Trained, Workspace


def losses(workspace: Workspace, run: str) -> list[float]:
    record = json.loads((workspace.folder / run / "run.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in record["history"] if "loss" in entry]


def test_two_ranks_give_the_losses_and_tensors_of_one_that_accumulates(trained: Trained) -> None:
    workspace = trained.workspace
    still = workspace.folder / "host_without_dropout"
    shutil.copytree(workspace.folder / "runs" / "host" / "model", still)
    config = json.loads((still / "config.json").read_text(encoding="utf-8"))
    (still / "config.json").write_text(json.dumps(config | {"dropout": 0.0}), encoding="utf-8")
    common = ("train", "fused.yaml", "host.source=./host_without_dropout", "train.max_steps=2")
    common += ("train.eval_steps=2", "glue.1.drop_net=0.0")

    two = workspace.ranks(2, *common, "output=runs/two")
    assert two.returncode == 0, two.stderr.decode()
    assert two.stderr.decode().count("tiny-fused: saved in") == 1
    accumulated = ("output=runs/one", "train.gradient_accumulation_steps=2")
    one = workspace.run(*common, *accumulated)
    assert one.returncode == 0, one.stderr.decode()

    here, there = losses(workspace, "runs/one"), losses(workspace, "runs/two")
    assert len(here) == 2
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        workspace.tensors("runs/one/model"),
        workspace.tensors("runs/two/model"),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.slow
def test_two_ranks_resume_beside_checkpoints_that_a_kill_cut_short(trained: Trained) -> None:
    workspace = trained.workspace
    common = ("train", "fused.yaml", "host.source=./runs/host/model", "train.eval_steps=2")
    common += ("output=runs/killed", "train.max_steps=4")
    first = workspace.ranks(2, *common)
    assert first.returncode == 0, first.stderr.decode()
    place = workspace.folder / "runs" / "killed"
    losses_of_all = losses(workspace, "runs/killed")
    (place / "run.json").unlink()
    for update in (4, 6, 8):  # of those after the second update
        cut = place / "checkpoints" / f"checkpoint-{update}"
        for number in range(50):
            (cut / f"folder-{number}").mkdir(parents=True)
        (cut / "complete").unlink(missing_ok=True)
    second = workspace.ranks(2, *common)
    assert second.returncode == 0, second.stderr.decode()
    assert "resumes from checkpoint-2" in second.stderr.decode()
    assert losses(workspace, "runs/killed") == losses_of_all


@pytest.mark.slow
def test_fsdp_where_there_is_nothing_to_shard_on_is_said_and_changes_nothing(
    trained: Trained,
) -> None:
    workspace = trained.workspace
    common = ("train", "fused.yaml", "host.source=./runs/host/model", "train.max_steps=2")
    for options in (("output=runs/ddp",), ("output=runs/fsdp", "train.fsdp=true")):
        done = workspace.ranks(2, *common, *options)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr.decode().count("fsdp has no effect") == (len(options) - 1)
    assert losses(workspace, "runs/fsdp") == losses(workspace, "runs/ddp")


SPARSE = """
name: tiny-experts
output: runs/experts
host:
  new:
    family: switch_transformers
    d_model: 16
    d_kv: 8
    d_ff: 32
    num_layers: 2
    num_decoder_layers: 2
    num_heads: 2
    num_experts: 32
    num_sparse_encoder_layers: 1
    num_sparse_decoder_layers: 1
  tokenizer: {vocab_size: 400}
data:
  train: {synthetic: train}
  dev: {synthetic: dev}
  synthetic_pairs: 2000
  batch_tokens: 256
train: {max_steps: 3, eval_strategy: "no", load_best_model_at_end: false}
"""


@pytest.mark.slow
def test_ranks_train_a_host_of_which_a_batch_does_not_reach_every_tensor(
    workspace: Workspace,
) -> None:
    (workspace.folder / "experts.yaml").write_text(SPARSE, encoding="utf-8")
    done = workspace.ranks(2, "train", "experts.yaml")
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "this batch gives no gradient to" in said and "saved in" in said
