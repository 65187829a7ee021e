"""Torch pickles: zip files by memory map, the older single-stream format whole."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoints.source import Source, TensorInfo
from fusion.errors import SourceError


class TorchSource(Source):
    """A state dict, opened with `weights_only=True`: no code of the file is run."""

    def __init__(self, location: str, files: tuple[Path, ...]) -> None:
        self.location = location
        self.files = files

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for path in self.files:
            for name, value in _load(path).items():
                if isinstance(value, Tensor):
                    found[str(name)] = value
        if not found:
            raise SourceError(f"{self.location}: holds no named tensors")
        return found

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {n: TensorInfo(tuple(t.shape), t.dtype) for n, t in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _load(path: Path) -> dict[Any, Any]:
    try:
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: refused, since it pickles more than tensors: {str(error).splitlines()[0]}"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: not a whole torch file: {error}") from None
    if not isinstance(state, dict):
        raise SourceError(f"{path}: holds a {type(state).__name__}; a state dict was expected")
    return state


def open_torch(path: Path, location: str | None = None) -> Source:
    """A single .pt, .pth or .bin file."""
    return TorchSource(location or str(path), (path,))
