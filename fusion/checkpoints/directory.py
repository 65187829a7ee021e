"""Where a source lies (path, package, hub), and which files of a directory hold its tensors."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from fusion.checkpoints.safetensors import SafetensorsSource, open_safetensors
from fusion.checkpoints.source import Source
from fusion.checkpoints.torch import TorchSource, open_torch
from fusion.errors import SourceError, nearest

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def locate(source: str) -> Path:
    """The file or directory that a source means.

    Args:
        source: a path, `package:NAME/PATH` inside an installed package, or a hub id `org/name`,
            `org/name@revision` (from the local cache where it is there)

    Raises:
        SourceError: it is not there.
    """
    if source.startswith("package:"):
        return _locate_package(source)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or source.startswith(".") or not _HUB_ID.fullmatch(source):
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"{source}: no such file or directory{nearest(path.name, siblings)}")
    return _locate_hub(source)


def _locate_package(source: str) -> Path:
    package, _, rest = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"{source}: no installed package {package}; pip install {package.replace('_', '-')}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / rest
    if not path.exists():
        raise SourceError(f"{source}: the package has no {rest}")
    return path


def _locate_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    wanted = ["*.json", "*.safetensors", "*.bin", "*.model", "*.spm", "*.txt"]
    for local_only in (True, False):
        try:
            return Path(
                snapshot_download(
                    name,
                    revision=revision or None,
                    allow_patterns=wanted,
                    local_files_only=local_only,
                )
            )
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            problem = error
    raise SourceError(
        f"{source}: no such path, and the hub gives no such model: {str(problem).splitlines()[0]}"
    )


def open_source(source: str | Path) -> Source:
    """Open a checkpoint: a file, a Hugging Face directory, a package path or a hub id.

    Raises:
        SourceError: nothing there that can be read.
    """
    location = str(source)
    path = locate(location)
    if path.is_dir():
        return open_directory(path, location)
    if path.suffix == ".safetensors":
        return open_safetensors(path, location)
    if path.suffix in {".pt", ".pth", ".bin"}:
        return open_torch(path, location)
    raise SourceError(f"{path}: unknown format; known: .safetensors, .pt, .pth, .bin, a directory")


def open_directory(path: Path, location: str | None = None) -> Source:
    """The weights of a Hugging Face directory: single or sharded, safetensors before torch."""
    location = location or str(path)
    for name in _WEIGHTS:
        kind = SafetensorsSource if name.endswith(".safetensors") else TorchSource
        if (path / name).is_file():
            return kind(location, (path / name,))
        index = path / f"{name}.index.json"
        if index.is_file():
            return kind(location, _shards(index))
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise SourceError(f"{path}: holds no {' or '.join(_WEIGHTS)}; found: {found}")


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(f"{index}: not a shard index: {error}") from None
    shards = []
    for name in names:
        if not isinstance(name, str):
            raise SourceError(f"{index}: not a shard index: shard {name!r} is no file name")
        shard = index.parent / name
        if Path(name).name != name:
            raise SourceError(f"{index}: shard {name!r} is outside the directory")
        if not shard.is_file():
            raise SourceError(f"{index}: shard {name} is missing")
        shards.append(shard)
    return tuple(shards)
