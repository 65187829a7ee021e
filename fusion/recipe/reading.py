"""YAML with `extends:`, environment variables and overrides -> one plain dict."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from fusion.errors import RecipeError, nearest
from fusion.recipe.paths import anchored


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 5e-4 is a number, as in YAML 1.2, and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{key.value}" is written twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain dict of a recipe and of all that it extends, paths made absolute."""
    resolved = path.resolve()
    if resolved in above:
        raise RecipeError(f"{path}: extends itself: {' -> '.join(p.name for p in above)}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(f"{path}: no such recipe{nearest(path.name, siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        raw = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys; found {type(raw).__name__}")
    try:
        raw = _expand(raw, path, "")
    except RecursionError:
        raise RecipeError(f"{path}: not valid YAML: an alias stands inside what it names") from None
    parent = raw.pop("extends", None)
    if parent is None:
        return anchored(raw, resolved.parent)
    if not isinstance(parent, str):
        raise RecipeError(f"{path}: extends: the path of a recipe; found {parent!r}")
    below = path.parent / parent
    if not below.is_file():
        near = nearest(below.name, [found.name for found in below.parent.glob("*.yaml")])
        raise RecipeError(f'{path}: extends: no recipe "{parent}"{near}')
    base = read_recipe(below, (*above, resolved))
    return _merge(base, anchored(raw, resolved.parent, base))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any, path: Path, key: str) -> Any:
    """`${NAME}` and `${NAME:-default}` in every string."""
    if isinstance(value, dict):
        return {k: _expand(v, path, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, path, f"{key}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def substitute(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise RecipeError(
                f"{path}: {key}: environment variable {match[1]} is not set; "
                f"export {match[1]}=... or write ${{{match[1]}:-default}}"
            )
        return found

    return _VARIABLE.sub(substitute, value)


def override_value(raw: dict[str, Any], override: str, path: Path) -> None:
    """Put the value of `a.b=value` into its place."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(f'{path}: override "{override}": write it as a.b=value')
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        raise RecipeError(f'{path}: override "{override}": the value is not valid YAML') from None
    value = _expand(value, path, dotted)
    node: Any = raw
    keys = _keys(raw, dotted.split("."))
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        where = ".".join(keys[: depth + 1])
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                last_index = len(node) - 1
                raise RecipeError(f"{path}: override {where}: the list goes from 0 to {last_index}")
            if last:
                node[int(key)] = value
            else:
                node = node[int(key)]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            else:
                node = node.setdefault(key, {})
        else:
            above = ".".join(keys[:depth])
            raise RecipeError(f"{path}: override {where}: {above} is a plain value: {node!r}")


def _keys(node: Any, pieces: list[str]) -> list[str]:
    """The keys of a dotted place; a key that is there may itself have dots (`encoders.bert`)."""
    if not pieces:
        return []
    taken = 1
    if isinstance(node, dict):
        taken = next((n for n in range(len(pieces), 0, -1) if ".".join(pieces[:n]) in node), 1)
    key = ".".join(pieces[:taken])
    inner: Any = None
    if isinstance(node, dict):
        inner = node.get(key)
    elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        inner = node[int(key)]
    return [key, *_keys(inner, pieces[taken:])]
