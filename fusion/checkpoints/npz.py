"""Plain numpy archives (`.npz`): one array per name, objects never unpickled.

What an archive's names mean is another module's matter (Marian's, say).
"""

from __future__ import annotations

import ast
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fusion.checkpoints.source import Source, TensorInfo, checked_shapes
from fusion.checkpoints.stored import MappedFile
from fusion.checkpoints.zip_records import LOCAL_HEADER, ZIP_DAMAGE, crc32, record_start
from fusion.errors import SourceError

_DTYPES = {
    **{"f2": torch.float16, "f4": torch.float32, "f8": torch.float64},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64},
    **{"u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64},
    **{"b1": torch.bool, "c8": torch.complex64, "c16": torch.complex128},
}
_MAX_HEADER = 10_000  # as numpy's own limit
_MAX_RATIO = 100  # a compressed array of weights shrinks by far less
_MAX_FREE = 64 << 20  # below this many bytes any ratio will do
_DAMAGE = (*ZIP_DAMAGE, SyntaxError, MemoryError, KeyError, TypeError)


@dataclass(frozen=True)
class _Array:
    record: zipfile.ZipInfo
    info: TensorInfo
    header: int  # bytes before the numbers
    big_endian: bool
    fortran: bool


class NpzSource(Source):
    """Headers on first use; uncompressed arrays are memory-mapped, compressed ones inflated.

    Raises:
        SourceError: an array of objects, text or records; one that is damaged, or that inflates
            to more than any weights would.
    """

    def __init__(self, location: str, files: tuple[Path, ...]) -> None:
        self.location = location
        self.files = files
        self.digest_scope = "npz/1"
        (self._path,) = files
        self._mapped = MappedFile(self._path)

    @cached_property
    def _arrays(self) -> dict[str, _Array]:
        self.opening(self._path)
        found: dict[str, _Array] = {}
        try:
            with zipfile.ZipFile(self._path) as archive:
                for record in archive.infolist():
                    name = record.filename.removesuffix(".npy")
                    if name in found or not record.filename.endswith(".npy"):
                        raise ValueError(f"{record.filename[:80]} is no array, or is there twice")
                    found[name] = _read_header(archive, record)
        except _DAMAGE as error:
            raise self._damaged(error) from None
        if not found:
            raise SourceError(f"{self.location}: holds no named tensors")
        return found

    def _damaged(self, error: Exception) -> SourceError:
        return SourceError(f"{self._path}: not a whole npz file: {error or type(error).__name__}")

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        infos = {name: array.info for name, array in self._arrays.items()}
        return checked_shapes(self.location, infos)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def check_stored(self, name: str) -> None:
        record = self._arrays[name].record
        if record.compress_type != zipfile.ZIP_STORED:
            return  # inflating compares
        try:
            found = crc32(self._mapped.block(self._start(record), record.file_size, torch.uint8))
        except _DAMAGE as error:
            raise self._damaged(error) from None
        if found != record.CRC:
            raise self._damaged(ValueError(f"{record.filename}: its checksum differs"))

    def read(self, name: str) -> Tensor:
        array = self._arrays[name]
        try:
            flat = self._flat(array)
        except _DAMAGE as error:
            raise self._damaged(error) from None
        if array.fortran:
            shape = array.info.shape
            return flat.reshape(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
        return flat.reshape(array.info.shape)

    def _flat(self, array: _Array) -> Tensor:
        dtype, record = array.info.dtype, array.record
        size = math.prod(array.info.shape) * dtype.itemsize
        if record.compress_type == zipfile.ZIP_STORED and not array.big_endian:
            return self._mapped.block(self._start(record) + array.header, size, dtype)
        with zipfile.ZipFile(self._path) as archive, archive.open(record) as file:
            file.read(array.header)
            data = bytearray(file.read(size))
        if not size:
            return torch.empty(0, dtype=dtype)
        if array.big_endian:
            wide = dtype.itemsize // (2 if dtype.is_complex else 1)
            data = bytearray(b"".join(data[i : i + wide][::-1] for i in range(0, size, wide)))
        return torch.frombuffer(data, dtype=dtype)

    def _start(self, record: zipfile.ZipInfo) -> int:
        with self._path.open("rb") as file:
            file.seek(record.header_offset)
            return record_start(record, file.read(LOCAL_HEADER))


def _read_header(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> _Array:
    """A `.npy` header: magic, version, length, then a dict literal (NEP 1)."""
    name = record.filename
    if record.file_size > max(_MAX_FREE, _MAX_RATIO * record.compress_size):
        raise ValueError(f"{name} would inflate from {record.compress_size} to {record.file_size}")
    with archive.open(record) as file:
        start = file.read(12)
        if start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
            raise ValueError(f"{name} is no array")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(start[8 : 8 + width], "little")
        if length > _MAX_HEADER:
            raise ValueError(f"{name} has a header of {length} bytes")
        text = (start[8 + width :] + file.read(length - (4 - width)))[:length]
    told = ast.literal_eval(text.decode("latin1").strip())
    descr, shape = told["descr"], told["shape"]
    kind = re.fullmatch(r"([<>|=])([fiubc]\d+)", descr) if isinstance(descr, str) else None
    dtype = _DTYPES.get(kind[2]) if kind else None
    if kind is None or dtype is None:
        raise ValueError(f"{name} holds {str(descr)[:40]}, not numbers that torch has")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{name} has the shape {str(shape)[:40]}")
    header = 8 + width + length
    if header + math.prod(shape) * dtype.itemsize != record.file_size:
        raise ValueError(f"{name} holds fewer or more numbers than its shape {list(shape)} says")
    big = kind[1] == ">" and dtype.itemsize > 1
    info = TensorInfo(shape, dtype)
    return _Array(record, info, header, big, bool(told["fortran_order"]) and len(shape) > 1)


def open_npz(path: Path, location: str | None = None) -> Source:
    """A single .npz file."""
    return NpzSource(location or str(path), (path,))
