"""Saved models on disk: written whole or not at all, read back in full, verified by digest.

    MODEL/config.json  glue.safetensors  ledger.json  generation_config.json  fusion_processor.json
    MODEL/host/             a plain transformers directory (config, weights, tokenizer)
    MODEL/encoders/NAME/    one for each encoder, likewise

A part that is bit for bit what its source gave (a frozen encoder, say) is saved without weights:
the ledger knows source, operations and digests, and loading makes it again and checks it. Saving in
full writes every part. A model without encoders is one plain transformers directory with a ledger
beside its files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from fusion.blank import blank_model
from fusion.checkpoints.directory import open_source, within_run
from fusion.checkpoints.safetensors import open_safetensors
from fusion.checkpoints.source import Source, TensorInfo, tensor_digest
from fusion.configuration import FusedConfig
from fusion.errors import FusionError, LedgerError, ModelError, SourceError, nearest
from fusion.hosts.family import config_of
from fusion.ledger import Entry, Ledger, Origin
from fusion.model import FusedModel
from fusion.operations import Operation, parse, run
from fusion.processor import FusionProcessor
from fusion.warmstart import warm_start
from fusion.writing import whole

GLUE_FILE = "glue.safetensors"
SAVED = (Origin.LOADED, Origin.INITIALISED)


def host_folder(model: FusedModel) -> str:
    """Where the host lies in a saved model."""
    return "host" if model.is_composite else "."


def parts_of(model: FusedModel) -> dict[str, str]:
    """Tensor prefix -> folder, for the parts that are directories of their own."""
    parts = {"host.": host_folder(model)}
    for name in model.encoders:
        parts[f"encoders.{name}.model."] = f"encoders/{name}"
    return parts


def save_model(
    model: FusedModel,
    directory: str | Path,
    processor: FusionProcessor | None = None,
    *,
    full: bool = False,
) -> None:
    """Write a model, its ledger and its tokenizers: to a temporary name, then renamed.

    Args:
        full: write the parts as well that are bit for bit what their source gave

    Raises:
        ModelError: the directory exists and holds something else.
        NoRoomError: there is no room for it.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not is_model(directory):
        raise ModelError(f"{directory}: exists and is not a saved model; choose another place")
    with whole(directory) as temporary:
        temporary.mkdir()
        if processor is not None:
            processor.save_pretrained(temporary, host=host_folder(model))
        state = model.state_dict()
        left_out = [] if full else unchanged_parts(model, state)
        digests = write_weights(model, state, temporary, left_out)
        ledger = model.ledger.with_saved_digests(digests)
        (temporary / "ledger.json").write_text(ledger.to_json(), encoding="utf-8")
        if model.is_composite:
            model.config.save_pretrained(temporary)
        model.generation_config.save_pretrained(temporary)
    model.ledger = ledger


def unchanged_parts(model: FusedModel, state: Mapping[str, Tensor]) -> list[str]:
    """Prefixes of the parts that are bit for bit what their sources gave."""
    unchanged = []
    for prefix in parts_of(model):
        entries = [e for e in model.ledger.part(prefix) if e.origin in SAVED]
        if entries and all(
            entry.origin is Origin.LOADED
            and entry.source is not None
            and tensor_digest(state[entry.name]) == entry.digest
            for entry in entries
        ):
            unchanged.append(prefix)
    return unchanged


def frozen_parts(model: FusedModel) -> list[str]:
    """Prefixes of the parts in which nothing is trained."""
    return [
        prefix
        for prefix in parts_of(model)
        if not any(p.requires_grad for p in model.get_submodule(prefix.rstrip(".")).parameters())
    ]


def write_weights(
    model: FusedModel, state: Mapping[str, Tensor], directory: Path, left_out: Collection[str]
) -> dict[str, str]:
    """Write each part's config and tensors, and the glue.

    Args:
        state: all tensors by full name
        left_out: prefixes of parts whose tensors are not written

    Returns:
        the digest of every tensor written, by full name
    """
    digests: dict[str, str] = {}
    rest = dict(state)
    for prefix, folder in parts_of(model).items():
        mine = {n.removeprefix(prefix): rest.pop(n) for n in list(rest) if n.startswith(prefix)}
        (directory / folder).mkdir(parents=True, exist_ok=True)
        model.get_submodule(prefix.rstrip(".")).config.save_pretrained(directory / folder)
        if prefix in left_out:
            continue
        by_class = recomputed(model.get_submodule(prefix.rstrip(".")))
        kept = {n: t for n, t in mine.items() if _is_saved(model.ledger, prefix + n, by_class(n))}
        write_tensors(kept, directory / folder / "model.safetensors")
        digests.update({prefix + n: tensor_digest(t) for n, t in kept.items()})
    if rest:
        write_tensors(rest, directory / GLUE_FILE)
        digests.update({n: tensor_digest(t) for n, t in rest.items()})
    return digests


def _is_saved(ledger: Ledger, name: str, by_class: bool) -> bool:
    """Tied names and what the class computes are not written."""
    entry = ledger.entries.get(name)
    if entry is not None and entry.origin is Origin.COMPUTED:
        return not by_class
    return entry is None or entry.origin in SAVED


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file that transformers reads, under a temporary name first."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as temporary:
        save_file(plain, temporary, metadata={"format": "pt"})


def is_model(directory: Path) -> bool:
    """Whether a directory is a model that fusion saved."""
    return (directory / "ledger.json").is_file()


def find_model(path: str | Path) -> Path:
    """The saved model that a path means: the model itself, or a run's output directory.

    Raises:
        ModelError: there is none.
    """
    path = Path(path)
    if ((found := within_run(path)) / "config.json").is_file():
        return found
    what = "is not a saved model" if path.exists() else "no such directory"
    raise ModelError(f"{path}: {what} (no config.json there or in model/)")


def read_config(directory: Path) -> FusedConfig:
    """The config of a saved model, or of a plain host directory as a model without encoders.

    Raises:
        ModelError: it is missing or broken.
    """
    try:
        config = config_of(directory)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory}: {str(error).splitlines()[0]}") from None
    return config if isinstance(config, FusedConfig) else FusedConfig(host=config.to_dict())


@torch.inference_mode(False)
def load_model(path: str | Path, sources: Mapping[str, str] | None = None) -> FusedModel:
    """Build a saved model on meta and fill every tensor from its files and its parts' sources.

    Args:
        sources: part (`host` or an encoder's name) -> where its source is now

    Raises:
        ModelError, SourceError, WarmStartError: a file or tensor is missing, cut or left over, or
            a source is no longer what was loaded.
    """
    directory = find_model(path)
    model = blank_model(read_config(directory))
    ledger = read_ledger(directory) if is_model(directory) else None
    filled = load_weights(model, part_sources(model, directory, ledger, sources or {}))
    if ledger is not None:
        _check_pinned(ledger, filled)
    model.ledger = ledger or filled
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    model.eval()
    return model


def part_sources(
    model: FusedModel,
    directory: Path,
    ledger: Ledger | None = None,
    moved: Mapping[str, str] | None = None,
    *,
    left_out: Collection[str] = (),
) -> dict[str, Source]:
    """Tensor prefix -> the files that hold that part, or what it was made of.

    Args:
        moved: part -> where its source is now
        left_out: prefixes of parts that are not wanted
    """
    moved = moved or {}
    known = [_part_name(prefix) for prefix in parts_of(model)]
    for name in moved:
        if name not in known:
            raise ModelError(f'no part "{name}"{nearest(name, known)}')
    sources: dict[str, Source] = {}
    for prefix, folder in parts_of(model).items():
        if prefix in left_out:
            continue
        if ledger is not None and _is_pinned(ledger, prefix):
            sources[prefix] = MadeAgain(ledger, prefix, moved.get(_part_name(prefix)))
        else:
            sources[prefix] = open_source(directory / folder)
    if model.is_composite:
        sources[""] = open_safetensors(directory / GLUE_FILE)
    return sources


def _part_name(prefix: str) -> str:
    return prefix.removeprefix("encoders.").removesuffix(".").removesuffix(".model")


def _is_pinned(ledger: Ledger, prefix: str) -> bool:
    """Whether a part was saved without weights."""
    saved = [entry for entry in ledger.part(prefix) if entry.origin in SAVED]
    return bool(saved) and all(entry.saved_digest is None for entry in saved)


class MadeAgain(Source):
    """A part that was saved without weights: its tensors, made from their sources once more.

    Attributes:
        entries: of the ledger, by the tensors' names in the part

    Args:
        place: where the source is now; None: where it was

    Raises:
        ModelError: a source is not there.
    """

    def __init__(self, ledger: Ledger, prefix: str, place: str | None = None) -> None:
        self.entries = {
            entry.name.removeprefix(prefix): entry
            for entry in ledger.part(prefix)
            if entry.origin in SAVED
        }
        self._sources: dict[str, Source] = {}
        for location in {there for e in self.entries.values() for there, _ in e.origins}:
            try:
                self._sources[location] = open_source(place or location)
            except SourceError as error:
                raise ModelError(
                    f"{_part_name(prefix)}: was saved without its weights, and its source is not "
                    f"there: {error}; say where it is: --source {_part_name(prefix)}=DIR "
                    f"(evaluate: --moved {_part_name(prefix)}=DIR)"
                ) from None
        self.location = " and ".join(source.location for source in self._sources.values())
        self.files = tuple(file for source in self._sources.values() for file in source.files)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(entry.shape, getattr(torch, entry.dtype))
            for name, entry in self.entries.items()
        }

    def read(self, name: str) -> Tensor:
        entry = self.entries[name]
        tensors = []
        for location, key in entry.origins:
            source = self._sources[location]
            if key not in source.tensors():
                raise SourceError(f"{entry.name}: {source.location} no longer has {key}")
            tensors.append(source.read(key))
        return run(_steps(entry), tensors)[0]

    def _facts(self, name: str, fresh: bool) -> list[str]:
        entry = self.entries[name]
        if _steps(entry):
            return super()._facts(name, fresh)
        ((location, key),) = entry.origins
        return self._sources[location]._facts(key, fresh)


def _steps(entry: Entry) -> list[Operation]:
    return [parse(data) for data in entry.operations if data != "rename"]


def changed(entry: Entry, location: str) -> str:
    """The message of a tensor whose source is no longer what it was."""
    return f"{entry.name}: {location}: {' + '.join(entry.keys)} is no longer what was loaded"


def _check_pinned(ledger: Ledger, filled: Ledger) -> None:
    """What was made again from a source is what it was."""
    problems = [
        changed(entry, str(filled[entry.name].source or entry.source))
        for entry in ledger
        if entry.origin in SAVED
        and entry.saved_digest is None
        and filled[entry.name].digest != entry.digest
    ]
    if problems:
        raise ModelError("\n".join(problems))


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
    load_weights(model, part_sources(model, directory, left_out=frozen_parts(model)))


class _Below(Source):
    """The tensors of a source below a prefix."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.source, self.prefix = source, prefix
        self.location, self.files = source.location, source.files

    def tensors(self) -> Mapping[str, TensorInfo]:
        every = self.source.tensors()
        return {
            n.removeprefix(self.prefix): i for n, i in every.items() if n.startswith(self.prefix)
        }

    def read(self, name: str) -> Tensor:
        return self.source.read(self.prefix + name)


def recomputed(part: object) -> Callable[[str], bool]:
    """Whether a name is one that its class computes, and that checkpoints need not hold.

    What transformers leaves out on saving; what it merely forgives on loading is an error here.
    """
    own = getattr(part, "_keys_to_ignore_on_save", None) or ()
    patterns = [re.compile(p) for p in (*own, *getattr(part, "computed_names", ()))]
    return lambda name: any(pattern.search(name) for pattern in patterns)


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
