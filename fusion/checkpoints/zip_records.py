"""Where a zip file's records lie, and what reading a damaged one may raise."""

from __future__ import annotations

import struct
import zipfile
import zlib

from torch import Tensor

LOCAL_HEADER = 30  # bytes before a record's name
ZIP_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)


def crc32(data: Tensor) -> int:
    """The checksum of a flat tensor of bytes."""
    return zlib.crc32(data.numpy().data) if len(data) else 0


def record_start(record: zipfile.ZipInfo, header: bytes) -> int:
    """Where a stored record's bytes begin, from the first `LOCAL_HEADER` bytes of its header."""
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start: int = record.header_offset + LOCAL_HEADER + name_length + extra_length
    return start
