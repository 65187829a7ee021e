"""What rules are proposed for: the module of a config, or the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoConfig

from fusion.checkpoints.directory import locate, open_source
from fusion.checkpoints.source import Source, TensorInfo
from fusion.encoders.auto import build_auto_encoder
from fusion.errors import SiteError, SourceError
from fusion.hosts.family import family_of
from fusion.proposals.proposal import Proposal, suggest, tensors_of
from fusion.warmstart import parameters_on_meta


def propose(target: str, source: Source) -> Proposal:
    """Rules that take a source into a target.

    Args:
        target: a directory or hub id with a transformers config (a host where fusion knows the
            family, else an encoder), or a checkpoint whose names are wanted

    Raises:
        SourceError: the target is not there, or cannot be read.
    """
    tensors, ties = _target(target)
    return suggest(tensors, source.tensors(), ties)


def _target(target: str) -> tuple[Mapping[str, TensorInfo], Sequence[Sequence[str]]]:
    path = locate(target)
    if not (path / "config.json").is_file():
        return open_source(target).tensors(), ()
    return _module(path)


def _module(directory: Path) -> tuple[Mapping[str, TensorInfo], Sequence[Sequence[str]]]:
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{directory}: no config: {str(error).splitlines()[0]}") from None
    with parameters_on_meta():
        try:
            module = family_of(config)[1].build(config)
        except SiteError:
            module = build_auto_encoder(config)
    return tensors_of(module)
