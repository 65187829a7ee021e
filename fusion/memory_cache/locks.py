"""Who uses a cache: locks on its directory; where the file system has none, they are all granted.

A run that fills a cache shares its lock with other such runs. Who drops a cache, or blocks of it,
has it alone, for that moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Use:
    """A run's lock on the cache that it fills."""

    file: int

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other run uses the cache; if so, none begins to meanwhile."""
        try:
            yield _lock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            _lock(self.file, fcntl.LOCK_SH)  # Linux gives it up even where the other is refused


@contextlib.contextmanager
def used(directory: Path) -> Iterator[Use]:
    """Use a cache; waits while another process has it alone.

    Raises:
        FileNotFoundError: it is not there, or was dropped meanwhile.
    """
    with _locked(directory, fcntl.LOCK_SH) as (file, _):
        yield Use(file)


@contextlib.contextmanager
def unused(directory: Path) -> Iterator[bool]:
    """Whether no run uses a cache; if so, none begins to meanwhile.

    Raises:
        FileNotFoundError: it is not there, or was dropped meanwhile.
    """
    with _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB) as (_, alone):
        yield alone


@contextlib.contextmanager
def _locked(directory: Path, kind: int) -> Iterator[tuple[int, bool]]:
    file = os.open(directory, os.O_RDONLY)
    try:
        granted = _lock(file, kind)
        if not os.path.samestat(os.fstat(file), directory.stat()):
            raise FileNotFoundError(errno.ENOENT, "dropped, and made again", str(directory))
        yield file, granted
    finally:
        os.close(file)


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError:  # no locks there
        return True
    return True
