"""Where a source lies (path, package, hub), and which files of a directory hold its tensors."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from fusion.checkpoints.distributed import METADATA, open_distributed
from fusion.checkpoints.formats import SUFFIXES, open_as, open_file
from fusion.checkpoints.safetensors import SafetensorsSource
from fusion.checkpoints.shards import read_index
from fusion.checkpoints.source import Source
from fusion.checkpoints.torch import TorchSource
from fusion.errors import SourceError, nearest
from fusion.registry import SOURCES

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ONLINE = not HF_HUB_OFFLINE
_WANTED = ["*.json", "*.safetensors", "*.bin", "*.model", "*.spm", "*.txt"]


def locate(source: str) -> Path:
    """The file or directory that a source means.

    Args:
        source: a path (a run's output directory means its model), `package:NAME/PATH` inside an
            installed package, or a hub id `org/name`, `org/name@revision` (branch, tag or commit;
            from the local cache where it is there)

    Raises:
        SourceError: it is not there.
    """
    if source.startswith("package:"):
        return _locate_package(source)
    path = Path(source).expanduser()
    try:
        if path.exists():
            return within_run(path)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise SourceError(f"{source[:80]}: {error.strerror}") from None
    is_file = path.suffix in SUFFIXES
    if is_file or path.is_absolute() or source.startswith(".") or not _HUB_ID.fullmatch(source):
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"{source}: no such file or directory{nearest(path.name, siblings)}")
    return _locate_hub(source)


def within_run(path: Path) -> Path:
    """The model in a run's output directory; any other file or directory itself."""
    inner, config = path / "model", "config.json"
    return inner if (inner / config).is_file() and not (path / config).is_file() else path


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


def _locate_hub(source: str, *, weights: bool = False) -> Path:
    """A snapshot in the hub's cache, downloaded if it is not there and the hub may be asked.

    Args:
        weights: a snapshot of which only configs are in the cache is not enough
    """
    name, _, revision = source.partition("@")
    if ".." in revision:
        raise SourceError(f"{source}: {revision} is no revision")
    problem = ""
    for local_only in (True, False):
        try:
            found = snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=_WANTED,
                local_files_only=local_only,
            )
            if not (weights and local_only and not _holds_weights(Path(found)) and _ONLINE):
                return Path(found)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not _ONLINE:
            problem = f"HF_HUB_OFFLINE is set and the cache lacks it{_cached(name, revision)}"
            break
    raise SourceError(f"{source}: no such path, and the hub gives no such model: {problem}")


def _holds_weights(path: Path) -> bool:
    wanted = [*_WEIGHTS, *(f"{name}.index.json" for name in _WEIGHTS), METADATA]
    return any((path / name).is_file() for name in wanted)


def _cached(name: str, revision: str) -> str:
    """What the cache has instead: revisions of this model, or nothing."""
    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    refs = [path for path in (folder / "refs").rglob("*") if path.is_file()]
    names = [str(path.relative_to(folder / "refs")) for path in refs]
    return nearest(revision, [*names, *(path.name for path in (folder / "snapshots").glob("*"))])


def open_source(source: str | Path, format: str | None = None) -> Source:
    """Open a checkpoint: a file, a directory, a package path or a hub id.

    Args:
        format: a name of `fusion list` ("torch", a plug-in's, ...); by default the content decides.
            The location of what is opened then is `FORMAT:PLACE`, which opens the same again

    Raises:
        SourceError: nothing there that can be read.
    """
    location = str(source)
    if format is None and (scheme := location.partition(":")[0]) in SOURCES.names():
        format, location = scheme, location.partition(":")[2]
    path = locate(location)
    on_disk = location.startswith("package:") or Path(location).expanduser().exists()
    if not on_disk and "snapshots" in path.parts:
        path = _locate_hub(location, weights=True)
    if format is not None:
        return open_as(path, f"{format}:{location}", format)
    return open_directory(path, location) if path.is_dir() else open_file(path, location)


def open_directory(path: Path, location: str | None = None) -> Source:
    """The weights of a directory.

    In this order: Hugging Face's safetensors, single or sharded; its torch files, single or
    sharded; a folder of torch.distributed.checkpoint.
    """
    location = location or str(path)
    for name in _WEIGHTS:
        kind = SafetensorsSource if name.endswith(".safetensors") else TorchSource
        if (path / name).is_file():
            return kind(location, (path / name,))
        index = path / f"{name}.index.json"
        if index.is_file():
            shards = read_index(index)
            return kind(location, shards.files, shards)
    if (path / METADATA).is_file():
        return open_distributed(path, location)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise SourceError(
        f"{path}: holds no {' or '.join(_WEIGHTS)} (or {METADATA} of torch.distributed.checkpoint)"
        f"; found: {found}"
    )
