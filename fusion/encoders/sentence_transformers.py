"""A sentence-transformers directory as an encoder: where its transformer lies, and its prompt.

Format: `modules.json` lists the modules with their folders; the first one is the transformer, in
the root (`path: ""`) or in `0_Transformer/`. `config_sentence_transformers.json` holds prompts by
name and which of them is put before a text by default. Pooling and later modules are not read: a
memory is token states.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fusion.errors import SourceError

_MODULES, _PROMPTS = "modules.json", "config_sentence_transformers.json"


def transformer_directory(directory: Path) -> Path:
    """The folder with the transformer's config, weights and tokenizer; else `directory` itself.

    Raises:
        SourceError: `modules.json` names no transformer, or a folder that is not there.
    """
    path = directory / _MODULES
    if not path.is_file():
        return directory
    modules = _read(path)
    try:
        kinds = [str(module["type"]) for module in modules]
        folders = [str(module["path"]) for module in modules]
    except (KeyError, TypeError):
        raise SourceError(f"{path}: not a list of modules with type and path") from None
    for kind, folder in zip(kinds, folders, strict=True):
        if kind.rpartition(".")[2] == "Transformer":
            found = (directory / folder).resolve()
            if not found.is_relative_to(directory.resolve()) or not found.is_dir():
                raise SourceError(f"{path}: the transformer's folder {folder!r} is not there")
            return directory / folder if folder else directory
    raise SourceError(f"{path}: no Transformer among its modules: {', '.join(kinds) or 'none'}")


def default_prompt(directory: Path) -> str:
    """What is put before every text, E5's `query: ` for one; empty where nothing is.

    Raises:
        SourceError: the default prompt's name is not among the prompts.
    """
    path = directory / _PROMPTS
    if not path.is_file():
        return ""
    settings = _read(path)
    if not isinstance(settings, dict):
        raise SourceError(f"{path}: not an object")
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if name not in prompts:
        known = ", ".join(prompts) or "none"
        raise SourceError(f'{path}: default_prompt_name "{name}"; the prompts are: {known}')
    return str(prompts[name])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path}: not JSON: {error}") from None
