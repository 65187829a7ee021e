"""What every checkpoint format offers, and the digests that identify tensors."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusion.checkpoints.digests import DigestCache, Stamp, file_digest, stamp
from fusion.errors import SourceError, nearest

_BLOCK = 1 << 22  # elements looked at in one go
_MOST = 1 << 60  # elements
_DIMENSIONS = 64
_READING = threading.RLock()  # digests are computed by several threads, files read by one at a time


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype, as the header tells them."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def checked_shapes(location: str, infos: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The same, once every shape is one that a tensor can have: an empty one may claim any.

    Raises:
        SourceError: names the first one that is not.
    """
    for name, info in infos.items():
        if math.prod(max(size, 1) for size in info.shape) >= _MOST or len(info.shape) > _DIMENSIONS:
            shown = str(list(info.shape[:8]))
            raise SourceError(f"{location}: {name[:80]}: no tensor has the shape {shown[:80]}")
    return infos


class Source(ABC):
    """A checkpoint as a lazy stream of named tensors.

    Attributes:
        location: what the user wrote or the path, for messages
        files: the files read
        digest_scope: what names and values depend on besides the files' bytes (the reader, its
            version, its options). Digests outlive the process only where a reader sets it: two
            sources of equal scope and files must give equal tensors under equal names
    """

    location: str
    files: tuple[Path, ...]
    digest_scope: str | None = None
    _caches: dict[tuple[Path, ...], DigestCache] | None = None
    _opened: dict[Path, Stamp] | None = None
    _given: set[str] | None = None

    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Names, shapes and dtypes, from headers where the format has them."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor on the CPU.

        Raises:
            SourceError: the bytes cannot be read.
        """

    def read_own(self, name: str) -> Tensor:
        """One tensor whose memory nobody else was given: what is stored, and later a copy of it.

        Raises:
            SourceError: the bytes cannot be read.
        """
        tensor = self.read(name)
        self._given = self._given or set()
        if name in self._given:
            return tensor.clone()
        self._given.add(name)
        return tensor

    def check_stored(self, name: str) -> None:  # noqa: B027 (not every format has checksums)
        """Compare a tensor's bytes with the checksum that its file has of them, if it has one.

        Raises:
            SourceError: they differ.
        """

    def files_of(self, name: str) -> tuple[Path, ...]:
        """The files that a tensor's values depend on; all, unless the format can tell."""
        return self.files

    def digest(self, name: str, *, fresh: bool = False) -> str:
        """`tensor_digest` of the stored tensor, remembered until its file changes.

        Args:
            fresh: read every byte, whatever is known

        Raises:
            SourceError: the bytes cannot be read.
        """
        return self._facts(name, fresh)[0]

    def nonfinite(self, name: str, *, fresh: bool = False) -> str | None:
        """What `nonfinite` says of the stored tensor; found and remembered with its digest."""
        return self._facts(name, fresh)[1] or None

    def file_digests(self, *, fresh: bool = False) -> dict[str, str]:
        """sha256 of every file, by path, remembered until the file changes.

        Args:
            fresh: read every byte, whatever is known

        Raises:
            SourceError: a file cannot be read.
        """
        return file_digests(self.files, fresh=fresh)

    def header_digest(self) -> str:
        """sha256 of names, shapes, dtypes and file sizes: identifies a file without its weights."""
        digest = hashlib.sha256()
        for name, info in sorted(self.tensors().items()):
            digest.update(f"{name}\0{info.shape}\0{info.dtype}\n".encode())
        for path in self.files:
            digest.update(f"{path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def opening(self, path: Path) -> None:
        """Note what a file is like now; a reader calls it before it opens the file.

        Raises:
            SourceError: there is no such file.
        """
        self._opened = self._opened or {}
        try:
            self._opened[path] = stamp(path)
        except OSError:
            raise SourceError(f"{path}: no such file") from None
        if not path.is_file():
            raise SourceError(f"{path}: not a file")

    def _facts(self, name: str, fresh: bool) -> list[str]:
        with _READING:
            if self._caches is None:
                self._caches = {}
            if name not in self.tensors():
                near = nearest(name, self.tensors())
                raise SourceError(f"{self.location}: no tensor {name}{near}")
            files = self.files_of(name)
        for path in files:
            self._check_unchanged(path)
        with _READING:
            cache = self._caches.get(files)
            if cache is None:
                cache = self._caches[files] = DigestCache(self.digest_scope, files)
                weakref.finalize(self, cache.save)
            known = cache.get(name)
        if known is None or len(known) != 2 or fresh:
            self.check_stored(name)
            with _READING:
                tensor = self.read(name)
            known = [tensor_digest(tensor), nonfinite(tensor) or ""]
            with _READING:
                cache.put(name, known)
        return known

    def _check_unchanged(self, path: Path) -> None:
        opened = (self._opened or {}).get(path)
        try:
            same = opened is None or opened == stamp(path)
        except OSError:
            same = False
        if not same:
            raise SourceError(f"{path}: has changed since it was opened")


def learn(places: Collection[tuple[Source, str]]) -> None:
    """Find out the digests of many tensors, on every core that this process may use.

    Raises:
        SourceError: the bytes of one cannot be read.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(lambda place: place[0].digest(place[1]), places):
            pass


def file_digests(paths: Iterable[Path], *, fresh: bool = False) -> dict[str, str]:
    """sha256 by path; see `Source.file_digests`."""
    digests = {}
    for path in paths:
        try:
            digests[str(path)] = file_digest(path, fresh=fresh)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
    return digests


class Selection(Source):
    """Some tensors of a source under their own names; what is known of one is known of both."""

    def __init__(self, source: Source, names: Collection[str]) -> None:
        self.source = source
        self.location, self.files = source.location, source.files
        self._infos = {n: info for n, info in source.tensors().items() if n in names}

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str) -> Tensor:
        return self.source.read(name)

    def read_own(self, name: str) -> Tensor:
        return self.source.read_own(name)

    def files_of(self, name: str) -> tuple[Path, ...]:
        return self.source.files_of(name)

    def _facts(self, name: str, fresh: bool) -> list[str]:
        return self.source._facts(name, fresh)


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of dtype, shape and bytes (row-major, as stored)."""
    digest = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride(-1) != 1:  # one element may have any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def nonfinite(tensor: Tensor) -> str | None:
    """Say what in a tensor is no number: `2 NaN and 1 inf, the first at [0, 3]`; None if all are.

    Reads a finite tensor once and copies nothing; one-byte floats are read block by block.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return None
    flat = tensor.detach().resolve_conj().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    bad = [n for n, part in enumerate(flat.split(_BLOCK)) if not _is_finite(part)]
    if not bad:
        return None
    nans = infs = 0
    first: int | None = None
    for number in bad:
        part = _comparable(flat[number * _BLOCK : (number + 1) * _BLOCK])
        nan, inf = part.isnan(), part.isinf()
        nans, infs = nans + int(nan.sum()), infs + int(inf.sum())
        if first is None:
            first = number * _BLOCK + int((nan | inf).nonzero()[0])
    assert first is not None
    counts = [f"{count} {kind}" for count, kind in ((nans, "NaN"), (infs, "inf")) if count]
    if tensor.is_complex():
        first //= 2
    place = [int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape)]
    return f"{' and '.join(counts)}, the first at {place}"


def _comparable(part: Tensor) -> Tensor:
    return part if part.element_size() > 1 else part.float()


def _is_finite(part: Tensor) -> bool:
    low, high = torch.aminmax(_comparable(part))  # a NaN in it makes both NaN
    return bool(low.isfinite() & high.isfinite())
