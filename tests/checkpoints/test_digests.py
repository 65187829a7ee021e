"""Digests are computed once per state of a file, and never taken from another state of it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fusion.checkpoints.digests import cache_directory, file_digest
from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import Source, TensorInfo, nonfinite, tensor_digest
from fusion.errors import SourceError

Saver = Callable[[dict[str, Tensor], Path], object]
FORMATS: dict[str, Saver] = {"m.safetensors": save_file, "m.pt": torch.save}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests"


def settle() -> None:
    """Wait until a file written now counts as settled."""
    time.sleep(0.06)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.json"))


def forge(cache: Path, digest: str) -> None:
    """Replace every digest in the cache, so that what is taken from it shows."""
    for path in entries(cache):
        content = json.loads(path.read_text())
        content["facts"] = {name: [digest, *rest[1:]] for name, rest in content["facts"].items()}
        path.write_text(json.dumps(content))


def digests(path: Path, *, fresh: bool = False) -> dict[str, str]:
    source = open_source(path)
    return {name: source.digest(name, fresh=fresh) for name in source.tensors()}


@pytest.fixture(params=list(FORMATS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Saver]:
    path, save = tmp_path / request.param, FORMATS[request.param]
    save({"a": torch.arange(4.0), "b": torch.ones(2)}, path)
    settle()
    return path, save


FORGED = "f" * 64


def test_a_digest_is_that_of_the_tensor(saved: tuple[Path, Saver]) -> None:
    expected = {"a": tensor_digest(torch.arange(4.0)), "b": tensor_digest(torch.ones(2))}
    assert digests(saved[0]) == expected
    assert digests(saved[0]) == expected


def test_a_second_source_takes_digests_from_the_cache(
    saved: tuple[Path, Saver], own_cache: Path
) -> None:
    true = digests(saved[0])
    assert len(entries(own_cache)) == 1
    forge(own_cache, FORGED)
    assert set(digests(saved[0]).values()) == {FORGED}
    assert digests(saved[0], fresh=True) == true
    assert digests(saved[0]) == true, "a fresh digest replaces what was known"


def test_another_process_takes_them_too(saved: tuple[Path, Saver], own_cache: Path) -> None:
    program = (
        "import sys; from fusion.checkpoints.directory import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "print(*[source.digest(name) for name in source.tensors()])\n"
    )

    def run() -> list[str]:
        command = [sys.executable, "-c", program, str(saved[0])]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert run() == list(digests(saved[0]).values())
    forge(own_cache, FORGED)
    assert run() == [FORGED, FORGED]


@pytest.mark.parametrize("keep", ["nothing", "size", "size and mtime"])
def test_a_changed_file_is_never_given_an_old_digest(saved: tuple[Path, Saver], keep: str) -> None:
    path, save = saved
    old, times = digests(path), path.stat()
    added = {"c": torch.ones(9)} if keep == "nothing" else {}
    save({"a": torch.arange(4.0) + 1, "b": torch.ones(2)} | added, path)
    if keep == "size and mtime":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    new = digests(path)
    assert new["a"] == tensor_digest(torch.arange(4.0) + 1) != old["a"]
    assert new["b"] == old["b"]
    save({"a": torch.arange(4.0), "b": torch.ones(2)}, path)
    assert digests(path)["a"] == old["a"]


def test_a_source_whose_file_changed_says_so_instead_of_mixing_both(
    saved: tuple[Path, Saver],
) -> None:
    path, save = saved
    source = open_source(path)
    before = source.digest("a")
    replacement = path.with_name(f"new_{path.name}")
    save({"a": torch.arange(4.0) + 1, "b": torch.ones(2)}, replacement)
    os.replace(replacement, path)
    with pytest.raises(SourceError, match="has changed since it was opened"):
        source.digest("a")
    assert digests(path)["a"] != before
    path.unlink()
    with pytest.raises(SourceError, match="has changed since it was opened"):
        source.digest("b")


def test_a_file_written_this_moment_is_not_remembered(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(2)}, path)
    coming = time.time_ns() + 5_000_000_000
    os.utime(path, ns=(coming, coming))
    digests(path)
    file_digest(path)
    assert entries(own_cache) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"files": 3}', '{"facts": {"a": 1}}', "[" * 100_000, "\0"]
)
def test_a_damaged_cache_is_as_good_as_none(
    saved: tuple[Path, Saver], own_cache: Path, content: str
) -> None:
    true = digests(saved[0])
    for path in entries(own_cache):
        path.write_text(content)
    assert digests(saved[0]) == true
    forge(own_cache, FORGED)
    assert set(digests(saved[0]).values()) == {FORGED}, "it was written anew"


@pytest.mark.parametrize("facts", [[], ["x", ""], [3, ""], ["f" * 64], "f" * 64, None])
def test_facts_that_are_no_digest_are_not_taken(
    saved: tuple[Path, Saver], own_cache: Path, facts: object
) -> None:
    true = digests(saved[0])
    for path in entries(own_cache):
        content = json.loads(path.read_text())
        content["facts"]["a"] = facts
        path.write_text(json.dumps(content))
    assert digests(saved[0]) == true


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    saved: tuple[Path, Saver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "a file"))
    assert digests(saved[0])["b"] == tensor_digest(torch.ones(2))


def test_the_cache_is_written_whole_or_not_at_all(
    saved: tuple[Path, Saver], own_cache: Path
) -> None:
    digests(saved[0])
    assert [path.suffix for path in own_cache.iterdir()] == [".json"]


def test_two_sources_of_one_file_keep_what_both_found(
    saved: tuple[Path, Saver], own_cache: Path
) -> None:
    one, other = open_source(saved[0]), open_source(saved[0])
    one.digest("a"), other.digest("b")
    del one, other
    (path,) = entries(own_cache)
    assert set(json.loads(path.read_text())["facts"]) == {"a", "b"}


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_directory() == tmp_path / "cache" / "digests"
    monkeypatch.delenv("FUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "fusion" / "digests"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "fusion" / "digests"


def test_file_digests_are_sha256_of_every_file(saved: tuple[Path, Saver], own_cache: Path) -> None:
    path = saved[0]
    true = {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert open_source(path).file_digests() == true
    forge(own_cache, FORGED)
    assert open_source(path).file_digests() == {str(path): FORGED}
    assert open_source(path).file_digests(fresh=True) == true
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        file_source = OneTensor(torch.ones(1))
        file_source.files = (path,)
        file_source.file_digests()


def test_a_blob_of_the_hub_is_known_by_its_name(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / FORGED).write_bytes(b"x")
    (blobs / "small").write_bytes(b"x")
    for name, blob in (("model.safetensors", FORGED), ("config.json", "small")):
        (snapshot / name).symlink_to(blobs / blob)
    true = hashlib.sha256(b"x").hexdigest()
    assert file_digest(snapshot / "model.safetensors") == FORGED
    assert file_digest(snapshot / "model.safetensors", fresh=True) == true
    assert file_digest(snapshot / "config.json") == true


class OneTensor(Source):
    """A source that counts how often it is read."""

    def __init__(self, tensor: Tensor, *files: Path) -> None:
        self.location, self.files, self.tensor, self.reads = "here", files, tensor, 0

    def tensors(self) -> dict[str, TensorInfo]:
        return {"a": TensorInfo(tuple(self.tensor.shape), self.tensor.dtype)}

    def read(self, name: str) -> Tensor:
        self.reads += 1
        return self.tensor


def test_a_source_without_a_scope_keeps_its_digests_to_itself(
    tmp_path: Path, own_cache: Path
) -> None:
    path = tmp_path / "x"
    path.touch()
    source = OneTensor(torch.tensor([1.0, float("nan")]), path)
    settle()
    assert source.digest("a") == source.digest("a") == tensor_digest(source.tensor)
    assert source.nonfinite("a") == "1 NaN, the first at [1]"
    assert source.reads == 1
    source.digest("a", fresh=True)
    assert source.reads == 2
    assert entries(own_cache) == []
    nowhere = OneTensor(torch.ones(1))
    assert nowhere.digest("a") == nowhere.digest("a")
    assert nowhere.reads == 2
    with pytest.raises(SourceError, match="here: no tensor b; known: a"):
        source.digest("b")


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2],
)
def test_what_is_no_number_is_counted_and_placed(dtype: torch.dtype) -> None:
    values = torch.zeros(3, 4)
    assert nonfinite(values.to(dtype)) is None
    values[1, 2] = float("inf")
    assert nonfinite(values.to(dtype)) == "1 inf, the first at [1, 2]"
    values[2, 0] = float("nan")
    values[2, 1] = float("-inf")
    assert nonfinite(values.to(dtype)) == "1 NaN and 2 inf, the first at [1, 2]"


def test_what_is_no_number_is_found_in_every_kind_of_tensor() -> None:
    assert nonfinite(torch.tensor([1, 2])) is None
    assert nonfinite(torch.empty(0)) is None
    assert nonfinite(torch.full((2, 2), 65504.0, dtype=torch.float16)) is None
    assert nonfinite(torch.tensor(float("nan"))) == "1 NaN, the first at []"
    strided = torch.zeros(4, 4).t()[::2]
    strided[1, 3] = float("nan")
    assert nonfinite(strided) == "1 NaN, the first at [1, 3]"
    complex_values = torch.zeros(2, 2, dtype=torch.complex64)
    complex_values[1, 0] = complex(0, float("inf"))
    assert nonfinite(complex_values) == "1 inf, the first at [1, 0]"
    long = torch.zeros(5_000_000)
    long[4_999_999] = float("nan")
    assert nonfinite(long) == "1 NaN, the first at [4999999]"


def test_what_is_no_number_is_remembered_with_the_digest(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.tensor([float("nan")]), "b": torch.ones(1)}, path)
    settle()
    source = open_source(path)
    assert source.nonfinite("a") == "1 NaN, the first at [0]"
    assert source.nonfinite("b") is None
    del source
    forge(own_cache, FORGED)
    again = open_source(path)
    assert again.digest("a") == FORGED
    assert again.nonfinite("a") == "1 NaN, the first at [0]"
    assert again.nonfinite("b") is None


@pytest.mark.parametrize("how", ["replaced", "written over"])
def test_a_file_that_changed_within_one_tick_of_the_clock_is_not_given_its_old_digest(
    tmp_path: Path, how: str
) -> None:
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    for _ in range(5):
        save_file({"a": torch.ones(2)}, other)
        new = other.read_bytes()
        save_file({"a": torch.zeros(2)}, path)
        source = open_source(path)
        source.tensors()
        if how == "replaced":
            os.replace(other, path)
        else:
            path.write_bytes(new)
        with contextlib.suppress(SourceError):
            source.digest("a")
        settle()
        del source  # saves what it knows
        gc.collect()
        assert digests(path)["a"] == tensor_digest(torch.ones(2))
