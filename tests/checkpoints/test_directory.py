"""A source is found by path, package or hub id, and opened by what it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusion.checkpoints.directory import locate, open_source
from fusion.checkpoints.npz import NpzSource
from fusion.checkpoints.safetensors import SafetensorsSource, open_safetensors
from fusion.checkpoints.source import Source
from fusion.checkpoints.torch import TorchSource
from fusion.errors import SourceError
from fusion.registry import SOURCES, register_source

STATE = {"a": torch.arange(3.0)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "cache"))


def write(path: Path, format: str) -> type[Source]:
    if format == "safetensors":
        save_file(STATE, path)
        return SafetensorsSource
    if format == "npz":
        with path.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in STATE.items()})
        return NpzSource
    torch.save(STATE, path, _use_new_zipfile_serialization=format == "zip")
    return TorchSource


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".npz", ".model", ""])
@pytest.mark.parametrize("format", ["safetensors", "npz", "zip", "stream"])
def test_the_content_decides_whatever_the_name_says(
    tmp_path: Path, format: str, suffix: str
) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    kind = write(path, format)
    source = open_source(path)
    assert isinstance(source, kind)
    assert torch.equal(source.read("a"), STATE["a"])


@pytest.mark.parametrize(
    ("start", "hint"),
    [
        (b"\x93NUMPY", "one numpy array without a name"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"GGUF", "GGUF"),
        (b"version https://git-lfs", "a pointer of Git LFS"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"hello", r"unknown format; known: \.safetensors, \.npz, \.pt"),
    ],
)
def test_another_format_is_named_where_it_is_known(tmp_path: Path, start: bytes, hint: str) -> None:
    (tmp_path / "m.dat").write_bytes(start + bytes(20))
    with pytest.raises(SourceError, match=rf"m\.dat: unknown format.*{hint}|{hint}"):
        open_source(tmp_path / "m.dat")


def test_a_zip_of_something_else_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("word/document.xml", "x")
    with pytest.raises(SourceError, match=r"neither torch nor numpy; it holds word/document\.xml"):
        open_source(tmp_path / "m.zip")


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    for name in ("m.safetensors", "m.pt", "m.npz", "m"):
        (tmp_path / name).touch()
        with pytest.raises(SourceError, match=f"{name}: not a whole file: it is empty"):
            open_source(tmp_path / name)


def test_a_folder_prefers_safetensors_then_torch_then_shards_of_each(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "shard.bin")
    index = {"weight_map": {"a": "shard.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source = open_source(tmp_path)
    assert isinstance(source, TorchSource)
    assert source.files == (tmp_path / "shard.bin",)
    assert torch.equal(source.read("a"), STATE["a"])
    save_file(STATE, tmp_path / "model.safetensors")
    assert isinstance(open_source(tmp_path), SafetensorsSource)


def test_sharded_torch_is_checked_against_its_index_too(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "one.bin")
    torch.save({"b": torch.ones(1)}, tmp_path / "two.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.bin", "b": "two.bin"}}))
    assert set(open_source(tmp_path).tensors()) == {"a", "b"}
    index.write_text(json.dumps({"weight_map": {"a": "one.bin", "c": "two.bin"}}))
    with pytest.raises(SourceError, match=r"c is not in two\.bin.*two\.bin holds b"):
        open_source(tmp_path).tensors()


@pytest.fixture
def plugin() -> Any:
    """A format of a plug-in: its files hold the path of a safetensors file."""

    def open_pointer(path: Path, location: str) -> Source:
        return open_safetensors(Path(path.read_text()), location)

    open_pointer.suffixes = (".ptr",)  # type: ignore[attr-defined]
    register_source("pointer")(open_pointer)
    yield open_pointer
    SOURCES._loaded.pop("pointer"), SOURCES._origin.pop("pointer")


def test_a_plug_in_opens_its_own_suffixes_and_whatever_it_is_named_for(
    tmp_path: Path, plugin: Any
) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    for name in ("m.ptr", "m.pointer", "m.other"):
        (tmp_path / name).write_text(str(tmp_path / "m.safetensors"))
    for name in ("m.ptr", "m.pointer"):
        assert torch.equal(open_source(tmp_path / name).read("a"), STATE["a"])
    with pytest.raises(SourceError, match="unknown format"):
        open_source(tmp_path / "m.other")
    assert torch.equal(open_source(tmp_path / "m.other", "pointer").read("a"), STATE["a"])
    with pytest.raises(SourceError, match='no format "pointr"; nearest: "pointer"'):
        open_source(tmp_path / "m.other", "pointr")


def test_a_format_that_is_asked_for_is_the_one_that_is_used(tmp_path: Path) -> None:
    write(tmp_path / "m.pt", "zip")
    assert isinstance(open_source(tmp_path / "m.pt", "torch"), TorchSource)
    with pytest.raises(SourceError, match="not a whole safetensors file"):
        open_source(tmp_path / "m.pt", "safetensors").tensors()


COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A hub cache that holds two revisions of org/tiny."""
    folder = tmp_path / "home" / "hub" / "models--org--tiny"
    for commit, value in ((COMMIT, 1.0), (OTHER, 2.0)):
        snapshot = folder / "snapshots" / commit
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True)
        blob = folder / "blobs" / commit.ljust(64, "0")
        save_file({"a": torch.full((2,), value)}, blob)
        (snapshot / "model.safetensors").symlink_to(blob)
        (snapshot / "config.json").write_text("{}")
    for ref, commit in (("main", COMMIT), ("v2", OTHER), ("refs/pr/1", OTHER)):
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return tmp_path / "home"


ASK = """
import sys
from fusion.checkpoints.directory import open_source
from fusion.errors import SourceError
for name in sys.argv[1:]:
    try:
        source = open_source(name)
        (digest,) = source.file_digests().values()
        print(source.location, source.read("a")[0].item(), digest)
    except SourceError as error:
        print("error:", error)
"""


def ask(home: Path, *names: str) -> list[str]:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", ASK, *names]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_hub_ids_are_found_in_the_cache_by_branch_tag_and_commit(hub: Path) -> None:
    ids = ["org/tiny", "org/tiny@v2", f"org/tiny@{COMMIT}", f"org/tiny@{OTHER}"]
    ids.append("org/tiny@refs/pr/1")
    values = ["1.0", "2.0", "1.0", "2.0", "2.0"]
    for line, name, value in zip(ask(hub, *ids), ids, values, strict=True):
        commit = COMMIT if value == "1.0" else OTHER
        assert line == f"{name} {value} {commit.ljust(64, '0')}"


def test_what_the_cache_lacks_is_one_clear_error_offline(hub: Path) -> None:
    lines = ask(hub, "org/other", "org/tiny@v22", "org/tiny@../../x", "org/tiny@" + "0" * 40)
    assert all(line.startswith("error: org/") for line in lines)
    assert "HF_HUB_OFFLINE is set and the cache lacks it" in lines[0]
    assert 'HF_HUB_OFFLINE is set and the cache lacks it; nearest: "v2"' in lines[1]
    assert "is no revision" in lines[2]
    assert "HF_HUB_OFFLINE is set and the cache lacks it; known: " in lines[3]


def test_a_snapshot_without_weights_is_said_to_hold_none(hub: Path) -> None:
    snapshot = hub / "hub" / "models--org--tiny" / "snapshots" / OTHER
    (snapshot / "model.safetensors").unlink()
    (line,) = ask(hub, "org/tiny@v2")
    assert "holds no model.safetensors" in line or "the cache lacks it" in line


def test_a_folder_beside_us_comes_before_a_hub_id_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("org/tiny") == Path("org/tiny")
