"""Which format a file is in, by its first bytes; a suffix only helps where those say nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from fusion.checkpoints.npz import open_npz
from fusion.checkpoints.safetensors import SafetensorsSource, open_safetensors
from fusion.checkpoints.shards import read_index
from fusion.checkpoints.source import Source
from fusion.checkpoints.torch import TorchSource, open_torch
from fusion.errors import SourceError, nearest
from fusion.registry import SOURCES

Opener = Callable[[Path, str], Source]

SUFFIXES = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".th"), "torch"),
}
INDEX_SUFFIX = ".index.json"


def open_index(path: Path, location: str | None = None) -> Source:
    """Shards, listed in `model.safetensors.index.json` or `pytorch_model.bin.index.json`."""
    shards = read_index(path)
    kind = SafetensorsSource if all(f.suffix == ".safetensors" for f in shards.files) else None
    return (kind or TorchSource)(location or str(path), shards.files, shards)


_OPENERS: dict[str, Opener] = {
    "safetensors": open_safetensors,
    "torch": open_torch,
    "npz": open_npz,
    "index": open_index,
}


def open_file(path: Path, location: str) -> Source:
    """Open a file in the format that its content shows.

    A plug-in's opener (`register_source`) is asked where the content is of no built-in format and
    its name is the file's suffix, or its attribute `suffixes` holds that.

    Raises:
        SourceError: no format fits.
    """
    found = detect(path) or SUFFIXES.get(path.suffix)
    if found is not None:
        return _OPENERS[found](path, location)
    for name in SOURCES.names():
        if name in SOURCES.builtin:
            continue
        opener = SOURCES.get(name)
        if path.suffix and path.suffix in {f".{name}", *getattr(opener, "suffixes", ())}:
            source: Source = opener(path, location)
            return source
    raise SourceError(
        f"{path}: unknown format{_hint(path)}; known: {', '.join(SUFFIXES)}, a directory"
    )


def open_as(path: Path, location: str, format: str) -> Source:
    """Open a place in a format of the registry.

    Raises:
        SourceError: there is no such format.
    """
    if format in _OPENERS:
        return _OPENERS[format](path, location)
    if format not in SOURCES.names():
        known = [*SOURCES.names(), *_OPENERS]
        raise SourceError(f'{path}: no format "{format}"{nearest(format, known)}')
    source: Source = SOURCES.get(format)(path, location)
    return source


def detect(path: Path) -> str | None:
    """The format of a file's content: safetensors, torch, npz, index; None: none of them.

    Raises:
        SourceError: the file is empty or cannot be read, or is an archive of something else.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
    if size == 0:
        raise SourceError(f"{path}: not a whole file: it is empty")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _archive(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size, 1 << 32):
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"
    if head[257:262] == b"ustar":
        return "torch"
    return "index" if path.name.endswith(INDEX_SUFFIX) else None


def _archive(path: Path) -> str:
    """What a zip file holds; the central directory alone is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError):
        return SUFFIXES.get(path.suffix, "torch")  # cut short: the reader says so
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    shown = ", ".join(names[:4]) or "nothing"
    raise SourceError(f"{path}: a zip file of neither torch nor numpy; it holds {shown}"[:400])


def _hint(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    known = {
        b"\x93NUMPY": "one numpy array without a name; save it with numpy.savez",
        b"\x89HDF": "HDF5, as Keras writes it",
        b"GGUF": "GGUF",
        b"version https:/": "a pointer of Git LFS; fetch the file itself",
        b"\x1f\x8b": "compressed with gzip; unpack it",
    }
    return next((f" ({what})" for start, what in known.items() if head.startswith(start)), "")
