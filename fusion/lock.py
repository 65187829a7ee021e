"""RECIPE.lock: what a recipe's parts are made of, written down; a later difference has a name."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusion.checkpoints.source import file_digests
from fusion.composition import recipe_parts
from fusion.errors import RecipeError
from fusion.keymap import KeyMap
from fusion.operations import parse
from fusion.parts import Part, host_recipe, part_directories, untrained_host
from fusion.recipe import Recipe
from fusion.writing import write_json

FORMAT = 2
_LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors")
_MEANING = {".json", ".txt", ".model", ".spm", ".vocab", ".jinja", ".codes", ".bpe", ".tiktoken"}


def lock_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe composes now: files, tensors and rules of every part, and versions.

    `beside` are the files that say what the tensors mean: configs and tokenizers in the part's
    directory, and what its rules name.

    Reads every byte of the sources that are not in the digest cache. A host that another recipe
    has yet to train is locked by that recipe.
    """
    _, parts = recipe_parts(recipe)
    content: dict[str, Any] = {
        "format": FORMAT,
        "recipe": recipe.digest(),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "parts": {},
    }
    content["versions"]["python"] = platform.python_version()
    for part in parts:
        if part.source is None:
            content["parts"][part.prefix] = {"init": part.init, "beside": {}}
            continue
        names = sorted(part.source.tensors())
        content["parts"][part.prefix] = {
            "source": part.where,
            "revision": _revision(part.source.files[0]),
            "files": part.source.file_digests(),
            "beside": file_digests(_files_of_rules(part)),
            "tensors": {name: part.source.digest(name) for name in names},
            "rules": part.rules,
            "ignore": part.ignore,
            "init": part.init,
        }
    for prefix, directories in part_directories(recipe).items():
        files = [path for one in directories for path in sorted(one.iterdir()) if path.is_file()]
        kept = file_digests(path for path in files if path.suffix in _MEANING)
        content["parts"][prefix]["beside"] |= kept
    if (below := untrained_host(recipe)) is not None:
        content["parts"]["host."] = {"recipe": below.digest()}
    return content


def _files_of_rules(part: Part) -> Iterator[Path]:
    """Vocabularies and the code of functions that a part's rules name."""
    for rule in KeyMap.parse(part.rules).rules:
        for step in map(parse, rule.operations):
            yield from step.files()


def _revision(file: Path) -> str | None:
    """The commit of a hub snapshot that a file is in."""
    folders = file.parts
    return folders[folders.index("snapshots") + 1] if "snapshots" in folders else None


def lock_path(recipe_file: Path) -> Path:
    """Where a recipe's lock lies: beside it."""
    return recipe_file.with_name(recipe_file.name + ".lock")


def write_lock(recipe: Recipe, recipe_file: Path) -> Path:
    """Write RECIPE.lock."""
    path = lock_path(recipe_file)
    write_json(path, lock_of(recipe))
    return path


def check_lock(recipe: Recipe, recipe_file: Path) -> None:
    """Compare a recipe with its lock.

    Raises:
        RecipeError: there is no lock, or something differs; every difference is named.
    """
    path = lock_path(recipe_file)
    try:
        locked = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(locked, dict) or locked.get("format") != FORMAT:
            raise ValueError(f"format {FORMAT} expected")
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: no such file; fusion plan {recipe_file} --lock writes it"
        ) from None
    except ValueError as error:
        raise RecipeError(f"{path}: not a lock: {error}") from None
    now = json.loads(json.dumps(lock_of(recipe)))
    below = host_recipe(recipe)
    if below is not None and "recipe" in locked.get("parts", {}).get("host.", {}):
        now["parts"]["host."] = {"recipe": below.digest()}  # it was locked before it was trained
    found = differences(locked, now)
    tensors = [line for line in found if ".tensors." in line]
    shown = [line for line in found if not (tensors and ".files." in line)]
    if shown:
        raise RecipeError("\n".join(f"{path}: {line}" for line in shown))


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """One line per value that differs between two JSON contents, by its place."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in [*old, *(key for key in new if key not in old)]:
            place = f"{where}.{key}" if where else str(key)
            if key not in new:
                lines.append(f"{place}: is gone; it was {_short(old[key])}")
            elif key not in old:
                lines.append(f"{place}: is new: {_short(new[key])}")
            else:
                lines += differences(old[key], new[key], place)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for index, (one, other) in enumerate(zip(old, new, strict=True))
            for line in differences(one, other, f"{where}[{index}]")
        ]
    return [] if old == new else [f"{where}: was {_short(old)}, is {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
