"""Safetensors files: one, or shards listed in an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusion.checkpoints.shards import Shards
from fusion.checkpoints.source import Source, TensorInfo, checked_shapes
from fusion.errors import SourceError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DAMAGE = (SafetensorError, OSError, ValueError, RuntimeError, RecursionError, MemoryError)


class SafetensorsSource(Source):
    """Reads headers on first use; tensors are memory-mapped and read one at a time.

    The format's own library checks the header: sizes against shapes, no gaps, overlaps or offsets
    outside of the file. That a name is there once is checked here.
    """

    def __init__(
        self, location: str, files: tuple[Path, ...], shards: Shards | None = None
    ) -> None:
        self.location = location
        self.files = files
        self.digest_scope = "safetensors/1"
        self._shards = shards

    @cached_property
    def _open(self) -> dict[str, tuple[Any, Path]]:
        where: dict[str, tuple[Any, Path]] = {}
        for path in self.files:
            self.opening(path)
            try:
                handle = safe_open(path, framework="pt", device="cpu")
                _check_names(path)
                names: list[str] = list(handle.keys())  # type: ignore[no-untyped-call]
            except _DAMAGE as error:
                raise SourceError(f"{path}: not a whole safetensors file: {error}") from None
            for name in names:
                if name in where:
                    raise SourceError(f"{path}: {name} is also in {where[name][1].name}")
                where[name] = (handle, path)
        if self._shards is not None:
            self._shards.check({name: path for name, (_, path) in where.items()})
        return where

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        infos = {}
        for name, (handle, path) in self._open.items():
            part = handle.get_slice(name)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise SourceError(f"{path}: {name}: dtype {part.get_dtype()} is not supported")
            infos[name] = TensorInfo(tuple(part.get_shape()), dtype)
        return checked_shapes(self.location, infos)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def files_of(self, name: str) -> tuple[Path, ...]:
        return (self._open[name][1],)

    def read(self, name: str) -> Tensor:
        handle, path = self._open[name]
        try:
            tensor: Tensor = handle.get_tensor(name)
        except _DAMAGE as error:
            raise SourceError(f"{path}: {name}: {error}") from None
        return tensor


def _check_names(path: Path) -> None:
    """A name twice in the JSON would silently mean the second one."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} is there twice")
        return found

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        json.loads(file.read(size), object_pairs_hook=once)


def open_safetensors(path: Path, location: str | None = None) -> Source:
    """A single .safetensors file."""
    return SafetensorsSource(location or str(path), (path,))
