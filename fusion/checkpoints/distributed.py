"""Folders of `torch.distributed.checkpoint`: a `.metadata` pickle and `.distcp` files.

torch's own reader is not used: it unpickles `.metadata` with plain `pickle`, which runs whatever
the file says. Here the metadata's dataclasses become stand-ins, of which the fields are read.
Source: the dataclasses of `torch.distributed.checkpoint.metadata` and `.filesystem` (torch 2.13).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoints.pickles import pickle_machine
from fusion.checkpoints.source import Source, TensorInfo, checked_shapes
from fusion.checkpoints.standins import PickleError, StandIn
from fusion.checkpoints.stored import Stored
from fusion.checkpoints.torch_file import check_torch_file, open_torch_file, told_of
from fusion.checkpoints.torch_names import torch_names
from fusion.errors import SourceError

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint"
_MAX_METADATA = 1 << 30
_MAX_CHUNKS = 4096


@dataclass(frozen=True)
class _Chunk:
    """A box of a tensor and the bytes of a file that hold it (a `torch.save` of that box)."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    length: int


class DistributedSource(Source):
    """Tensors under the names that the folder gives them, put together from their chunks.

    A tensor in one chunk is memory-mapped; one in several is copied together. What is no tensor
    (numbers, optimizer settings) is passed over.
    """

    def __init__(self, location: str, files: tuple[Path, ...]) -> None:
        self.location = location
        self.digest_scope = "distcp/1"
        (self._metadata,) = files
        folder = self._metadata.parent
        self.files = (*files, *sorted(folder.glob("*.distcp")))

    @cached_property
    def _plan(self) -> dict[str, tuple[TensorInfo, tuple[_Chunk, ...]]]:
        path = self._metadata
        for file in self.files:
            self.opening(file)
        with told_of(path):
            if not 0 < path.stat().st_size < _MAX_METADATA:
                raise PickleError("it is empty or far too large")
            known = torch_names(lambda stored: stored)
            told = pickle_machine(path.read_bytes(), known).load()
            tensors = _field(told, "metadata.Metadata", "state_dict_metadata", dict)
            places = _places(_field(told, "metadata.Metadata", "storage_data", dict))
            plan = {}
            for name, entry in tensors.items():
                if not isinstance(name, str) or not isinstance(entry, StandIn):
                    raise PickleError("a tensor without a name or a description")
                if entry.stands_for.name == "TensorStorageMetadata":
                    plan[name] = self._tensor(name, entry, places)
            _check_places([chunk for _, chunks in plan.values() for chunk in chunks])
        if not plan:
            raise SourceError(f"{self.location}: holds no named tensors")
        return plan

    def _tensor(
        self, name: str, entry: StandIn, places: Mapping[tuple[str, tuple[int, ...]], StandIn]
    ) -> tuple[TensorInfo, tuple[_Chunk, ...]]:
        properties = _field(entry, "metadata.TensorStorageMetadata", "properties", StandIn)
        state = properties.state
        dtype = state[0] if isinstance(state, tuple) and state else None
        if not isinstance(dtype, torch.dtype):
            dtype = vars(properties).get("dtype")
        if not isinstance(dtype, torch.dtype):
            raise PickleError(f"{name} has no dtype")
        shape = _sizes(vars(entry).get("size"))
        chunks = []
        for told in _field(entry, "metadata.TensorStorageMetadata", "chunks", list):
            offsets = _sizes(_field(told, "metadata.ChunkStorageMetadata", "offsets", tuple))
            sizes = _sizes(vars(told).get("sizes"))
            place = places.get((name, offsets))
            if place is None:
                raise PickleError(f"{name}: the chunk at {list(offsets)} is in no file")
            chunk = _Chunk(offsets, sizes, *self._where(place))
            if math.prod(sizes) * dtype.itemsize > chunk.length:
                raise PickleError(f"{name}: a chunk of shape {list(sizes)} in {chunk.length} bytes")
            chunks.append(chunk)
        _check_tiling(name, shape, chunks)
        return TensorInfo(shape, dtype), tuple(chunks)

    def _where(self, place: StandIn) -> tuple[Path, int, int]:
        relative = _field(place, "filesystem._StorageInfo", "relative_path", str)
        start = _field(place, "filesystem._StorageInfo", "offset", int)
        length = _field(place, "filesystem._StorageInfo", "length", int)
        if vars(place).get("transform_descriptors"):
            raise PickleError(f"{relative[:80]} is compressed or otherwise transformed")
        if Path(relative).name != relative or "\\" in relative:
            raise PickleError(f"{relative[:80]!r} is outside the directory")
        path = self._metadata.parent / relative
        if path not in self.files:
            raise PickleError(f"{relative[:80]} is missing")
        if start < 0 or length <= 0 or start + length > path.stat().st_size:
            raise PickleError(f"{relative[:80]} is cut short")
        return path, start, length

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        infos = {name: info for name, (info, _) in self._plan.items()}
        return checked_shapes(self.location, infos)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def files_of(self, name: str) -> tuple[Path, ...]:
        return (self._metadata, *sorted({chunk.path for chunk in self._plan[name][1]}))

    def check_stored(self, name: str) -> None:
        for chunk in self._plan[name][1]:
            check_torch_file(chunk.path, chunk.start, chunk.length)

    def read(self, name: str) -> Tensor:
        info, chunks = self._plan[name]
        if len(chunks) == 1:
            return _read(name, info, chunks[0])
        with told_of(self._metadata):
            whole = torch.empty(info.shape, dtype=info.dtype)
        for chunk in chunks:
            part = whole
            for axis, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                part = part.narrow(axis, offset, size)
            part.copy_(_read(name, info, chunk))
        return whole


def _read(name: str, info: TensorInfo, chunk: _Chunk) -> Tensor:
    opened = open_torch_file(chunk.path, chunk.start, chunk.length)
    with told_of(chunk.path):
        stored = opened.load(lambda stored: stored)
        if not isinstance(stored, Stored):
            raise PickleError(f"{name} is no tensor")
        if stored.shape != chunk.sizes or stored.dtype != info.dtype:
            raise PickleError(f"{name} has another shape or dtype than {METADATA} says")
        return opened.tensor(stored)


def _field(value: Any, kind: str, name: str, wanted: type) -> Any:
    """A field of a dataclass that a stand-in stands for."""
    if not isinstance(value, StandIn) or str(value.stands_for) != f"{_MODULE}.{kind}":
        raise PickleError(f"no {kind} of torch.distributed.checkpoint")
    found = vars(value).get(name)
    if not isinstance(found, wanted):
        raise PickleError(f"{kind} without {name}")
    return found


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise PickleError("sizes or offsets that are no numbers")
    return value


def _places(storage: Mapping[Any, Any]) -> dict[tuple[str, tuple[int, ...]], StandIn]:
    """(name, offsets of the chunk) -> where its bytes are."""
    found = {}
    for index, place in storage.items():
        name = _field(index, "metadata.MetadataIndex", "fqn", str)
        offset = vars(index).get("offset")
        if offset is not None:
            found[name, _sizes(offset)] = place
    return found


def _check_tiling(name: str, shape: tuple[int, ...], chunks: list[_Chunk]) -> None:
    """Chunks must cover a tensor once: a gap would be memory that nothing wrote."""
    for chunk in chunks:
        boxes = zip(chunk.offsets, chunk.sizes, shape, strict=False)
        inside = all(offset + size <= whole for offset, size, whole in boxes)
        if len(chunk.offsets) != len(shape) or len(chunk.sizes) != len(shape) or not inside:
            raise PickleError(f"{name}: a chunk reaches outside of the shape {list(shape)}")
    held = sum(math.prod(chunk.sizes) for chunk in chunks)
    if len(chunks) > _MAX_CHUNKS or held != math.prod(shape) or _overlap(chunks):
        raise PickleError(f"{name}: its chunks do not cover the shape {list(shape)} once")


def _check_places(chunks: Iterable[_Chunk]) -> None:
    """Bytes of a file belong to one chunk: else a small file would be any number of tensors."""
    ordered = sorted(chunks, key=lambda chunk: (chunk.path, chunk.start))
    for one, other in pairwise(ordered):
        if one.path == other.path and other.start < one.start + one.length:
            raise PickleError(f"two chunks lie at byte {other.start} of {other.path.name}")


def _overlap(chunks: Iterable[_Chunk]) -> bool:
    full = [chunk for chunk in chunks if 0 not in chunk.sizes]
    return any(
        all(
            a < b + size_b and b < a + size_a
            for a, size_a, b, size_b in zip(
                one.offsets, one.sizes, other.offsets, other.sizes, strict=True
            )
        )
        for one, other in combinations(full, 2)
    )


def open_distributed(path: Path, location: str | None = None) -> Source:
    """A folder of torch.distributed.checkpoint."""
    return DistributedSource(location or str(path), (path / METADATA,))
