"""Files that no honest program writes: pickles by their instructions, zips around them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    """An instruction that pushes a string."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """An instruction that pushes a number of up to 255 bytes."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    """An instruction that pushes a global."""
    return f"c{module}\n{attribute}\n".encode()


def numbers(*values: int) -> bytes:
    """Instructions that push a tuple of numbers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def entry(key: str, value: bytes) -> bytes:
    """A dict with one entry."""
    return b"}" + text(key) + value + b"s"


def tensor(
    count: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    key: str = "0",
    stream: bool = False,
) -> bytes:
    """Instructions that push a float tensor on a storage of `count` elements."""
    saved_id = b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu")
    storage = saved_id + integer(count) + (b"N" if stream else b"") + b"tQ"
    arguments = storage + integer(offset) + numbers(*size) + numbers(*stride) + b"\x89}"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def program(body: bytes) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + body + b"."


def write_zip(
    path: Path,
    body: bytes,
    storages: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file in torch's zip format around a pickle's instructions."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(body))
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def write_stream(path: Path, body: bytes, keys: list[str], rest: bytes) -> Path:
    """A file in torch's format before 1.6 around a pickle's instructions."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(one, protocol=2) for one in (MAGIC, 1001, facts))
    path.write_bytes(head + program(body) + pickle.dumps(keys, protocol=2) + rest)
    return path
