"""Folders of torch.distributed.checkpoint, written by torch itself, by one rank and by two."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import TensorInfo, tensor_digest
from fusion.errors import SourceError

STATE: dict[str, Any] = {
    "model": {
        "a": torch.arange(12.0).reshape(3, 4),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3),
    },
    "optimizer": {"steps": [torch.tensor(1), torch.tensor(2)], "lr": 0.1},
    "epoch": 3,
}

TWO_RANKS = """
import sys
import torch, torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
store = dist.FileStore(folder + "/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).reshape(5, 7)
dcp.save(
    {
        "rows": distribute_tensor(whole, mesh, [Shard(0)]),
        "columns": distribute_tensor(whole, mesh, [Shard(1)]),
        "same": distribute_tensor(whole, mesh, [Replicate()]),
    },
    checkpoint_id=folder + "/saved",
)
dist.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(STATE, checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def change(folder: Path, edit: Callable[[Metadata], None]) -> None:
    """Edit the folder's own metadata, which this test wrote."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def test_a_folder_of_one_rank_gives_every_tensor_by_its_name(folder: Path) -> None:
    source = open_source(folder)
    expected = {f"model.{name}": tensor for name, tensor in STATE["model"].items()}
    expected |= {f"optimizer.steps.{n}": t for n, t in enumerate(STATE["optimizer"]["steps"])}
    assert set(source.tensors()) == set(expected)
    for name, tensor in expected.items():
        assert source.tensors()[name] == TensorInfo(tuple(tensor.shape), tensor.dtype)
        assert torch.equal(source.read(name), tensor)
        assert source.digest(name) == tensor_digest(tensor)
    assert set(source.file_digests()) == {str(folder / ".metadata"), str(folder / "__0_0.distcp")}


def test_what_two_ranks_wrote_is_put_together(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TWO_RANKS, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, error = rank.communicate(timeout=300)
        assert rank.returncode == 0, error[-2000:]
    source = open_source(tmp_path / "saved")
    whole = torch.arange(35.0).reshape(5, 7)
    for name in ("rows", "columns", "same"):
        assert torch.equal(source.read(name), whole)
        assert source.digest(name) == tensor_digest(whole)
    assert len(source.files_of("rows")) == 3
    assert len(source.files) == 3


def test_a_tensor_may_be_changed_without_changing_the_folder(folder: Path) -> None:
    source = open_source(folder)
    source.read("model.a").add_(5)
    assert torch.equal(source.read("model.a"), STATE["model"]["a"])


def entry(metadata: Metadata, name: str = "model.a") -> TensorStorageMetadata:
    found = metadata.state_dict_metadata[name]
    assert isinstance(found, TensorStorageMetadata)
    return found


def place(metadata: Metadata, **changed: Any) -> None:
    index = next(i for i in metadata.storage_data if i.fqn == "model.a")
    metadata.storage_data[index] = replace(metadata.storage_data[index], **changed)


def chunks(metadata: Metadata, *boxes: tuple[list[int], list[int]]) -> None:
    index = next(i for i in metadata.storage_data if i.fqn == "model.a")
    where = metadata.storage_data[index]
    entry(metadata).chunks = [
        ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes
    ]
    for offsets, _ in boxes:
        metadata.storage_data[MetadataIndex("model.a", offsets)] = where


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: place(m, relative_path="../x.distcp"), "outside the directory"),
        (lambda m: place(m, relative_path="/etc/passwd"), "outside the directory"),
        (lambda m: place(m, relative_path="__9_0.distcp"), r"__9_0\.distcp is missing"),
        (lambda m: place(m, length=1 << 50), "is cut short"),
        (lambda m: place(m, offset=-5), "is cut short"),
        (lambda m: place(m, transform_descriptors=["zstd"]), "compressed or otherwise"),
        (lambda m: setattr(entry(m), "size", torch.Size([1 << 40, 1 << 20])), "do not cover"),
        (lambda m: chunks(m, ([0, 0], [3, 5])), "reaches outside of the shape"),
        (lambda m: chunks(m, ([0, 0], [2, 4]), ([1, 0], [1, 4])), "do not cover"),
        (lambda m: chunks(m, ([0, 0], [2, 4]), ([2, 0], [2, 4])), "reaches outside"),
        (lambda m: chunks(m, ([0], [3])), "reaches outside of the shape"),
        (lambda m: chunks(m), "do not cover"),
        (lambda m: chunks(m, ([0, 0], [1, 4]), ([1, 0], [2, 4])), "two chunks lie at byte"),
        (lambda m: m.storage_data.clear(), "is in no file"),
        (lambda m: m.state_dict_metadata.clear(), "holds no named tensors"),
        (lambda m: setattr(m, "state_dict_metadata", 3), "without state_dict_metadata"),
    ],
)
def test_metadata_that_lies_is_one_clear_error(
    folder: Path, edit: Callable[[Metadata], None], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(SourceError, match=message):
        open_source(folder).tensors()


def test_a_chunk_that_is_not_what_the_metadata_says_is_one_clear_error(folder: Path) -> None:
    def turned(metadata: Metadata) -> None:
        chunks(metadata, ([0, 0], [4, 3]))
        entry(metadata).size = torch.Size([4, 3])

    change(folder, turned)
    source = open_source(folder)
    with pytest.raises(SourceError, match="has another shape or dtype than"):
        source.read("model.a")


@pytest.mark.parametrize("kept", [0, 10, -1])
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_truncated_folder_is_one_clear_error(folder: Path, name: str, kept: int) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:kept])

    def read() -> None:
        source = open_source(folder)
        for key in source.tensors():
            source.read(key)

    with pytest.raises(SourceError, match=r"not a whole torch file"):
        read()
