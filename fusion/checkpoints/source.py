"""What every checkpoint format offers, and the digests that identify tensors."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype, as the header tells them."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Source(ABC):
    """A checkpoint as a lazy stream of named tensors.

    Attributes:
        location: what the user wrote or the path, for messages
        files: the files read
    """

    location: str
    files: tuple[Path, ...]

    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Names, shapes and dtypes, from headers where the format has them."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor on the CPU.

        Raises:
            SourceError: the bytes cannot be read.
        """

    def digest(self, name: str) -> str:
        """`tensor_digest` of a stored tensor."""
        return tensor_digest(self.read(name))

    def nonfinite(self, name: str) -> str | None:
        """What a stored tensor holds that is not finite: "NaN", "infinity", or None."""
        return nonfinite(self.read(name))

    def header_digest(self) -> str:
        """sha256 of names, shapes, dtypes and file sizes: identifies a file without its weights."""
        digest = hashlib.sha256()
        for name, info in sorted(self.tensors().items()):
            digest.update(f"{name}\0{info.shape}\0{info.dtype}\n".encode())
        for path in self.files:
            digest.update(f"{path.stat().st_size}\n".encode())
        return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of dtype, shape and bytes (row-major, as stored)."""
    digest = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def nonfinite(tensor: Tensor) -> str | None:
    """ "NaN" or "infinity" where a floating point tensor holds one, else None."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    return "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
