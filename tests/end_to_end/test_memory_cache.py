"""Training with the memory cache, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from .conftest import Trained, Workspace

LONG = ("train", "fused.yaml", "train.max_steps=100", "train.eval_steps=100")


def losses(workspace: Workspace, run: str) -> list[float]:
    record = json.loads((workspace.folder / run / "run.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in record["history"] if "loss" in entry]


def cached(workspace: Workspace, run: str) -> dict[str, object]:
    record = json.loads((workspace.folder / run / "run.json").read_text(encoding="utf-8"))
    report: dict[str, object] = record["memory_cache"]["bert"]
    return report


def stored(workspace: Workspace, run: str) -> int:
    """Bytes of the blocks of a run's cache."""
    directory = workspace.folder / str(cached(workspace, run)["directory"])
    return sum(path.stat().st_size for path in directory.glob("*.block"))


@pytest.fixture(scope="session")
def on_the_fly(trained: Trained) -> list[float]:
    """Losses of 100 updates without a cache."""
    done = trained.workspace.run(*LONG, "output=runs/on_the_fly")
    assert done.returncode == 0, done.stderr.decode()
    return losses(trained.workspace, "runs/on_the_fly")


def train_cached(workspace: Workspace, run: str, cache: str, *more: str) -> str:
    """Train with a cache; what the command said."""
    done = workspace.run(*LONG, f"output=runs/{run}", f"memory_cache={cache}", *more)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    return said


@pytest.fixture(scope="session")
def with_cache(trained: Trained) -> str:
    """What a run with a cache of fp32 said."""
    return train_cached(trained.workspace, "cached", "{dir: memory, block_bytes: 200kB}")


@pytest.mark.slow
def test_the_loss_curve_with_an_fp32_cache_is_the_one_without(
    trained: Trained, on_the_fly: list[float], with_cache: str
) -> None:
    assert "all of the encoder's tokens are read from" in with_cache
    here = losses(trained.workspace, "runs/cached")
    assert len(here) == 100 and here[0] > here[-1]
    torch.testing.assert_close(here, on_the_fly, atol=1e-5, rtol=0)
    assert cached(trained.workspace, "runs/cached")["share"] == 1.0


@pytest.mark.slow
def test_a_part_on_disk_and_the_rest_on_the_fly_train_alike(
    trained: Trained, on_the_fly: list[float]
) -> None:
    said = train_cached(trained.workspace, "part", "{dir: partly, max_bytes: 1MB}")
    assert "are computed on the fly" in said
    share = cached(trained.workspace, "runs/part")["share"]
    assert isinstance(share, float) and 0.1 < share < 0.9
    here = losses(trained.workspace, "runs/part")
    torch.testing.assert_close(here, on_the_fly, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_smallest_format_trains_nearly_alike(trained: Trained, on_the_fly: list[float]) -> None:
    train_cached(trained.workspace, "q3", "{dir: memory, format: q3}")
    here = losses(trained.workspace, "runs/q3")
    assert here != on_the_fly
    tail = sum(here[-20:]) / 20, sum(on_the_fly[-20:]) / 20
    assert abs(tail[0] - tail[1]) < 0.05


@pytest.mark.slow
def test_workers_read_the_cache(trained: Trained, on_the_fly: list[float], with_cache: str) -> None:
    more = "train.dataloader_num_workers=1"
    train_cached(trained.workspace, "workers", "{dir: memory}", more)
    torch.testing.assert_close(
        losses(trained.workspace, "runs/workers"), on_the_fly, atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_two_ranks_fill_one_cache_and_train_as_without_it(
    trained: Trained, with_cache: str
) -> None:
    workspace = trained.workspace
    common = ("train", "fused.yaml", "train.max_steps=4", "train.eval_steps=4")
    without = workspace.ranks(2, *common, "output=runs/ranks_plain")
    assert without.returncode == 0, without.stderr.decode()
    cache = "memory_cache={dir: by_ranks, block_bytes: 100kB}"
    done = workspace.ranks(2, *common, "output=runs/ranks_cached", cache)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert said.count("different sentences, 0 are in") == 1
    assert "all of the encoder's tokens are read from" in said
    torch.testing.assert_close(
        losses(workspace, "runs/ranks_cached"),
        losses(workspace, "runs/ranks_plain"),
        atol=1e-5,
        rtol=0,
    )
    checked = workspace.run("cache", "verify", "--dir", "by_ranks")
    assert checked.returncode == 0, checked.stderr.decode()
    one, two = (stored(workspace, run) for run in ("runs/cached", "runs/ranks_cached"))
    assert 0 < two < one * 1.01


def blocks(workspace: Workspace) -> list[Path]:
    return sorted((workspace.folder / "shown").rglob("*.block"))


@pytest.mark.slow
def test_a_cache_is_listed_verified_mended_and_pruned(trained: Trained) -> None:
    workspace = trained.workspace
    train_cached(workspace, "shown", "{dir: shown, block_bytes: 200kB}")
    shown = json.loads(workspace.run("cache", "ls", "--dir", "shown", "--json").stdout)
    assert [one["key"]["format"] for one in shown] == ["fp32"]
    assert shown[0]["sentences"] == cached(workspace, "runs/shown")["sentences"]
    assert shown[0]["bytes"] == sum(path.stat().st_size for path in blocks(workspace))
    table = workspace.run("cache", "ls", "--dir", "shown").stdout.decode()
    assert "fp32" in table and "2,000" in table
    assert workspace.run("cache", "verify", "--dir", "shown").returncode == 0

    bad = blocks(workspace)[3]
    raw = bytearray(bad.read_bytes())
    raw[len(raw) // 2] ^= 1
    bad.write_bytes(raw)
    done = workspace.run("cache", "verify", "--dir", "shown")
    message = done.stderr.decode()
    assert done.returncode == 2 and "Traceback" not in message
    assert str(bad.name) in message and f"1 of {len(blocks(workspace))} blocks are bad" in message

    said = train_cached(workspace, "mended", "{dir: shown, block_bytes: 200kB}")
    assert f"{bad.name}: its bytes differ from its checksum; dropped" in said
    assert losses(workspace, "runs/mended") == losses(workspace, "runs/shown")
    assert workspace.run("cache", "verify", "--dir", "shown").returncode == 0

    for count, options in ((0, ("--max-bytes", "1GB", "--unused-days", "1")), (1, ("--all",))):
        done = workspace.run("cache", "prune", "--dir", "shown", *options)
        assert f"{count} removed" in done.stdout.decode()
    assert blocks(workspace) == []


MISTAKES = {
    "format": (["memory_cache.format=fp8"], ["memory_cache.format", "fp8", "'fp16'"]),
    "size": (["memory_cache.max_bytes=plenty"], ["memory_cache.max_bytes", "plenty", "20GB"]),
    "key": (["memory_cache.max_byte=1"], ["memory_cache.max_byte", "max_bytes"]),
    "no mapping": (["memory_cache=on"], ["memory_cache", "mapping"]),
    "a file": (["memory_cache.dir=small.en"], ["memory_cache.dir", "small.en"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_section_is_one_message(trained: Trained, name: str) -> None:
    overrides, words = MISTAKES[name]
    done = trained.workspace.run("train", "fused.yaml", f"output=runs/bad_{name[0]}", *overrides)
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert "Traceback" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("ls", "--dir", "nowhere"), "nowhere: no such directory"),
        (("verify", "--dir", "nowhere"), "nowhere: no such directory"),
        (("prune",), "--max-bytes 20GB, --unused-days 30 or --all"),
        (("prune", "--max-bytes", "plenty"), "--max-bytes"),
        (("prnue",), "prnue"),
    ],
    ids=str,
)
def test_a_mistake_in_a_cache_command_is_one_message(
    workspace: Workspace, arguments: tuple[str, ...], word: str
) -> None:
    done = workspace.run("cache", *arguments)
    message = done.stderr.decode()
    assert done.returncode == 2 and word in message and "Traceback" not in message
