"""Paths in a recipe are relative to the file that wrote them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def anchored(
    raw: dict[str, Any], folder: Path, base: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Make the paths of a recipe absolute, relative to the recipe that wrote them.

    Args:
        base: the recipe that this one extends; it may say that `source` is a column, not a file
    """
    raw = dict(raw)
    if isinstance(raw.get("output"), str):
        raw["output"] = _absolute(raw["output"], folder)
    if isinstance(_mapping(raw.get("memory_cache")).get("dir"), str):
        cache = raw["memory_cache"]
        raw["memory_cache"] = cache | {"dir": _absolute(cache["dir"], folder)}
    if isinstance(raw.get("host"), dict):
        raw["host"] = _anchor_part(raw["host"], folder)
    if isinstance(raw.get("encoders"), dict):
        raw["encoders"] = {
            name: _anchor_part(part, folder) if isinstance(part, dict) else part
            for name, part in raw["encoders"].items()
        }
    if isinstance(raw.get("glue"), list):
        raw["glue"] = [
            _anchor_part(part, folder, ("source",)) if isinstance(part, dict) else part
            for part in raw["glue"]
        ]
    if isinstance(raw.get("data"), dict):
        data, below = dict(raw["data"]), _mapping(_mapping(base).get("data"))
        for key in ("train", "dev"):
            if key in data:
                data[key] = _anchor_corpus(data[key], folder, below.get(key))
        if isinstance(data.get("tests"), dict):
            tests = _mapping(below.get("tests"))
            data["tests"] = {
                name: _anchor_corpus(corpus, folder, tests.get(name))
                for name, corpus in data["tests"].items()
            }
        raw["data"] = data
    return raw


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _absolute(path: str, folder: Path) -> str:
    return str((folder / os.path.expanduser(path)).resolve())


def _anchor_part(
    part: dict[str, Any], folder: Path, keys: tuple[str, ...] = ("source", "tokenizer", "config")
) -> dict[str, Any]:
    part = dict(part)
    for key in keys:
        if isinstance(part.get(key), str):
            part[key] = _anchor_source(part[key], folder)
    if isinstance(part.get("rules"), dict):
        part["rules"] = {
            target: _anchor_rule(rule, folder) if isinstance(rule, dict) else rule
            for target, rule in part["rules"].items()
        }
    return part


def _anchor_rule(rule: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Vocabulary files of a rule are relative to the recipe too."""
    if not isinstance(rule.get("ops"), list):
        return rule
    ops: list[Any] = []
    for op in rule["ops"]:
        given = op.get("vocabulary") if isinstance(op, dict) else None
        if isinstance(given, dict):
            files = {k: v for k, v in given.items() if k in ("old", "new") and isinstance(v, str)}
            given = given | {key: _absolute(file, folder) for key, file in files.items()}
            op = op | {"vocabulary": given}
        ops.append(op)
    return rule | {"ops": ops}


def _anchor_source(source: str, folder: Path) -> str:
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "recipe":
        return f"recipe:{_absolute(rest, folder)}"
    if colon and scheme == "package":
        return source
    is_path = source.startswith((".", "/", "~")) or (folder / source).exists()
    return _absolute(source, folder) if is_path else source


def _anchor_corpus(corpus: Any, folder: Path, base: Any = None) -> Any:
    if isinstance(corpus, list):
        return [_anchor_corpus(item, folder) for item in corpus]
    if not isinstance(corpus, dict):
        return corpus
    merged = _mapping(base) | corpus
    corpus = dict(corpus)
    for key in ["file"] if merged.get("file") or merged.get("hub") else ["source", "target"]:
        if isinstance(corpus.get(key), str):
            corpus[key] = _absolute(corpus[key], folder)
    return corpus
