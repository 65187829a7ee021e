"""Checkpoints of other toolkits by the toolkit's name: what they become here, by which rules.

A description is remembered until a file beside the checkpoint changes: finding it reads the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from fusion.checkpoints.bert_nmt import HOST, describe_bert_nmt, piece
from fusion.checkpoints.digests import stamp
from fusion.checkpoints.fairseq import describe_fairseq
from fusion.checkpoints.foreign import Foreign
from fusion.checkpoints.joeynmt import describe_joeynmt
from fusion.checkpoints.marian import describe_marian
from fusion.checkpoints.opennmt import describe_opennmt
from fusion.checkpoints.sockeye import describe_sockeye

HOSTS_OF: dict[str, Callable[[Path], Foreign]] = {
    "fairseq": describe_fairseq,
    "marian": describe_marian,
    "opennmt": describe_opennmt,
    "joeynmt": describe_joeynmt,
    "sockeye": describe_sockeye,
}


def describe_host(path: Path, toolkit: str | None) -> Foreign | None:
    """The host that a toolkit's checkpoint becomes; None where the format is no toolkit's.

    Of a fused checkpoint of bert-nmt it is the host alone; see `describe_fused`.
    """
    if toolkit == "bert-nmt":
        return piece(describe_fused(path), HOST)
    if toolkit not in HOSTS_OF:
        return None
    return _described(toolkit, path, _stamps(path))


def describe_fused(path: Path) -> Foreign:
    """The whole model of a checkpoint of bert-nmt."""
    return _described("bert-nmt", path, _stamps(path))


@lru_cache(maxsize=16)
def _described(toolkit: str, path: Path, stamps: object) -> Foreign:
    return describe_bert_nmt(path) if toolkit == "bert-nmt" else HOSTS_OF[toolkit](path)


def _stamps(path: Path) -> tuple[tuple[str, ...], ...]:
    """What the checkpoint is like now, and every file where a vocabulary of it may lie."""
    folder = path if path.is_dir() else path.parent
    found: list[tuple[str, ...]] = []
    for place in (folder, folder / "data-bin"):
        with contextlib.suppress(OSError):
            for one in sorted(place.iterdir()):
                found.append((str(one), *map(str, stamp(one))))
    return tuple(found)
