"""Numpy archives give their numbers, by memory map where they are not compressed; no objects."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.npz import open_npz
from fusion.checkpoints.source import TensorInfo
from fusion.errors import SourceError

KINDS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_of_every_kind_and_order_come_back(tmp_path: Path, save: Any, order: str) -> None:
    arrays = {kind: np.arange(6).reshape(2, 3).astype(order + kind) for kind in KINDS}
    arrays |= {
        "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        "scalar": np.array(2.5, order + "f4"),
        "none": np.zeros((0, 3), order + "f4"),
        "with/slash.dots:colon": np.ones(2, order + "f4"),
    }
    save(tmp_path / "m.npz", **arrays)
    source = open_source(tmp_path / "m.npz")
    assert set(source.tensors()) == set(arrays)
    for name, array in arrays.items():
        native = np.array(array.astype(array.dtype.newbyteorder("=")), order="C")
        expected = torch.from_numpy(native)
        assert source.tensors()[name] == TensorInfo(tuple(array.shape), expected.dtype)
        assert torch.equal(source.read(name), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}], dtype=object), r"holds \|O, not numbers"),
        (np.array(["text"]), "holds <U4, not numbers"),
        (np.zeros(2, dtype=[("x", "f4")]), r"holds \[\('x', '<f4'\)\], not numbers"),
        (np.zeros(2, dtype=np.longdouble), "holds <f16, not numbers"),
    ],
)
def test_what_is_no_number_is_named_and_never_unpickled(
    tmp_path: Path, array: Any, message: str
) -> None:
    np.savez(tmp_path / "m.npz", good=np.ones(1), bad=array)
    with pytest.raises(SourceError, match=rf"m\.npz: not a whole npz file: bad\.npy {message}"):
        open_npz(tmp_path / "m.npz").tensors()


def raw(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"), "fewer or more numbers"),
        (raw("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", b"1234"), "the shape"),
        (raw("{'descr': '<f4', 'fortran_order': False, 'shape': (1<<60,), }"), "not a whole npz"),
        (
            raw("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,), }"),
            "fewer or more numbers",
        ),
        (raw("{'descr': '<f4'}"), "shape"),
        (raw("__import__('os').system('x')"), "not a whole npz"),
        (raw("(" * 5000), "not a whole npz"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "a header of 65535 bytes"),
        (b"\x93NUMPY\x09\x00\x02\x00{}", "is no array"),
        (b"text", "is no array"),
        (b"", "is no array"),
    ],
)
def test_an_array_that_lies_is_one_clear_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(SourceError, match=rf"m\.npz: .*{message}"):
        open_npz(tmp_path / "m.npz").tensors()


def test_a_name_twice_and_an_empty_archive_are_refused(tmp_path: Path) -> None:
    one = io.BytesIO()
    np.save(one, np.ones(2))
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "m.npz", "w") as archive,
    ):
        archive.writestr("a.npy", one.getvalue())
        archive.writestr("a.npy", one.getvalue())
    with pytest.raises(SourceError, match=r"a\.npy is no array, or is there twice"):
        open_npz(tmp_path / "m.npz").tensors()
    np.savez(tmp_path / "n.npz")
    with pytest.raises(SourceError, match="holds no named tensors"):
        open_npz(tmp_path / "n.npz").tensors()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_read_or_is_one_error(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "m.npz"
    save(path, a=np.arange(50.0), b=np.ones((2, 3)))
    whole = path.read_bytes()

    def use() -> None:
        source = open_source(path)
        for name in source.tensors():
            source.read(name)

    for kept in range(0, len(whole), 11):
        path.write_bytes(whole[:kept])
        with pytest.raises(SourceError, match=r"m\.npz: "):
            use()
    refused = 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            use()
        except SourceError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused
