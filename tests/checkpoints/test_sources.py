"""Checkpoints are read as named tensors, or refused by file and reason; no code of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor

from fusion.checkpoints.directory import locate, open_source
from fusion.checkpoints.source import TensorInfo, tensor_digest
from fusion.errors import SourceError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class CreatesAFile:
    """Unpickling it runs a shell command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_safetensors_and_torch_give_the_same_headers_and_tensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    torch.save(STATE, tmp_path / "m.pt")
    torch.save(STATE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("m.safetensors", "m.pt", "old.bin"):
        source = open_source(tmp_path / name)
        assert dict(source.tensors()) == {
            "a.weight": TensorInfo((2, 3), torch.float32),
            "b": TensorInfo((4,), torch.bfloat16),
        }
        for key, value in STATE.items():
            assert torch.equal(source.read(key), value)


def test_a_directory_of_shards_is_one_source(tmp_path: Path) -> None:
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "one.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a.weight": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    source = open_source(tmp_path)
    assert set(source.tensors()) == set(STATE)
    assert torch.equal(source.read("b"), STATE["b"])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"index\.json: shard one\.safetensors is missing"):
        open_source(tmp_path)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors"])
def test_a_shard_outside_the_directory_is_refused(tmp_path: Path, shard: str) -> None:
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    save_file(STATE, tmp_path / "x.safetensors")
    save_file(STATE, inside / "sub" / "x.safetensors")
    index = {"weight_map": {"a": shard}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="is outside the directory"):
        open_source(inside)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '"x"']
)
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SourceError, match="not a shard index"):
        open_source(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="a is also in"):
        open_source(tmp_path).tensors()


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.bin"])
@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    state = {"a": torch.arange(1000.0)}
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "m.pt")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SourceError, match=f"{name}: not a whole|{name}: refused"):
        open_source(path).read("a")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "pytorch_model.bin"
    torch.save(
        {"a": torch.ones(1), "b": CreatesAFile(trace)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(SourceError, match=r"refused: it pickles posix\.system"):
        open_source(tmp_path).tensors()
    assert not trace.exists()


def test_a_bare_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(CreatesAFile(trace), protocol=2))
    with pytest.raises(SourceError, match=r"m\.pt"):
        open_source(path).tensors()
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the file would have run, had it been unpickled"


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(SourceError, match=r"m\.pt: not a whole torch file"):
        open_source(tmp_path / "m.pt").tensors()


def test_a_file_without_named_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(SourceError, match="holds a list; a state dict was expected"):
        open_source(tmp_path / "list.pt").tensors()
    with pytest.raises(SourceError, match="holds no named tensors"):
        open_source(tmp_path / "empty.pt").tensors()


def test_a_missing_place_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    with pytest.raises(SourceError, match='no such file or directory; nearest: "bert"'):
        locate(str(tmp_path / "bret"))


def test_the_output_directory_of_a_run_means_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert locate(str(tmp_path)) == tmp_path / "model"
    save_file({"a": torch.ones(1)}, tmp_path / "model" / "model.safetensors")
    assert list(open_source(tmp_path).tensors()) == ["a"]
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert locate(str(tmp_path)) == tmp_path


def test_a_directory_without_weights_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(SourceError, match=r"holds no model\.safetensors .*; found: tf_model\.h5"):
        open_source(tmp_path)


def test_an_unknown_format_and_an_unknown_package_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(SourceError, match=r"unknown format \(HDF5.*\); known: \.safetensors"):
        open_source(tmp_path / "m.h5")
    with pytest.raises(SourceError, match="no installed package no_such_package"):
        locate("package:no_such_package/model")


def test_a_package_path_stays_a_package_path_in_messages() -> None:
    assert locate("package:fusion/cli.py").name == "cli.py"
    with pytest.raises(SourceError, match="the package has no nothing"):
        locate("package:fusion/nothing")


def test_digests_tell_dtype_shape_and_bytes_apart() -> None:
    same = tensor_digest(torch.zeros(2, 3))
    others = [
        torch.zeros(3, 2),
        torch.zeros(6),
        torch.zeros(2, 3, dtype=torch.int32),
        torch.tensor([[0.0, 0, 0], [0, 0, 1e-40]]),
        torch.zeros(0),
    ]
    assert len({same, *map(tensor_digest, others)}) == len(others) + 1
    strided = torch.arange(6.0).reshape(2, 3).T
    assert tensor_digest(strided) == tensor_digest(strided.contiguous())


def test_a_header_digest_needs_no_weights_and_tells_files_apart(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    one = open_source(tmp_path / "m.safetensors").header_digest()
    assert one == open_source(tmp_path / "m.safetensors").header_digest()
    save_file({"b": STATE["b"]}, tmp_path / "m.safetensors")
    assert one != open_source(tmp_path / "m.safetensors").header_digest()


FORMATS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], object]]] = {
    "zip": ("m.pt", torch.save),
    "npz": (
        "m.npz",
        lambda state, path: np.savez(path, **{n: t.numpy() for n, t in state.items()}),
    ),
    "distributed": ("saved/__0_0.distcp", lambda state, path: save_distributed(state, path.parent)),
    "fairseq": ("m.pt", lambda state, path: torch.save({"model": state, "args": None}, path)),
}


def save_distributed(state: dict[str, Tensor], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is there
        dcp.save(state, checkpoint_id=folder)


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_byte_of_a_tensor_is_found_by_the_file_s_own_checksum(
    tmp_path: Path, format: str
) -> None:
    name, save = FORMATS[format]
    path = tmp_path / name
    state = {"a": torch.arange(5000.0), "b": torch.arange(5000.0) + 9000}
    save(state, path)
    opened = path.parent if format == "distributed" else path
    source = open_source(opened, "fairseq" if format == "fairseq" else None)
    assert source.digest("b", fresh=True) == tensor_digest(state["b"])
    whole = path.read_bytes()
    numbers = state["b"].numpy().tobytes()
    assert whole.count(numbers) == 1
    path.write_bytes(whole.replace(numbers, numbers[:-2] + b"\0" + numbers[-1:]))
    source = open_source(opened, "fairseq" if format == "fairseq" else None)
    with pytest.raises(SourceError, match=f"{path.name}.*its checksum differs"):
        source.digest("b")
    if format != "fairseq":  # of which all is looked at
        assert source.digest("a") == tensor_digest(state["a"])


@pytest.mark.parametrize("shape", [[0, 1 << 63], [0, 1 << 40, 1 << 40], [0] * 65])
@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_an_empty_tensor_of_an_absurd_shape_is_one_clear_error(
    tmp_path: Path, format: str, shape: list[int]
) -> None:
    path = tmp_path / f"m.{format}"
    if format == "safetensors":
        told = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
        header = json.dumps(told).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    else:
        told = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        text = repr(told).encode()
        with zipfile.ZipFile(path, "w") as archive:
            length = len(text).to_bytes(2, "little")
            archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + length + text)
    with pytest.raises(SourceError, match=rf"m\.{format}: .*(no tensor has|not a whole)"):
        open_source(path).tensors()


def test_a_name_that_no_file_can_have_is_one_clear_error() -> None:
    with pytest.raises(SourceError, match=r"^x{80}: File name too long"):
        open_source("x" * 5000)
