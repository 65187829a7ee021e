"""Training batches with memory read by memory map."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.errors import FusionError
from fusion.memory_cache.formats import FORMATS
from fusion.memory_cache.store import Places
from fusion.processor import FusionProcessor


@dataclass(frozen=True)
class Layout:
    """How a token's bytes are read.

    Attributes:
        format: name in FORMATS
        width: M
        layers: L where a mix is taken of all layers, else None
    """

    format: str
    width: int
    layers: int | None

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return FORMATS[self.format].bytes_per_token(self.width)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token: of all its layers."""
        return self.state_bytes * (self.layers or 1)


class MemoryReader:
    """The memories of a data set's rows, by row.

    Args:
        places: of every row's sentence
        tokens: of every row's sentence

    The blocks are mapped at once, so that a cache that is dropped meanwhile can still be read. Rows
    of a block that is gone by then are not cached.

    Raises:
        FusionError: the system maps no more files.
    """

    def __init__(self, places: Places, layout: Layout, tokens: NDArray[np.int64]) -> None:
        self.layout, self.tokens = layout, tokens
        self.paths: list[Path] = []
        self.start = places.start
        self._maps: list[NDArray[np.uint8]] = []
        numbers = np.full(len(places.paths) + 1, -1, np.int32)  # the last: of what is in no block
        for block in np.unique(places.block[places.found]):
            with contextlib.suppress(FileNotFoundError):
                self._maps.append(_map(places.paths[block]))
                self.paths.append(places.paths[block])
                numbers[block] = len(self.paths) - 1
        self.block = numbers[places.block]

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked: they map the blocks themselves."""
        return self.__dict__ | {"_maps": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            self._maps = [_map(path) for path in self.paths]
        except FileNotFoundError as error:
            raise FusionError(
                f"memory_cache.dir: {error.filename} was removed; run the same command again"
            ) from None

    @property
    def cached(self) -> NDArray[np.bool_]:
        """Which rows are in the cache."""
        return self.block >= 0

    def gather(self, rows: list[int]) -> Tensor:
        """`[B, S, M]`, or `[L, B, S, M]` of a mix; zero at padding and rows that are not cached."""
        size = self.layout.token_bytes
        longest = int(self.tokens[rows].max())
        raw = np.zeros((len(rows), longest * size), np.uint8)
        for target, row in zip(raw, rows, strict=True):
            block, start, length = self.block[row], self.start[row], self.tokens[row] * size
            if block >= 0:
                target[:length] = self._maps[block][start : start + length]
        tensor = torch.from_numpy(raw).view(len(rows), longest, size)
        layers = self.layout.layers
        if layers is not None:
            tensor = tensor.view(*tensor.shape[:2], layers, -1).permute(2, 0, 1, 3).contiguous()
        return FORMATS[self.layout.format].decode(tensor, self.layout.width)


def _map(path: Path) -> NDArray[np.uint8]:
    """A file's bytes; torch's map keeps no file open, so that there may be thousands of them."""
    size = path.stat().st_size
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
        raise FusionError(
            f"memory_cache: {path}: cannot be mapped: {error}; larger block_bytes need fewer maps"
        ) from None


class CachedBatches:
    """Rows -> a padded batch, as `FusionProcessor.pad`, with memory in place of encoders' ids.

    A row has its number in `row`; ids of an encoder whose rows are all cached it needs not. For
    every encoder with a cache the batch has:

    `{encoder}_memory`          `[B, S, M]` or `[L, B, S, M]`
    `{encoder}_attention_mask`  `[B, S]`; left out where no sentence has padding
    `{encoder}_input_ids`       only where a sentence is not cached: `[B, S]`, with
    `{encoder}_cached`          `[B]`, False for those sentences

    Where no sentence of the batch is cached it has ids and mask alone, as without a cache.
    """

    def __init__(self, processor: FusionProcessor, readers: dict[str, MemoryReader]) -> None:
        self.processor, self.readers = processor, readers

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.processor.pad(rows)
        for name, reader in self.readers.items():
            self._add(batch, name, reader, [row["row"] for row in rows])
        return batch

    def _add(
        self, batch: dict[str, Tensor], name: str, reader: MemoryReader, rows: list[int]
    ) -> None:
        cached = torch.from_numpy(reader.cached[rows])
        if not cached.any():
            return
        batch[f"{name}_memory"] = reader.gather(rows)
        if not cached.all():
            batch[f"{name}_cached"] = cached
            return
        batch.pop(f"{name}_input_ids", None)
        batch.pop(f"{name}_attention_mask", None)
        lengths = torch.from_numpy(reader.tokens[rows])
        longest = int(lengths.max())
        if int(lengths.min()) < longest:
            mask = torch.arange(longest) < lengths.unsqueeze(-1)
            batch[f"{name}_attention_mask"] = mask.long()
