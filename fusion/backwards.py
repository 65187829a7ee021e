"""Rules run backwards: a model's tensors under the names and in the shapes of their source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fusion.errors import KeyMapError, WarmStartError
from fusion.ledger import Entry, Origin
from fusion.operations import Operation, Piece, parse


@dataclass
class _Half:
    """A tensor on its way back: the steps that are still to be undone, first one first."""

    keys: tuple[str, ...]
    steps: list[Operation]
    tensor: Tensor
    name: str


def backwards(entries: Iterable[Entry], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every source tensor, made from the tensors that were made of it.

    Args:
        entries: of the ledger; initialised and computed tensors have no source and are left out
        tensors: by the entries' names

    Raises:
        WarmStartError: lists every tensor whose operations lose something, and every piece that is
            missing to make a whole.
    """
    problems: list[str] = []
    found: dict[str, Tensor] = {}
    pieces: dict[tuple[tuple[str, ...], str], list[_Half]] = {}
    waiting = [_half(entry, tensors) for entry in entries if _has_source(entry)]
    while waiting:
        half = waiting.pop(0)
        try:
            rest = _undo(half, found, problems)
        except KeyMapError as error:
            problems.append(f"{half.name}: {error}")
            continue
        if rest is None:
            continue
        before = json.dumps([step.to_data() for step in rest.steps[:-1]], default=list)
        group = pieces.setdefault((rest.keys, before), [])
        group.append(rest)
        whole = _assembled(group)
        if whole is not None:
            del pieces[rest.keys, before]
            waiting.append(whole)
    for (keys, _), group in pieces.items():
        here = ", ".join(half.name for half in group)
        problems.append(f"{keys[0]}: only a part of it is in the model: {here}")
    if problems:
        raise WarmStartError("\n".join(problems))
    return found


def _has_source(entry: Entry) -> bool:
    return bool(entry.keys) and entry.origin in (Origin.LOADED, Origin.TIED)


def _half(entry: Entry, tensors: Mapping[str, Tensor]) -> _Half:
    steps = [parse(data) for data in entry.operations if data != "rename"]
    return _Half(entry.keys, steps, tensors[entry.name].detach(), entry.name)


def _undo(half: _Half, found: dict[str, Tensor], problems: list[str]) -> _Half | None:
    """Undo steps up to one that took a piece; what is whole goes into `found`."""
    steps, tensors = list(half.steps), [half.tensor]
    while steps:
        if isinstance(steps[-1], Piece):
            return _Half(half.keys, steps, tensors[0], half.name)
        tensors = steps.pop().invert(tensors[0])
    for key, tensor in zip(half.keys, tensors, strict=True):
        if key in found and not found[key].equal(tensor):
            problems.append(f"{half.name}: {key} has other values in another tensor of the model")
        found[key] = tensor.contiguous()
    return None


def _assembled(group: list[_Half]) -> _Half | None:
    """The whole of a group of pieces, once all of them are there."""
    first = group[0]
    steps = [half.steps[-1] for half in group]
    places = {s.place()[0]: h for s, h in zip(steps, group, strict=True) if isinstance(s, Piece)}
    last = steps[0]
    assert isinstance(last, Piece)
    parts = last.place()[1]
    if len(places) < parts:
        return None
    whole = last.assemble([places[index].tensor for index in range(parts)])
    return _Half(first.keys, first.steps[:-1], whole, first.name)
