"""Safetensors files: one, or shards listed in an index."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusion.checkpoints.source import Source, TensorInfo
from fusion.errors import SourceError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsSource(Source):
    """Reads headers on opening; tensors are memory-mapped and read one at a time."""

    def __init__(self, location: str, files: tuple[Path, ...]) -> None:
        self.location = location
        self.files = files

    @cached_property
    def _open(self) -> dict[str, tuple[Any, Path]]:
        where: dict[str, tuple[Any, Path]] = {}
        for path in self.files:
            try:
                handle = safe_open(path, framework="pt", device="cpu")
                names: list[str] = list(handle.keys())  # type: ignore[no-untyped-call]
            except FileNotFoundError:
                raise SourceError(f"{path}: no such file") from None
            except (SafetensorError, OSError, ValueError) as error:
                raise SourceError(f"{path}: not a whole safetensors file: {error}") from None
            for name in names:
                if name in where:
                    raise SourceError(f"{path}: {name} is also in {where[name][1].name}")
                where[name] = (handle, path)
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
        return infos

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str) -> Tensor:
        handle, path = self._open[name]
        try:
            tensor: Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path}: {name}: {error}") from None
        return tensor


def open_safetensors(path: Path, location: str | None = None) -> Source:
    """A single .safetensors file."""
    return SafetensorsSource(location or str(path), (path,))
