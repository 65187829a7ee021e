"""Tensors that lie in a file: where, and how to get one without a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoints.standins import PickleError

_SMALL = 1 << 20  # an expanded tensor may be larger than its storage, up to this many bytes
_MAX_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Storage:
    """A torch storage as a pickle names it.

    Attributes:
        key: its name in the file
        dtype: None for an untyped storage
        first: bytes from the storage's start (old files have views of storages)
        size: in bytes
    """

    key: str
    dtype: torch.dtype | None
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A strided view of a storage: a tensor that has not been read. Offset in elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Bytes from the storage's start to the end of the last element."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        last = self.offset + sum((size - 1) * step for size, step in steps)
        return (last + 1) * self.dtype.itemsize


def view(
    storage: Storage, dtype: torch.dtype, offset: object, shape: object, stride: object
) -> Stored:
    """A checked view of a storage.

    Raises:
        PickleError: it reaches outside of the storage, or is far larger than it.
    """
    sizes, steps = _counts(shape), _counts(stride)
    (start,) = _counts((offset,))
    if len(sizes) != len(steps) or len(sizes) > _MAX_DIMENSIONS:
        raise PickleError(f"a tensor of {len(sizes)} sizes and {len(steps)} strides")
    stored = Stored(storage, dtype, start, sizes, steps)
    if stored.extent > storage.size:
        raise PickleError(
            f"a tensor of shape {list(sizes)}, strides {list(steps)} and offset {start} reaches "
            f"outside of its storage of {storage.size} bytes"
        )
    if math.prod(sizes) * dtype.itemsize > max(storage.size, _SMALL):
        raise PickleError(
            f"a tensor of shape {list(sizes)} claims more than its storage of {storage.size} bytes"
        )
    return stored


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list):
        raise PickleError("sizes that are no tuple")
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise PickleError("a size, stride or offset that is no number from 0 on")
    return tuple(values)


class MappedFile:
    """A file's bytes as tensors: by memory map where they are aligned, else by reading them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def size(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def _map(self) -> Any:
        # private: writing to a tensor changes a copy of the page, never the file
        return torch.UntypedStorage.from_file(str(self.path), False, self.size)

    def block(self, start: int, size: int, dtype: torch.dtype) -> Tensor:
        """`size` bytes from `start` on, as a flat tensor.

        Raises:
            OSError, RuntimeError: they cannot be read.
        """
        if size == 0:
            return torch.empty(0, dtype=dtype)
        if start < 0 or start + size > self.size:
            raise OSError(f"bytes {start} to {start + size} of {self.size}")
        count = size // dtype.itemsize
        if start % dtype.itemsize:
            return torch.frombuffer(self._read(start, size), dtype=dtype, count=count)
        part: torch.UntypedStorage = self._map[start : start + size]
        return torch.empty(0, dtype=dtype).set_(part, 0, (count,), (1,))

    def _read(self, start: int, size: int) -> bytearray:
        with self.path.open("rb") as file:
            file.seek(start)
            read = bytearray(file.read(size))
        if len(read) != size:
            raise OSError("the file has become shorter")
        return read

    def tensor(self, stored: Stored, start: int) -> Tensor:
        """A stored tensor, whose storage starts at byte `start` of the file."""
        if 0 in stored.shape:
            return torch.empty(stored.shape, dtype=stored.dtype)
        aligned = start % stored.dtype.itemsize == 0
        if aligned:
            flat = self.block(start, stored.storage.size, stored.dtype)
            return flat.as_strided(stored.shape, stored.stride, stored.offset)
        first = stored.offset * stored.dtype.itemsize
        flat = self.block(start + first, stored.extent - first, stored.dtype)
        return flat.as_strided(stored.shape, stored.stride)
