"""Safetensors: headers are believed only as far as the file bears them out."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.safetensors import DTYPES, open_safetensors
from fusion.checkpoints.source import TensorInfo
from fusion.errors import SourceError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "cache"))


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def told(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, code: str) -> None:
    tensor = torch.tensor([0.0, 1.0, 2.0]).to(DTYPES[code])
    save_file({"a": tensor, "none": torch.empty(0, 3).to(DTYPES[code])}, tmp_path / "m.safetensors")
    source = open_safetensors(tmp_path / "m.safetensors")
    assert source.tensors()["a"] == TensorInfo((3,), DTYPES[code])
    assert source.tensors()["none"] == TensorInfo((0, 3), DTYPES[code])
    found = source.read("a")
    assert found.dtype == tensor.dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))
    assert source.read("none").shape == (0, 3)
    assert source.digest("none") != source.digest("a")


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": told("F32", [4], 0, 16)}, bytes(8)),
        ({"a": told("F32", [4], 8, 24)}, bytes(16)),
        ({"a": told("F32", [1], 0, 4)}, bytes(8)),
        ({"a": told("F32", [1], 4, 8)}, bytes(8)),
        ({"a": told("F32", [3], 0, 8)}, bytes(8)),
        ({"a": told("F32", [1], 4, 0)}, bytes(4)),
        ({"a": told("F32", [-1], 0, 4)}, bytes(4)),
        ({"a": told("F32", [1], -4, 0)}, bytes(4)),
        ({"a": told("F32", [2**40, 2**40], 0, 8)}, bytes(8)),
        ({"a": told("F32", [2], 0, 8), "b": told("F32", [2], 4, 12)}, bytes(12)),
        ({"a": told("X9", [1], 0, 4)}, bytes(4)),
        ({"a": {"dtype": "F32"}}, bytes(4)),
        ({"a": 3}, b""),
        ([], b""),
        (b"{", b""),
        (b"\xff\xfe", b""),
        (b"", b""),
    ],
)
def test_a_header_that_lies_is_one_clear_error(tmp_path: Path, header: Any, data: bytes) -> None:
    path = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(SourceError, match=r"m\.safetensors: not a whole safetensors file"):
        open_safetensors(path).tensors()


def test_a_name_twice_in_one_header_is_refused(tmp_path: Path) -> None:
    one, other = (json.dumps(told(dtype, [1], 0, 4)) for dtype in ("F32", "I32"))
    path = write(tmp_path / "m.safetensors", f'{{"a":{one},"a":{other}}}'.encode(), bytes(4))
    with pytest.raises(SourceError, match="a is there twice"):
        open_safetensors(path).tensors()


@pytest.mark.parametrize("size", [0, 1, 100, 1 << 40, (1 << 63) + 1, (1 << 64) - 1])
def test_a_header_of_a_length_that_the_file_has_not_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b'{"a":1}')
    with pytest.raises(SourceError, match="not a whole safetensors file"):
        open_safetensors(path).tensors()


def test_a_file_cut_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(10.0), "b": torch.ones(3)}, path)
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(SourceError, match=r"m\.safetensors: not a whole"):
            open_source(path).tensors()


def shards(folder: Path, weight_map: dict[str, str], **files: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


A, B = {"a": torch.ones(1)}, {"b": torch.zeros(2)}
X, Y = "x.safetensors", "y.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": X, "b": Y, "c": X}, r"c is not in x\.safetensors"),
        ({"a": X, "bb": Y}, r"bb is not in y\.safetensors.*; y\.safetensors holds b, which"),
        ({"a": Y, "b": Y, "x": X}, r"a is in x\.safetensors, not in y\.safetensors"),
    ],
)
def test_an_index_and_its_shards_must_tell_the_same(
    tmp_path: Path, weight_map: dict[str, str], message: str
) -> None:
    index = shards(tmp_path / "m", weight_map, x=A, y=B)
    with pytest.raises(SourceError, match=rf"index\.json: .*{message}"):
        open_source(index.parent).tensors()


def test_a_folder_of_shards_and_its_index_are_the_same_source(tmp_path: Path) -> None:
    index = shards(tmp_path / "m", {"a": X, "b": Y}, x=A, y=B)
    for place in (index, index.parent):
        source = open_source(place)
        assert set(source.tensors()) == {"a", "b"}
        assert torch.equal(source.read("b"), B["b"])
        assert source.files_of("b") == (index.parent / Y,)


def test_shards_may_be_links_out_of_the_folder_as_in_the_hub_s_cache(tmp_path: Path) -> None:
    index = shards(tmp_path / "m", {"a": X, "b": Y}, x=A, y=B)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in (X, Y):
        (index.parent / name).rename(blobs / name)
        (index.parent / name).symlink_to(blobs / name)
    assert torch.equal(open_source(index.parent).read("a"), A["a"])


MEASURE = """
import sys
from pathlib import Path
from fusion.checkpoints.directory import open_source
def used():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) >> 10
before = used()
source = open_source(sys.argv[1])
tensors = [source.read(name) for name in source.tensors()]
read = used()
total = sum(float(tensor.sum()) for tensor in tensors)
print(read - before, used() - read, total)
"""


@pytest.mark.parametrize("format", ["safetensors", "pt"])
def test_a_tensor_takes_no_memory_until_it_is_touched(tmp_path: Path, format: str) -> None:
    tensors = {str(n): torch.ones(6_250_000) for n in range(8)}
    path = tmp_path / f"m.{format}"
    save_file(tensors, path) if format == "safetensors" else torch.save(tensors, path)
    assert path.stat().st_size > 200_000_000
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    untouched, touched, total = run.stdout.split()
    assert float(total) == 50_000_000
    assert int(untouched) < 20, "MB after reading every tensor"
    assert int(touched) > 150, "MB more after touching them: the measure can tell"
