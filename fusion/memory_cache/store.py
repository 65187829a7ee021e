"""Caches on disk: append-only blocks of memories, safe with many writers; needs no torch.

DIR/<key>/cache.json    what the memories depend on; its modification time is the last use
DIR/<key>/<name>.block  some sentences' memories, whole or not there: written aside and renamed

A block is, in this order, all little-endian:

    magic "fusmem1\\n" | sentences n, bytes per token b, tokens t: uint64
    n digests of 16 bytes | n token counts: uint32
    t * b bytes of states, sentence after sentence
    sha256 of everything before it
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import FusionError
from fusion.writing import room_for

ABOUT = "cache.json"
MAGIC = b"fusmem1\n"
HEAD = struct.Struct("<8sQQQ")
DIGEST = 16
DIGEST_TYPE = np.dtype(f"S{DIGEST}")
CHECKSUM = 32
PER_SENTENCE = DIGEST + 4  # bytes in a block, beside its states
STALE_SECONDS = 3600.0  # a block takes seconds to write; an unfinished one this old was abandoned
ATTEMPTS = 5  # at a step in a directory that other processes remove
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

Digests = NDArray[np.bytes_]


class BadBlock(Exception):
    """A block's bytes are not what was written."""


@dataclass(frozen=True)
class Block:
    """What a block says of itself.

    Attributes:
        digests: of its sentences `[n]`, in their order
        tokens: per sentence `[n]`
    """

    path: Path
    token_bytes: int
    digests: Digests
    tokens: NDArray[np.uint32]

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each sentence's states begin in the file `[n]`."""
        ends = np.cumsum(self.tokens, dtype=np.int64) * self.token_bytes
        first = HEAD.size + len(self.digests) * PER_SENTENCE
        return first + ends - self.tokens.astype(np.int64) * self.token_bytes


@dataclass(frozen=True)
class Places:
    """Where sentences lie.

    Attributes:
        paths: files
        block: per sentence, its file's number; -1: it is in none
        start: per sentence, where its states begin
    """

    paths: list[Path]
    block: NDArray[np.int32]
    start: NDArray[np.int64]

    def __getitem__(self, chosen: NDArray[np.int64]) -> Places:
        """The places of some of the sentences."""
        return Places(self.paths, self.block[chosen], self.start[chosen])

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which sentences are there."""
        return self.block >= 0


def default_directory() -> Path:
    """$XDG_CACHE_HOME/fusion/memory, or ~/.cache/fusion/memory."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fusion" / "memory"


def digest_of(ids: Sequence[int]) -> bytes:
    """A sentence's address: its token ids, padding left out."""
    raw = struct.pack(f"<{len(ids)}q", *ids)
    return hashlib.sha256(raw).digest()[:DIGEST]


def size_of(sentences: int, state_bytes: int) -> int:
    """Bytes of a block's file."""
    return HEAD.size + sentences * PER_SENTENCE + state_bytes + CHECKSUM


def read_block(path: Path) -> Block:
    """A block's index; its states and checksum are not read.

    Raises:
        BadBlock: it is not a block, or not of the length that its index says.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                raise BadBlock("cut off")
            magic, count, token_bytes, total = HEAD.unpack(head)
            actual = os.fstat(file.fileno()).st_size
            if magic != MAGIC or actual != size_of(count, total * token_bytes):
                raise BadBlock("damaged head, or cut off")
            names, numbers = file.read(count * DIGEST), file.read(count * 4)
    except OSError as error:
        raise BadBlock(f"cannot be read: {error.strerror}") from None
    tokens = np.frombuffer(numbers, np.dtype("<u4"))
    if int(tokens.sum(dtype=np.int64)) != total:
        raise BadBlock("damaged index")
    return Block(path, token_bytes, np.frombuffer(names, DIGEST_TYPE), tokens)


def check_block(path: Path) -> None:
    """Compare a block with its checksum; reads the whole file.

    Raises:
        BadBlock: they differ.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - CHECKSUM
            while left > 0:
                piece = file.read(min(left, 1 << 22))
                if not piece:
                    break
                digest.update(piece)
                left -= len(piece)
            if file.read() != digest.digest():
                raise BadBlock("its bytes differ from its checksum")
    except OSError as error:
        raise BadBlock(f"cannot be read: {error.strerror}") from None
    read_block(path)


@dataclass
class Cache:
    """The memories of one key: one encoder, layer, limit and format.

    Attributes:
        key: everything that the states depend on, apart from the token ids
        about: for people: the encoder's source and such
        writable: False: it lies where this process may only read
        bad: names of damaged blocks that may not be removed, and are not read
    """

    root: Path
    key: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    writable: bool = True
    bad: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The digest of the key."""
        text = json.dumps(self.key, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def directory(self) -> Path:
        """Where its blocks are."""
        return self.root / self.name

    def open(self) -> None:
        """Make the directory, mark it as used now, and read the blocks that are there.

        Raises:
            FusionError: the directory is not there and cannot be made, or may not be read.
        """
        try:
            self._retry(lambda: remove_abandoned(self.directory))
        except OSError as error:
            if error.errno not in READ_ONLY or not self._readable():
                raise FusionError(
                    f"memory_cache.dir: {self.directory}: cannot be written: {error.strerror}"
                ) from None
            self.writable = False
        self.refresh()

    def _readable(self) -> bool:
        return may_list(self.directory) and os.access(
            self.directory / ABOUT, os.R_OK, effective_ids=True
        )

    def _retry(self, step: Callable[[], None]) -> None:
        """Do a step in the directory, again where another process drops the cache meanwhile."""
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # the latter of mkdir
                self._claim()
                return step()
        self._claim()
        step()

    def _claim(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / ABOUT
        if self._described(path):
            os.utime(path)
            return
        text = json.dumps({"about": self.about, "key": self.key}, indent=2, ensure_ascii=False)
        _put(path, [text.encode() + b"\n"])

    def _described(self, path: Path) -> bool:
        """Whether the description is there and undamaged."""
        try:
            return bool(json.loads(path.read_text(encoding="utf-8"))["key"] == self.key)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def refresh(self) -> list[Block]:
        """Read the blocks that have come since, and forget those that are gone or unreadable.

        Returns:
            those that have come
        """
        names = set(block_names(self.directory)) - self.bad
        self.blocks = {name: block for name, block in self.blocks.items() if name in names}
        new = []
        for name in sorted(names - self.blocks.keys()):
            with contextlib.suppress(BadBlock):
                self.blocks[name] = read_block(self.directory / name)
                new.append(self.blocks[name])
        return new

    def paths(self) -> list[Path]:
        """Every block's file, unreadable ones as well."""
        return [self.directory / name for name in sorted(block_names(self.directory))]

    def locate(self, digests: Digests) -> Places:
        """Where sentences lie, in the blocks that were there at the last `refresh`."""
        blocks = [self.blocks[name] for name in sorted(self.blocks)]
        places = Places(
            [block.path for block in blocks],
            np.full(len(digests), -1, np.int32),
            np.zeros(len(digests), np.int64),
        )
        if not blocks or not len(digests):
            return places
        every = np.concatenate([block.digests for block in blocks])
        numbers = np.repeat(np.arange(len(blocks)), [len(block.digests) for block in blocks])
        order = np.argsort(every, kind="stable")
        at = np.minimum(np.searchsorted(every, digests, sorter=order), len(every) - 1)
        at = order[at]
        found = every[at] == digests
        starts = np.concatenate([block.starts for block in blocks])
        places.block[found], places.start[found] = numbers[at[found]], starts[at[found]]
        return places

    def write(self, digests: Digests, tokens: NDArray[np.uint32], states: bytes) -> None:
        """Add a block; it is there as a whole or not at all.

        Raises:
            NoRoomError: the disk is full.
            FusionError: it cannot be written.
        """
        index = digests.tobytes() + tokens.astype("<u4").tobytes()
        total = int(tokens.sum(dtype=np.int64))
        head = HEAD.pack(MAGIC, len(digests), len(states) // total, total)
        checksum = hashlib.sha256(head + index)
        checksum.update(states)
        path = self.directory / f"{hashlib.sha256(index).hexdigest()[:32]}.block"
        try:
            with room_for(path):
                self._retry(lambda: _put(path, [head, index, states, checksum.digest()]))
        except OSError as error:
            raise FusionError(
                f"memory_cache.dir: {path}: cannot be written: {error.strerror}"
            ) from None


def _put(path: Path, content: list[bytes]) -> None:
    """Write a file; it is there as a whole or not at all."""
    temporary = _aside(path)
    try:
        with temporary.open("wb") as file:
            file.writelines(content)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def may_list(directory: Path) -> bool:
    """Whether this process may read a directory's names and open its files."""
    return os.access(directory, os.R_OK | os.X_OK, effective_ids=True)


def block_names(directory: Path) -> Iterator[str]:
    """File names of the blocks in a directory, in no order."""
    try:
        with os.scandir(directory) as entries:
            names = (entry.name for entry in entries if entry.is_file())
            yield from (name for name in names if name.endswith(".block"))
    except FileNotFoundError:
        return


def remove_abandoned(directory: Path) -> None:
    """Remove what killed writers left behind."""
    for path in directory.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue
