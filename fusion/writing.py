"""Files and directories that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fusion.errors import NoRoomError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STOPPED = "PytorchStreamWriter failed|unexpected pos"  # where torch opens the file itself


@contextlib.contextmanager
def whole(place: Path) -> Iterator[Path]:
    """A temporary name beside a place, for a file or a directory that is to be there.

    What was written under it gets the place's name at the end, and an old directory goes last. If
    anything fails it is removed, and the place is as it was.

    Raises:
        NoRoomError: of the outermost place, where one is in another's temporary directory.
    """
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        with room_for(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _swap(temporary, place)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def room_for(place: Path) -> Iterator[None]:
    """Name a place where there is no room for what is written there, whatever writes it.

    Raises:
        NoRoomError: the disk is full, or the file too large.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, NoRoomError) as error:
        reason = _no_room(error)
        if reason is None:
            raise
        raise NoRoomError(place, reason) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, to a temporary name first.

    Raises:
        NoRoomError: there is no room for it.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with whole(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _swap(new: Path, place: Path) -> None:
    if not place.is_dir():
        os.replace(new, place)
        return
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    _remove(old)
    place.rename(old)
    new.rename(place)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _no_room(error: BaseException | None) -> str | None:
    """The system's words for a full disk, however a library reports it; None: it is not that."""
    if isinstance(error, NoRoomError):
        return error.reason
    if error is None:
        return None
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number in _NO_ROOM and number is not None:
        return os.strerror(number)
    reason = _no_room(error.__context__)  # torch.save says something else while it fails
    if reason is None and isinstance(error, RuntimeError) and re.search(_STOPPED, str(error)):
        return "torch could not write all of it; is the disk full?"
    return reason
