"""Files of torch.save: the zip of today and the stream of pickles from before torch 1.6.

Layouts, as `torch.serialization` writes them. Zip: stored (never compressed) records
`NAME/data.pkl`, `NAME/data/KEY`. Stream: pickles of a magic number, a protocol version, facts of
the machine, the object and the storages' keys; then per key a count of elements (8 bytes) and the
elements.
"""

from __future__ import annotations

import io
import mmap
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fusion.checkpoints.machine import Machine
from fusion.checkpoints.pickles import pickle_machine
from fusion.checkpoints.standins import PickleError, RefusedError
from fusion.checkpoints.stored import MappedFile, Storage, Stored
from fusion.checkpoints.torch_names import TensorMaker, persistent_storage, torch_names
from fusion.checkpoints.zip_records import LOCAL_HEADER, ZIP_DAMAGE, crc32, record_start
from fusion.errors import SourceError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file causes into one SourceError that names the file."""
    try:
        yield
    except SourceError:
        raise
    except RefusedError as error:
        raise SourceError(
            f"{path}: refused: {error}, which could run code; nothing of it was run"
        ) from None
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SourceError(f"{path}: not a file") from None
    except MemoryError:
        raise SourceError(
            f"{path}: not a whole torch file: needs more memory than there is"
        ) from None
    except ZIP_DAMAGE as error:
        what = str(error) or type(error).__name__
        raise SourceError(f"{path}: not a whole torch file: {what}") from None


class TorchFile(ABC):
    """What torch.save wrote, read without running any of it.

    Args:
        path: the file
        start, size: the part of the file that is meant; by default all of it
    """

    def __init__(self, path: Path, start: int = 0, size: int | None = None) -> None:
        self.path = path
        self.start = start
        self._mapped = MappedFile(path)
        self.size = self._mapped.size - start if size is None else size
        if start < 0 or self.size < 0 or start + self.size > self._mapped.size:
            raise PickleError(f"bytes {start} to {start + self.size} of {self._mapped.size}")

    @abstractmethod
    def load(self, make: TensorMaker) -> Any:
        """The object that was saved; each of its tensors becomes `make(stored)`."""

    @abstractmethod
    def place(self, stored: Stored) -> int:
        """The byte of the file at which a tensor's storage starts.

        Raises:
            PickleError: the file does not hold as many bytes as the pickle says.
        """

    def check(self, stored: Stored) -> None:  # noqa: B027 (the stream has no checksums)
        """Compare the bytes of a tensor's storage with the file's checksum of them.

        Raises:
            PickleError: they differ.
        """

    def tensor(self, stored: Stored) -> Tensor:
        """A tensor by memory map, or a copy where it is not aligned."""
        return self._mapped.tensor(stored, self.place(stored) + stored.storage.first)

    def whole(self, stored: Stored) -> Tensor:
        """All of a tensor's storage, flat, in the tensor's dtype."""
        start = self.place(stored) + stored.storage.first
        return self._mapped.block(start, stored.storage.size, stored.dtype)


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = path.open("rb")
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the file")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class ZipFile(TorchFile):
    """The zip format; a tensor's bytes are used where they lie."""

    @cached_property
    def _checked(self) -> set[str]:
        """Records whose bytes are those of their checksum."""
        return set()

    @cached_property
    def _records(self) -> dict[str, zipfile.ZipInfo]:
        with (
            _Window(self.path, self.start, self.size) as window,
            zipfile.ZipFile(cast(Any, window)) as archive,
        ):
            found: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                if info.filename in found:
                    raise PickleError(f"{info.filename} is there twice")
                found[info.filename] = info
        return found

    @cached_property
    def _root(self) -> str:
        roots = [n.removesuffix("data.pkl") for n in self._records if n.endswith("/data.pkl")]
        if len(roots) != 1:
            shown = ", ".join(list(self._records)[:4]) or "nothing"
            raise PickleError(f"a zip file without a data.pkl; it holds {shown}"[:300])
        root = roots[0]
        if f"{root}constants.pkl" in self._records:
            raise PickleError("a TorchScript archive; save the module's state_dict() instead")
        if f"{root}byteorder" in self._records and self._bytes(f"{root}byteorder") != b"little":
            raise PickleError("its numbers are big-endian")
        return root

    def _start_of(self, name: str) -> int:
        """Where a record's bytes begin: behind a header of its own, of which the length varies."""
        info = self._records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise PickleError(f"{name} is compressed, which torch.save never does")
        with _Window(self.path, self.start, self.size) as window:
            window.seek(info.header_offset)
            header = window.read(LOCAL_HEADER)
        if len(header) != LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise PickleError(f"{name}: its header is damaged")
        start = record_start(info, header)
        if start + info.file_size > self.size:
            raise PickleError(f"{name} is cut short")
        return self.start + start

    def _bytes(self, name: str) -> bytes:
        start = self._start_of(name)
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(self._records[name].file_size)
        self._compare(name, zlib.crc32(data))
        return data

    def _compare(self, name: str, checksum: int) -> None:
        if self._records[name].CRC not in (0, checksum):  # 0: set_crc32_options(False) of torch
            raise PickleError(f"{name} is damaged: its checksum differs")

    def check(self, stored: Stored) -> None:
        name = f"{self._root}data/{stored.storage.key}"
        start, size = self.place(stored), self._records[name].file_size
        if name not in self._checked:
            self._compare(name, crc32(self._mapped.block(start, size, torch.uint8)))
            self._checked.add(name)

    def load(self, make: TensorMaker) -> Any:
        data = self._bytes(f"{self._root}data.pkl")
        return pickle_machine(data, torch_names(make), persistent_storage).load()

    def place(self, stored: Stored) -> int:
        name = f"{self._root}data/{stored.storage.key}"
        if name not in self._records:
            raise PickleError(f"{name} is missing")
        if stored.storage.first + stored.storage.size > self._records[name].file_size:
            held = self._records[name].file_size
            raise PickleError(f"{name} holds {held} bytes, {stored.storage.size} are told")
        return self._start_of(name)


class StreamFile(TorchFile):
    """The stream of pickles; tensors are copied out of it, since nothing in it is aligned."""

    @cached_property
    def _data(self) -> memoryview:
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(mapped)[self.start : self.start + self.size]

    def _head(
        self, make: TensorMaker, persistent: Callable[[Any], Any] = persistent_storage
    ) -> tuple[Machine, Any]:
        machine = pickle_machine(self._data, torch_names(make), persistent)
        magic = machine.load()
        if magic != _MAGIC:
            raise PickleError("a pickle that torch.save did not write")
        if machine.load() != _PROTOCOL:
            raise PickleError("an unknown version of the format")
        facts = machine.load()
        if isinstance(facts, dict) and facts.get("little_endian") is False:
            raise PickleError("its numbers are big-endian")
        return machine, machine.load()

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Key -> first byte and bytes of a storage."""
        widths: dict[str, int] = {}

        def note(saved_id: Any) -> Any:
            storage = persistent_storage(saved_id)
            if isinstance(storage, Storage):
                widths[storage.key] = storage.dtype.itemsize if storage.dtype is not None else 1
            return storage

        machine, _ = self._head(lambda stored: stored, note)
        keys = machine.load()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise PickleError("no list of storages")
        places: dict[str, tuple[int, int]] = {}
        at = machine.position
        for key in keys:
            if key not in widths or key in places:
                raise PickleError("a storage that no tensor has, or one that is there twice")
            if at + 8 > self.size:
                raise PickleError("it ends before its storages do")
            count = int.from_bytes(self._data[at : at + 8], "little", signed=True)
            size = count * widths[key]
            if count < 0 or at + 8 + size > self.size:
                raise PickleError("it ends before its storages do")
            places[key] = (at + 8, size)
            at += 8 + size
        return places

    def load(self, make: TensorMaker) -> Any:
        _ = self._places  # `make` may ask for bytes, whose places lie behind the pickles
        return self._head(make)[1]

    def place(self, stored: Stored) -> int:
        start, size = self._places.get(stored.storage.key, (0, -1))
        if stored.storage.first + stored.storage.size > size:
            raise PickleError("a storage is missing or smaller than told")
        return self.start + start


def open_torch_file(path: Path, start: int = 0, size: int | None = None) -> TorchFile:
    """A file of torch.save, its format found by its first bytes.

    Raises:
        SourceError: it is no such file.
    """
    with told_of(path):
        with path.open("rb") as file:
            file.seek(start)
            head = file.read(512)
        if not head:
            raise PickleError("it is empty")
        if head[:2] == b"PK":
            return ZipFile(path, start, size)
        if head[257:262] == b"ustar":
            raise PickleError(
                "a tar file, as torch wrote before 0.1.10; load and save it again there"
            )
        return StreamFile(path, start, size)


def check_torch_file(path: Path, start: int = 0, size: int | None = None) -> None:
    """Compare the bytes of all tensors of a file with the checksums that it has of them.

    Raises:
        SourceError: it is damaged.
    """
    opened = open_torch_file(path, start, size)

    def check(stored: Stored) -> Stored:
        opened.check(stored)
        return stored

    with told_of(path):
        opened.load(check)
