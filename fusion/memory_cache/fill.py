"""Compute what a cache lacks: length-sorted, in blocks, shared out among ranks and processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from fusion.encoders.part import EncoderPart
from fusion.errors import FusionError, NoRoomError, TrainingError
from fusion.memory_cache.formats import FORMATS
from fusion.memory_cache.listing import Listing, bad_blocks, caches, drop, shown_bytes
from fusion.memory_cache.locks import Use, used
from fusion.memory_cache.reader import Layout
from fusion.memory_cache.store import DIGEST_TYPE, PER_SENTENCE, Block, Cache, digest_of, size_of
from fusion.processor import padded

Say = Callable[[str], None]
SAY_EVERY = 30.0
BLOCK_OVERHEAD = 128  # head, checksum, and a share of the directory
SPARE_DISK = 0.05  # share of the free disk that is left free


@dataclass(frozen=True)
class Filler:
    """What computes memories.

    Attributes:
        pad: padding id
        batch_tokens: sentences x longest of one forward pass
        autocast: run the encoder in bf16
    """

    part: EncoderPart
    layout: Layout
    pad: int
    device: torch.device
    batch_tokens: int
    autocast: bool = False

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[Sequence[int]]) -> bytes:
        """The bytes of sentences' memories, one after the other.

        Raises:
            TrainingError: the encoder gives values that are not finite.
        """
        return b"".join(self._encode(batch) for batch in self._batches(sentences))

    def _batches(self, sentences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        batch: list[Sequence[int]] = []
        longest = 0
        for ids in sentences:
            longest = max(longest, len(ids))
            if batch and (len(batch) + 1) * longest > self.batch_tokens:
                yield batch
                batch, longest = [], len(ids)
            batch.append(ids)
        yield batch

    def _encode(self, batch: list[Sequence[int]]) -> bytes:
        ids, mask = (tensor.to(self.device) for tensor in padded(batch, self.pad))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            states = self.part(ids, mask).states
        if self.layout.layers is not None:
            states = states.permute(1, 2, 0, 3)  # [B, S, L, M]
        real = states[mask.bool()].float().reshape(-1, self.layout.width).cpu()
        if not bool(real.isfinite().all()):
            raise TrainingError("the encoder gives values that are not finite")
        encoded: Tensor = FORMATS[self.layout.format].encode(real)
        return encoded.numpy().tobytes()


class Sentences:
    """The different sentences of a column of ids, by digest.

    Attributes:
        digests: `[n]`, sorted
        tokens: `[n]`
        of_row: per row of the column, which sentence it is
    """

    def __init__(self, column: Dataset) -> None:
        (self.name,) = column.column_names
        self.column = column
        digests, tokens = [], []
        for rows in column.iter(batch_size=1000):
            digests += [digest_of(ids) for ids in rows[self.name]]
            tokens += [len(ids) for ids in rows[self.name]]
        every = np.array(digests, DIGEST_TYPE)
        self.digests, self._first, self.of_row = np.unique(
            every, return_index=True, return_inverse=True
        )
        self.tokens = np.array(tokens, np.int64)[self._first]

    def __len__(self) -> int:
        return len(self.digests)

    def ids(self, chosen: NDArray[np.int64]) -> list[list[int]]:
        """The ids of some of the sentences."""
        rows: list[list[int]] = self.column[self._first[chosen].tolist()][self.name]
        return rows


@dataclass(frozen=True)
class Work:
    """What is to be in a cache.

    Attributes:
        block_bytes: states of one block, about
        max_bytes: of the whole directory; where several write there at the same time, each may
            pass it by a block
        in_use: names of caches that this run reads, and that are not dropped for another
    """

    sentences: Sentences
    block_bytes: int
    max_bytes: int | None
    in_use: tuple[str, ...]
    say: Say


@contextlib.contextmanager
def filled(cache: Cache, filler: Filler, work: Work) -> Iterator[None]:
    """Make a cache hold as much of the work as fits; every rank enters, and ends with the same.

    Inside, nobody drops the cache or its blocks, so that is where they are mapped. Another process
    may fill the same cache at the same time: each begins somewhere else and skips what the other
    has written.

    What the disk or max_bytes has no room for stays missing, and so does everything where the cache
    may only be read.

    Raises:
        FusionError: the cache's directory cannot be made, be it for want of room; a block cannot be
            written for another reason.
        TrainingError: the encoder gives values that are not finite.
    """
    state = PartialState()
    cache.open()
    with _in_use(cache) if state.is_main_process else contextlib.nullcontext() as use:
        _fill(cache, filler, work, state, use)
        yield
        state.wait_for_everyone()


@contextlib.contextmanager
def _in_use(cache: Cache) -> Iterator[Use]:
    """Mark an open cache as used by this run, all its ranks."""
    with contextlib.ExitStack() as stack:
        use = None
        while use is None:
            try:
                use = stack.enter_context(used(cache.directory))
            except FileNotFoundError:
                cache.open()
        yield use


def _fill(cache: Cache, filler: Filler, work: Work, state: Any, use: Use | None) -> None:
    _drop_bad(cache, work, state)
    state.wait_for_everyone()
    cache.refresh()
    token_bytes = filler.layout.token_bytes
    chosen = [np.zeros(0, np.int64) if use is None else _choose(cache, token_bytes, work, use)]
    broadcast_object_list(chosen)
    blocks = _blocks(chosen[0], token_bytes, work)
    mine = blocks[state.process_index :: state.num_processes]
    if mine:
        start = Random(os.urandom(8)).randrange(len(mine))
        _compute(cache, filler, work, mine[start:] + mine[:start])
    state.wait_for_everyone()
    cache.refresh()
    state.wait_for_everyone()


def _drop_bad(cache: Cache, work: Work, state: Any) -> None:
    """Check the blocks that will be read against their checksums; each rank its share."""
    cache.refresh()
    needed = [
        path
        for path in cache.paths()
        if path.name not in cache.blocks or _is_needed(cache.blocks[path.name], work)
    ]
    state.wait_for_everyone()  # all have the same list before one removes any
    bad = bad_blocks(needed[state.process_index :: state.num_processes])
    if cache.writable:
        for path in bad:
            path.unlink(missing_ok=True)
    for path, why in gather_object(list(bad.items())):
        work.say(f"{path}: {why}; dropped, to be computed again")
        cache.bad |= set() if cache.writable else {path.name}


def _is_needed(block: Block, work: Work) -> bool:
    """Whether any sentence of a block is of the text; as fast for a text of millions."""
    every = work.sentences.digests
    at = np.minimum(np.searchsorted(every, block.digests), len(every) - 1)
    return bool((every[at] == block.digests).any())


def _choose(cache: Cache, token_bytes: int, work: Work, use: Use) -> NDArray[np.int64]:
    """The sentences to compute, longest first, in the order of the blocks; makes room for them."""
    sentences = work.sentences
    missing = np.flatnonzero(~cache.locate(sentences.digests).found)
    missing = missing[np.argsort(-sentences.tokens[missing], kind="stable")]
    costs = np.cumsum(sentences.tokens[missing] * token_bytes + PER_SENTENCE)
    costs += BLOCK_OVERHEAD * (1 + costs // work.block_bytes)
    needed = int(costs[-1]) if len(costs) else 0
    work.say(
        f"{len(sentences):,} different sentences, {len(sentences) - len(missing):,} are in "
        f"{cache.directory}; the other {len(missing):,} take {shown_bytes(needed)}"
    )
    if needed and not cache.writable:
        work.say(f"{cache.directory}: may only be read; what it lacks is computed on the fly")
        return missing[:0]
    return missing[costs <= _make_room(cache, needed, work, use)]


def _make_room(cache: Cache, needed: int, work: Work, use: Use) -> int:
    """Bytes that may be written, after what is not needed was dropped for them."""
    room = needed
    if work.max_bytes is not None:
        listing = caches(cache.root)
        room = work.max_bytes - sum(one.bytes for one in listing)
        room += _drop_others(listing, needed - room, work)
        room += _drop_unneeded(cache, needed - room, work, use)
    return min(room, int(shutil.disk_usage(cache.root).free * (1 - SPARE_DISK)))


def _drop_others(listing: list[Listing], wanted: int, work: Work) -> int:
    """Bytes of the least recently used other caches, which go until there are enough."""
    freed = 0
    for one in listing:
        if freed >= wanted:
            break
        if one.name not in work.in_use:
            try:
                drop(one)
            except FusionError as error:  # another run is filling it, or it is another user's
                work.say(str(error))
                continue
            freed += one.bytes
            work.say(
                f"dropped {one.directory}, {shown_bytes(one.bytes)}, used least recently, "
                "for max_bytes"
            )
    return freed


def _drop_unneeded(cache: Cache, wanted: int, work: Work, use: Use) -> int:
    """Bytes of blocks of other text, which go until there are enough, if no other run is here."""
    if wanted <= 0:
        return 0
    blocks = [block.path for block in cache.blocks.values() if not _is_needed(block, work)]
    if not blocks:
        return 0
    freed = 0
    with use.alone() as alone:
        if not alone:
            work.say(f"{cache.directory}: another run is filling it, so its other blocks stay")
            return 0
        for path in blocks:
            if freed >= wanted:
                break
            with contextlib.suppress(FileNotFoundError):  # another process was first
                size = path.stat().st_size
                path.unlink()
                freed += size
    return freed


def _blocks(chosen: NDArray[np.int64], token_bytes: int, work: Work) -> list[NDArray[np.int64]]:
    """Cut into blocks, the same way for every rank and process that chose the same."""
    if not len(chosen):
        return []
    numbers = np.cumsum(work.sentences.tokens[chosen] * token_bytes) // work.block_bytes
    return np.split(chosen, np.flatnonzero(np.diff(numbers)) + 1)


def _compute(cache: Cache, filler: Filler, work: Work, blocks: list[NDArray[np.int64]]) -> None:
    said = time.monotonic()
    elsewhere: set[bytes] = set()  # what another process has written meanwhile
    for number, block in enumerate(blocks):
        for new in cache.refresh():
            elsewhere.update(new.digests.tolist())
        digests = work.sentences.digests[block]
        left = np.array([digest not in elsewhere for digest in digests.tolist()])
        if left.any():
            tokens = work.sentences.tokens[block[left]].astype(np.uint32)
            size = size_of(len(tokens), int(tokens.sum()) * filler.layout.token_bytes)
            try:
                _check_limit(cache, size, work)
                cache.write(digests[left], tokens, filler(work.sentences.ids(block[left])))
            except NoRoomError as error:
                work.say(f"{error}; what is not there is computed on the fly")
                return
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            work.say(f"{number + 1} of {len(blocks)} blocks")


def _check_limit(cache: Cache, size: int, work: Work) -> None:
    """Raise NoRoomError where a block has no room because another process writes there too."""
    limit = work.max_bytes
    if limit is not None and size + sum(one.bytes for one in caches(cache.root)) > limit:
        raise NoRoomError(cache.root, f"another run's blocks fill max_bytes: {shown_bytes(limit)}")
