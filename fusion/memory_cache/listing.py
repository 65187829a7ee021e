"""What lies in a directory of caches, and what may go; needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.errors import FusionError
from fusion.memory_cache.locks import unused
from fusion.memory_cache.store import (
    ABOUT,
    BadBlock,
    block_names,
    check_block,
    may_list,
    read_block,
    remove_abandoned,
)


@dataclass(frozen=True)
class Listing:
    """One cache as it lies on disk."""

    directory: Path
    about: dict[str, Any]
    key: dict[str, Any]
    blocks: tuple[Path, ...]
    bytes: int
    used: float

    @property
    def name(self) -> str:
        """The digest of its key."""
        return self.directory.name

    def sentences(self) -> int:
        """Sentences in blocks that can be read."""
        count = 0
        for path in self.blocks:
            try:
                count += len(read_block(path).digests)
            except BadBlock:
                continue
        return count

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        content: dict[str, Any] = {"name": self.name, "directory": str(self.directory)}
        content |= {"sentences": self.sentences(), "blocks": len(self.blocks), "bytes": self.bytes}
        return content | {"used": self.used, "about": self.about, "key": self.key}


_NAME = re.compile(r"[0-9a-f]{32}")  # of a cache's directory
_OWN = re.compile(r"cache\.json|[0-9a-f]{32}\.block|\..*\.tmp")  # files in it


def caches(root: Path) -> list[Listing]:
    """Every cache below a directory, least recently used first.

    A folder that another program made, that holds anything else, or that this user may not read is
    none. One whose description is damaged or gone is one all the same.
    """
    found = []
    for directory in root.iterdir() if root.is_dir() else ():
        if not _NAME.fullmatch(directory.name) or not directory.is_dir() or _foreign(directory):
            continue
        blocks = tuple(directory / name for name in sorted(block_names(directory)))
        path = directory / ABOUT
        if not blocks and not path.is_file():
            continue
        try:
            used = (path if path.is_file() else directory).stat().st_mtime
        except FileNotFoundError:
            continue
        about, key = _description(path)
        size = sum(_size(block) for block in blocks)
        found.append(Listing(directory, about, key, blocks, size, used))
    return sorted(found, key=lambda cache: (cache.used, cache.name))


def _description(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["about"]), dict(content["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def _foreign(directory: Path) -> bool:
    """Whether a directory holds anything that is no file of a cache, or may not be read."""
    if not may_list(directory):
        return directory.exists()
    try:
        with os.scandir(directory) as entries:
            return any(not _OWN.fullmatch(entry.name) or entry.is_dir() for entry in entries)
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def drop(cache: Listing) -> None:
    """Remove a cache's own files. A run that reads it has it mapped, and keeps what it mapped.

    Raises:
        FusionError: a run is filling it, or it cannot be removed.
    """
    try:
        with unused(cache.directory) as alone:
            if not alone:
                raise FusionError(f"{cache.directory}: is not removed: a run is filling it")
            files = [path for path in cache.directory.iterdir() if _OWN.fullmatch(path.name)]
            for path in sorted(files, key=lambda path: path.name == ABOUT):
                path.unlink(missing_ok=True)
            cache.directory.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FusionError(
            f"{cache.directory}: cannot be removed: {error.strerror}; whose is it?"
        ) from None


def prune(
    root: Path, max_bytes: int | None, unused_since: float | None
) -> tuple[list[Listing], list[str]]:
    """Remove caches that were last used before a time, then the least recently used ones.

    Args:
        max_bytes: of what may stay
        unused_since: seconds since the epoch

    Returns:
        what was removed, and of what could not be, why
    """
    listing = caches(root)
    for cache in listing:
        with contextlib.suppress(OSError):  # it may be another user's
            remove_abandoned(cache.directory)
    left = sum(cache.bytes for cache in listing)
    removed, problems = [], []
    for cache in listing:
        too_old = unused_since is not None and cache.used < unused_since
        if not too_old and (max_bytes is None or left <= max_bytes):
            continue
        try:
            drop(cache)
        except FusionError as error:
            problems.append(str(error))
            continue
        left -= cache.bytes
        removed.append(cache)
    return removed, problems


def bad_blocks(paths: Iterable[Path]) -> dict[Path, str]:
    """Blocks that differ from their checksums, and why; reads every byte."""
    bad = {}
    for path in paths:
        try:
            check_block(path)
        except BadBlock as problem:
            if path.exists():
                bad[path] = str(problem)
    return bad


def shown_bytes(count: int) -> str:
    """`668.2 MB`: decimal units, as max_bytes reads them."""
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
