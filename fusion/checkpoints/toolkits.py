"""Checkpoints of other toolkits by the toolkit's name: what host they become, by which rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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

    A fused checkpoint of bert-nmt is a whole model, not a host: see `bert_nmt.describe_bert_nmt`.
    """
    return HOSTS_OF[toolkit](path) if toolkit in HOSTS_OF else None
