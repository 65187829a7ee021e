"""A run that was killed, or had no room, goes on where it was, and ends with the same bits."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Trained, Workspace


def kill_after(workspace: Workspace, mark: Path, *arguments: str) -> None:
    """Start a run and kill it with SIGKILL as soon as `mark` is there."""
    process = subprocess.Popen(
        workspace.command(*arguments),
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not mark.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"no {mark}"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_resumes_and_ends_bitwise_as_an_undisturbed_one(trained: Trained) -> None:
    workspace = trained.workspace
    output = workspace.folder / "runs" / "killed"
    command = ("train", "fused.yaml", "output=runs/killed")
    kill_after(workspace, output / "checkpoints" / "checkpoint-4" / "complete", *command)
    assert not (output / "run.json").exists()
    assert not (output / "model").exists()

    whole = output / "checkpoints" / "checkpoint-4"
    half = output / "checkpoints" / "checkpoint-11"
    shutil.copytree(whole, half)
    (half / "complete").unlink()
    weights = half / "glue.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])

    done = workspace.run(*command)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "tiny-fused: resumes from checkpoint-" in said
    assert "resumes from checkpoint-11" not in said
    assert not half.exists()

    undisturbed = workspace.tensors("runs/fused/model")
    resumed = workspace.tensors("runs/killed/model")
    assert undisturbed.keys() == resumed.keys()
    differ = [name for name in undisturbed if not torch.equal(undisturbed[name], resumed[name])]
    assert differ == []


@pytest.mark.slow
def test_a_checkpoint_without_room_is_one_message_and_leaves_the_one_before(
    trained: Trained,
) -> None:
    folder = trained.workspace.folder
    output = folder / "runs" / "full"
    shutil.copytree(folder / "runs" / "fused", output)
    shutil.rmtree(output / "model")
    (output / "run.json").unlink()
    for number in (8, 12):
        shutil.rmtree(output / "checkpoints" / f"checkpoint-{number}")
    optimizer = (output / "checkpoints" / "checkpoint-4" / "optimizer.pt").stat().st_size
    room = f"ulimit -f {optimizer // 2 // 1024}; exec "  # for each file but the optimizer's state
    command = trained.workspace.command("train", "fused.yaml", "output=runs/full")
    done = subprocess.run(
        ["bash", "-c", room + shlex.join(command)],
        cwd=folder,
        env=trained.workspace.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    place = output / "checkpoints" / "checkpoint-8"
    said = f"{place}: cannot be written: torch could not write all of it; is the disk full?"
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (output / "checkpoints").glob("check*")] == ["checkpoint-4"]
