"""What was once computed from every byte of a file, remembered until the file changes.

One small JSON file per (scope, files) under `$FUSION_CACHE/digests`, else
`$XDG_CACHE_HOME/fusion/digests`, else `~/.cache/fusion/digests`. An entry counts only while number
(inode), size, modification time and change time of every file are what they were. What was read of
a file that had just been written is not saved: one more write might leave its times as they are. A
cache that cannot be read or written is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

Stamp = list[int]

_BLOCK = 1 << 20
_SECOND = 1_000_000_000
_SETTLED = 50_000_000  # ns: two writes within one tick of the file system's clock look alike


def cache_directory() -> Path:
    """Where the files lie; read from the environment at every call."""
    if own := os.environ.get("FUSION_CACHE"):
        return Path(own).expanduser() / "digests"
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "fusion" / "digests"


def stamp(path: Path) -> Stamp:
    """Size, modification and change time (ns) and the file's number, through links.

    Raises:
        OSError: the file is gone.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class DigestCache:
    """Facts (name -> strings) about some files.

    Args:
        scope: what kind of facts; None keeps them in memory only
        files: the files that the facts are about
    """

    def __init__(self, scope: str | None, files: tuple[Path, ...]) -> None:
        self._scope = scope
        self._files = tuple(path.resolve() for path in files)
        self._stamps: dict[str, Stamp] = {}
        self._facts: dict[str, list[str]] = {}
        self._unsettled: set[str] = set()
        self._unsaved = False
        self._saved_at = 0.0

    def get(self, name: str) -> list[str] | None:
        """What is known under a name, if the files have not changed since."""
        now = self._now()
        if now is None:
            return None
        if now != self._stamps:
            self._stamps, self._facts, self._unsaved = now, self._load(now), False
            self._unsettled = set()
        known = self._facts.get(name)
        if known is None and any(map(_is_fresh, now.values())):
            self._unsettled.add(name)  # it is about to be read
        return known

    def put(self, name: str, facts: list[str]) -> None:
        """Remember facts that were computed after the last `get`."""
        now = self._now()
        if now is None or now != self._stamps:
            return  # the file changed while it was read
        self._facts[name] = facts
        self._unsaved = True
        if time.monotonic() - self._saved_at > 1:
            self.save()

    def save(self) -> None:
        """Write what is new. Another process may have written meanwhile: its facts are kept."""
        if not self._unsaved or self._scope is None or self._now() != self._stamps:
            return
        facts = {n: found for n, found in self._facts.items() if n not in self._unsettled}
        if not facts:
            return
        self._unsaved, self._saved_at = False, time.monotonic()
        path = self._path()
        content = {
            "scope": self._scope,
            "files": self._stamps,
            "facts": self._load(self._stamps) | facts,
        }
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump(content, file)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def _now(self) -> dict[str, Stamp] | None:
        try:
            return {str(path): stamp(path) for path in self._files} or None
        except OSError:
            return None

    def _path(self) -> Path:
        key = "\0".join([str(self._scope), *map(str, self._files)])
        return cache_directory() / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"

    def _load(self, stamps: Mapping[str, Stamp]) -> dict[str, list[str]]:
        if self._scope is None:
            return {}
        try:
            content = json.loads(self._path().read_text(encoding="utf-8"))
            if content["files"] != stamps or content["scope"] != self._scope:
                return {}
            facts = content["facts"].items()
            return {name: found for name, found in facts if _is_facts(found)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def _is_facts(value: object) -> bool:
    """A sha256 first, then plain text."""
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        return False
    return _is_sha256(value[0])


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _is_fresh(one: Stamp) -> bool:
    """Whether a file is so new that one more write might leave its times as they are."""
    _, modified, changed, _ = one
    coarse = modified % _SECOND == 0  # a file system that counts in seconds
    return time.time_ns() - max(modified, changed) < (2 * _SECOND if coarse else _SETTLED)


def file_digest(path: Path, *, fresh: bool = False) -> str:
    """sha256 of a file's bytes.

    The name of a blob in the hub's cache is its sha256 (large files only): it is taken as it is.

    Args:
        fresh: read every byte, whatever is known

    Raises:
        OSError: the file cannot be read.
    """
    real = path.resolve()
    if not fresh and real.parent.name == "blobs" and _is_sha256(real.name):
        return real.name
    cache = DigestCache("file", (real,))
    known = cache.get("sha256")
    if known is not None and not fresh:
        return known[0]
    digest = hashlib.sha256()
    with real.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    cache.put("sha256", [digest.hexdigest()])
    cache.save()
    return digest.hexdigest()
