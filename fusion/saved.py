"""Saved models on disk: written whole or not at all, read back in full, verified by digest.

    MODEL/config.json  glue.safetensors  ledger.json  generation_config.json  fusion_processor.json
    MODEL/host/             a plain transformers directory (config, weights, tokenizer)
    MODEL/encoders/NAME/    one for each encoder, likewise

A model without encoders is one plain transformers directory with a ledger beside its files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.safetensors import open_safetensors
from fusion.checkpoints.source import Source, tensor_digest
from fusion.errors import FusionError, LedgerError, ModelError, SourceError
from fusion.ledger import Entry, Ledger, Origin
from fusion.model import FusedConfig, FusedModel
from fusion.operations import parse, run
from fusion.processor import FusionProcessor
from fusion.warmstart import parameters_on_meta, warm_start

GLUE_FILE = "glue.safetensors"


def host_folder(model: FusedModel) -> str:
    """Where the host lies in a saved model."""
    return "host" if len(model.encoders) else "."


def parts_of(model: FusedModel) -> dict[str, str]:
    """Tensor prefix -> folder, for the parts that are directories of their own."""
    parts = {"host.": host_folder(model)}
    for name in model.encoders:
        parts[f"encoders.{name}.model."] = f"encoders/{name}"
    return parts


def save_model(
    model: FusedModel, directory: str | Path, processor: FusionProcessor | None = None
) -> None:
    """Write a model, its ledger and its tokenizers: to a temporary name, then renamed.

    Raises:
        ModelError: the directory exists and holds something else.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not is_model(directory):
        raise ModelError(f"{directory}: exists and is not a saved model; choose another place")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.parent / f".{directory.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        if processor is not None:
            processor.save_pretrained(temporary, host=host_folder(model))
        digests = write_weights(model, model.state_dict(), temporary, frozen=True)
        ledger = model.ledger.with_saved_digests(digests)
        (temporary / "ledger.json").write_text(ledger.to_json(), encoding="utf-8")
        if len(model.encoders):
            model.config.save_pretrained(temporary)
        model.generation_config.save_pretrained(temporary)
        _swap(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    model.ledger = ledger


def _swap(new: Path, place: Path) -> None:
    """Put a finished directory in its place; the old one goes last."""
    old = place.parent / f".{place.name}.{os.getpid()}.old"
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def write_weights(
    model: FusedModel, state: Mapping[str, Tensor], directory: Path, *, frozen: bool
) -> dict[str, str]:
    """Write each part's tensors and config, and the glue.

    Args:
        state: all tensors by full name
        frozen: write the frozen encoders as well; a training checkpoint leaves them out

    Returns:
        the digest of every tensor written, by full name
    """
    digests: dict[str, str] = {}
    rest = dict(state)
    for prefix, folder in parts_of(model).items():
        mine = {n.removeprefix(prefix): rest.pop(n) for n in list(rest) if n.startswith(prefix)}
        part = model.get_submodule(prefix.rstrip("."))
        if not frozen and not any(p.requires_grad for p in part.parameters()):
            continue
        (directory / folder).mkdir(parents=True, exist_ok=True)
        kept = {n: t for n, t in mine.items() if _is_saved(model.ledger, prefix + n)}
        _write(kept, directory / folder / "model.safetensors")
        part.config.save_pretrained(directory / folder)
        digests.update({prefix + n: tensor_digest(t) for n, t in kept.items()})
    if rest:
        _write(rest, directory / GLUE_FILE)
        digests.update({n: tensor_digest(t) for n, t in rest.items()})
    return digests


def _is_saved(ledger: Ledger, name: str) -> bool:
    """Tied names and what the class computes are not written."""
    entry = ledger.entries.get(name)
    return entry is None or entry.origin in (Origin.LOADED, Origin.INITIALISED)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, temporary, metadata={"format": "pt"})
    temporary.rename(path)


def is_model(directory: Path) -> bool:
    """Whether a directory is a model that fusion saved."""
    return (directory / "ledger.json").is_file()


def find_model(path: str | Path) -> Path:
    """The saved model that a path means: the model itself, or a run's output directory.

    Raises:
        ModelError: there is none.
    """
    path = Path(path)
    for candidate in (path, path / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    what = "is not a saved model" if path.exists() else "no such directory"
    raise ModelError(f"{path}: {what} (no config.json there or in model/)")


def read_config(directory: Path) -> FusedConfig:
    """The config of a saved model, or of a plain host directory as a model without encoders.

    Raises:
        ModelError: it is missing or broken.
    """
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory}: {str(error).splitlines()[0]}") from None
    return config if isinstance(config, FusedConfig) else FusedConfig(host=config.to_dict())


def load_model(path: str | Path) -> FusedModel:
    """Build a saved model on meta and fill every tensor from its files.

    Raises:
        ModelError, SourceError, WarmStartError: a file or tensor is missing, cut or left over.
    """
    directory = find_model(path)
    with parameters_on_meta():
        model = FusedModel(read_config(directory))
    filled = load_weights(model, part_sources(model, directory))
    saved = directory / "ledger.json"
    model.ledger = (
        Ledger.from_json(saved.read_text(encoding="utf-8"), saved) if saved.is_file() else filled
    )
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    model.eval()
    return model


def part_sources(model: FusedModel, directory: Path) -> dict[str, Source]:
    """Tensor prefix -> the files that hold that part."""
    sources = {p: open_source(directory / folder) for p, folder in parts_of(model).items()}
    if len(model.encoders):
        sources[""] = open_safetensors(directory / GLUE_FILE)
    return sources


def load_weights(model: FusedModel, sources: Mapping[str, Source]) -> Ledger:
    """Fill every part from its files, and check that nothing is missing or left over."""
    ledger = Ledger()
    for prefix, source in sources.items():
        if prefix:
            part = model.get_submodule(prefix.rstrip("."))
            filled = warm_start(
                part, source, compute=part._init_weights, computed=recomputed(part), prefix=prefix
            )
            ledger.merge(filled.prefixed(prefix))
        else:
            for name in ("glue", "mixes"):
                view = _Below(source, f"{name}.")
                filled = warm_start(model.get_submodule(name), view, prefix=f"{name}.")
                ledger.merge(filled.prefixed(f"{name}."))
    return ledger


def load_checkpoint(model: FusedModel, directory: Path) -> None:
    """Put a training checkpoint's tensors into a composed model; frozen parts stay as they are.

    Raises:
        SourceError, WarmStartError: the checkpoint is incomplete or of another model.
    """
    sources: dict[str, Source] = {}
    for prefix, folder in parts_of(model).items():
        part = model.get_submodule(prefix.rstrip("."))
        if any(parameter.requires_grad for parameter in part.parameters()):
            sources[prefix] = open_source(directory / folder)
    if len(model.encoders):
        sources[""] = open_safetensors(directory / GLUE_FILE)
    load_weights(model, sources)


class _Below(Source):
    """The tensors of a source below a prefix."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.source, self.prefix = source, prefix
        self.location, self.files = source.location, source.files

    def tensors(self) -> Mapping[str, object]:  # type: ignore[override]
        every = self.source.tensors()
        return {
            n.removeprefix(self.prefix): i for n, i in every.items() if n.startswith(self.prefix)
        }

    def read(self, name: str) -> Tensor:
        return self.source.read(self.prefix + name)


def recomputed(part: object) -> Callable[[str], bool]:
    """Whether a name is one that transformers computes when a checkpoint lacks it."""
    patterns = [
        re.compile(pattern)
        for attribute in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_save")
        for pattern in (getattr(part, attribute, None) or ())
    ]
    return lambda name: any(pattern.search(name) for pattern in patterns)


def verify_model(path: str | Path) -> list[str]:
    """Compare every saved tensor with the ledger, and frozen ones with their source if it is there.

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
    saved = directory / "ledger.json"
    ledger = Ledger.from_json(saved.read_text(encoding="utf-8"), saved)
    with parameters_on_meta():
        model = FusedModel(read_config(directory))
    problems: list[str] = []
    for prefix, source in part_sources(model, directory).items():
        problems += _verify_part(ledger, prefix, source)
    opened: dict[str, Source] = {}
    for location in sorted({e.source for e in ledger if e.frozen and e.source is not None}):
        problems += _verify_source(ledger, location, opened)
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


def _verify_source(ledger: Ledger, location: str, opened: dict[str, Source]) -> list[str]:
    """Frozen tensors against the checkpoint they came from; silent where it is no longer there."""
    try:
        source = open_source(location)
        headers = source.tensors()
    except SourceError as error:
        return [] if "no such" in str(error) or "no installed" in str(error) else [str(error)]
    problems = []
    for entry in ledger:
        if not (entry.frozen and entry.source == location and entry.keys):
            continue
        gone = [key for key in entry.keys if key not in headers]
        if gone and not entry.sources:
            problems.append(f"{entry.name}: {location} no longer has {' + '.join(gone)}")
        elif tensor_digest(made_again(entry, opened)) != entry.digest:
            what = " + ".join(entry.keys)
            problems.append(f"{entry.name}: {location}: {what} is no longer what was loaded")
    return problems


def made_again(entry: Entry, opened: dict[str, Source]) -> Tensor:
    """A tensor made from its source as the ledger says.

    Args:
        opened: sources by location, so that each is opened once
    """
    tensors = []
    for location, key in entry.origins:
        if location not in opened:
            opened[location] = open_source(location)
        tensors.append(opened[location].read(key))
    steps = [parse(data) for data in entry.operations if data != "rename"]
    return run(steps, tensors)[0]


def read_ledger(path: str | Path) -> Ledger:
    """The ledger of a saved model.

    Raises:
        LedgerError: there is none.
    """
    saved = find_model(path) / "ledger.json"
    try:
        return Ledger.from_json(saved.read_text(encoding="utf-8"), saved)
    except OSError:
        raise LedgerError(
            f"{saved}: no such file; fusion saves a ledger with every model"
        ) from None


def read_json(path: Path) -> dict[str, object]:
    """A JSON file of a run.

    Raises:
        FusionError: it is not whole.
    """
    try:
        raw: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FusionError(f"{path}: not whole JSON: {error}") from None
    return raw
