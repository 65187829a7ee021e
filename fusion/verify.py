"""Compare saved tensors with the ledger, and frozen ones with the source they came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusion.blank import blank_model
from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import Source, tensor_digest
from fusion.errors import LedgerError, SourceError
from fusion.ledger import Entry, Ledger
from fusion.saved import (
    MadeAgain,
    changed,
    find_model,
    is_model,
    part_sources,
    read_config,
    read_ledger,
)


def verify_model(path: str | Path, sources: Mapping[str, str] | None = None) -> list[str]:
    """Compare every tensor with the ledger, and frozen ones with their source if it is there.

    Reads every byte. A part that was saved without weights is made again from its source.

    Args:
        sources: part (`host` or an encoder's name) -> where its source is now

    Returns:
        one line per tensor that is not what the ledger says; empty: all is well

    Raises:
        ModelError, LedgerError: the directory is no saved model.
    """
    directory = find_model(path)
    if not is_model(directory):
        raise LedgerError(
            f"{directory}: no ledger.json; only a model that fusion saved can be verified"
        )
    ledger = read_ledger(directory)
    model = blank_model(read_config(directory))
    problems: list[str] = []
    made: set[str] = set()
    for prefix, source in part_sources(model, directory, ledger, sources).items():
        if isinstance(source, MadeAgain):
            problems += _verify_made(source)
            made.add(prefix)
        else:
            problems += _verify_part(ledger, prefix, source)
    rest = [e for e in ledger if e.frozen and not any(map(e.name.startswith, made))]
    for location in sorted({e.source for e in rest if e.source is not None}):
        problems += _verify_source([e for e in rest if e.source == location], location)
    return problems


def _verify_made(source: MadeAgain) -> list[str]:
    problems = []
    for name, entry in source.entries.items():
        try:
            same = tensor_digest(source.read(name)) == entry.digest
        except SourceError as error:
            problems.append(str(error))
            continue
        if not same:
            problems.append(changed(entry, source.location))
    return problems


def _verify_part(ledger: Ledger, prefix: str, source: Source) -> list[str]:
    problems = []
    seen = set()
    for key in source.tensors():
        name = prefix + key
        entry = ledger.entries.get(name)
        if entry is None:
            problems.append(f"{name}: in {source.location}, not in the ledger")
            continue
        seen.add(name)
        digest = tensor_digest(source.read(key))
        if digest != entry.saved_digest:
            problems.append(f"{name}: bytes differ from what was saved, in {source.files[0]}")
        elif entry.frozen and entry.digest != digest:
            problems.append(f"{name}: frozen, but no longer the bytes that were loaded")
    for entry in ledger:
        mine = (
            entry.name.startswith(prefix) if prefix else entry.name.startswith(("glue.", "mixes."))
        )
        if mine and entry.saved_digest is not None and entry.name not in seen:
            problems.append(f"{entry.name}: was saved, but is not in {source.location}")
    return problems


def _verify_source(entries: list[Entry], location: str) -> list[str]:
    """Frozen tensors against the checkpoint they came from; silent where it is no longer there."""
    try:
        headers = open_source(location).tensors()
    except SourceError as error:
        return [] if "no such" in str(error) or "no installed" in str(error) else [str(error)]
    problems, present = [], {}
    for entry in entries:
        gone = [key for key in entry.keys if key not in headers]
        if gone and not entry.sources:
            problems.append(f"{entry.name}: {location} no longer has {' + '.join(gone)}")
        else:
            present[entry.name] = entry
    return problems + _verify_made(MadeAgain(Ledger(present), ""))
