"""A training set's memories in place before training, for every encoder that allows it."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from fusion.checkpoints.source import tensor_digest
from fusion.composition import Composition
from fusion.encoders.part import EncoderPart
from fusion.memory_cache.fill import Filler, Say, Sentences, Work, filled
from fusion.memory_cache.listing import shown_bytes
from fusion.memory_cache.reader import CachedBatches, Layout, MemoryReader
from fusion.memory_cache.store import Cache, default_directory
from fusion.recipe import EncoderSpec, MemoryCacheSpec, Recipe
from fusion.registry import ENCODERS

Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
AUTO = "auto"  # fusion's own builder of encoders, of which a key says nothing
LAYOUT = 1  # of keys and formats; another number never reads what this one wrote
MOST_BLOCKS = 16384  # a process may map 65,530 files
BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}  # on a CPU, what stays in its caches


@dataclass
class Report:
    """What became of one encoder's cache.

    Attributes:
        share: of the training set's encoder tokens that are read from disk, 0 to 1
        seconds: to compute and check
        off: why there is no cache
    """

    format: str | None = None
    directory: str | None = None
    sentences: int = 0
    share: float = 0.0
    bytes: int = 0
    seconds: float = 0.0
    off: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return asdict(self)


@dataclass
class Prepared:
    """Training rows that know their number, and what makes batches of them."""

    train: Dataset
    collate: Collate
    reports: dict[str, Report]


@dataclass(frozen=True)
class Hardware:
    """Where the encoder runs, and whether training asked for bf16."""

    device: torch.device
    bf16: bool

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 is faster there than fp32: a GPU, or a CPU with instructions for it."""
        if self.device.type != "cpu":
            return self.device.type == "cuda"
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def prepare(
    recipe: Recipe, composition: Composition, train: Dataset, hardware: Hardware, say: Say
) -> Prepared:
    """Fill the caches of a tokenised training set; the same call on every rank.

    Raises:
        FusionError: the cache's directory cannot be written.
    """
    spec = recipe.memory_cache
    collate: Collate = composition.processor.pad
    parts = composition.model.encoder_parts
    if spec is None or not parts:
        return Prepared(train, collate, {})
    reports = {
        name: Report(off=why_off(part, recipe.encoders[name].builder))
        for name, part in parts.items()
    }
    for name, report in reports.items():
        if report.off is not None:
            say(f"{recipe.name}: memory cache of {name}: off: {report.off}")
    job = _Job(recipe.name, spec, composition, train, hardware, say)
    names = [name for name, report in reports.items() if report.off is None]
    stores = {name: _cache(job, name, recipe.encoders[name]) for name in names}
    readers = {}
    for name in names:
        in_use = tuple(store.name for store in stores.values())
        readers[name], reports[name] = _fill_one(job, name, stores[name], in_use)
    if not readers:
        return Prepared(train, collate, reports)
    train = train.add_column("row", list(range(len(train))))
    whole = [f"{name}_input_ids" for name, reader in readers.items() if reader.cached.all()]
    return Prepared(
        train.remove_columns(whole), CachedBatches(composition.processor, readers), reports
    )


def why_off(part: EncoderPart, builder: str = AUTO) -> str | None:
    """Why the memory of an encoder that a builder made cannot be cached; None: it can."""
    if not part.freeze:
        return "the encoder is trained (freeze: false), so its memory changes with every update"
    if part.glued:
        return "glue inside the encoder is trained, so its memory changes with every update"
    if part.dropout:
        return "the encoder's dropout is on (encoder_dropout: true), so no two memories are equal"
    if (unknown := _without_a_file(part, builder)) is not None:
        return f"the code of {unknown} is in no file, so a change of it could not be seen"
    return None


@dataclass(frozen=True)
class _Job:
    recipe_name: str
    spec: MemoryCacheSpec
    composition: Composition
    train: Dataset
    hardware: Hardware
    say: Say

    @property
    def autocast(self) -> bool:
        """bf16 where training asks for it, as without a cache, and the hardware has it."""
        return self.hardware.bf16 and self.hardware.has_bf16


def _cache(job: _Job, name: str, spec: EncoderSpec) -> Cache:
    part = job.composition.model.encoder_parts[name]
    root = Path(job.spec.dir) if job.spec.dir is not None else default_directory()
    text = job.composition.processor.encoders[name]
    key = {
        "layout": LAYOUT,
        "weights": weights_digest(job.composition, name),
        "config": _config_digest(part),
        "code": _code_digests(part, spec.builder),
        "libraries": _versions(part),
        **({"builder": spec.builder} if spec.builder != AUTO else {}),
        "layer": part.layer,
        "limit": part.limit,
        "overflow": text.overflow,
        "format": job.spec.format,
        "computed_in": "bf16" if job.autocast else "own dtype",
    }
    about = {"source": spec.source, "width": part.width, "layers": _layers(part)}
    return Cache(root, key, about)


def weights_digest(composition: Composition, name: str) -> str:
    """sha256 over names and digests of an encoder's tensors, as the ledger has them.

    What the ledger has no digest of (the class computed it) is digested here.
    """
    prefix = f"encoders.{name}.model."
    model = composition.model.get_submodule(prefix.rstrip("."))
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    digest = hashlib.sha256()
    for own, tensor in sorted(tensors.items()):
        entry = composition.ledger.entries.get(prefix + own)
        known = entry.digest if entry is not None else None
        digest.update(f"{own}\0{known or tensor_digest(tensor)}\n".encode())
    return digest.hexdigest()


def _config_digest(part: EncoderPart) -> str:
    """Of class and config; where it was loaded from and by which version do not matter."""
    config = {
        key: value
        for key, value in part.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    }
    text = json.dumps([type(part.model).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


VERSIONED = ("transformers", "sentence_transformers")
LIBRARIES = ("torch", *VERSIONED)  # torch's versions differ in rounding alone


def _own_code(part: EncoderPart, builder: str) -> dict[str, Path | None]:
    """What no library brings of an encoder's classes and builder, as module:name; its file, if any.

    A plugin may name its builder in one module and have its code in another: both count. So does
    what fusion makes of the encoder's output.
    """
    brought = [*(type(module) for module in part.modules()), ENCODERS.get(builder)]
    code = {f"{one.__module__}:{getattr(one, '__qualname__', builder)}" for one in brought}
    code.add(str(ENCODERS.target(builder)))
    files = {}
    for what in sorted(code):
        module = what.partition(":")[0]
        if module.split(".")[0] not in LIBRARIES:
            file = getattr(sys.modules.get(module), "__file__", None)
            files[what] = Path(file) if file and Path(file).is_file() else None
    return files


def _without_a_file(part: EncoderPart, builder: str) -> str | None:
    lost = (what for what, file in _own_code(part, builder).items() if file is None)
    return next((what.replace(":", ".") for what in lost), None)


def _versions(part: EncoderPart) -> dict[str, str]:
    """Of the libraries whose classes an encoder has."""
    roots = {type(module).__module__.split(".")[0] for module in part.model.modules()}
    return {root: str(sys.modules[root].__version__) for root in VERSIONED if root in roots}


def _code_digests(part: EncoderPart, builder: str) -> dict[str, str]:
    """sha256 of the files with the encoder's own code, by module; what they import is not in."""
    return {
        what.partition(":")[0]: hashlib.sha256(file.read_bytes()).hexdigest()
        for what, file in _own_code(part, builder).items()
        if file is not None
    }


def _layers(part: EncoderPart) -> int | None:
    return part.layers if part.stacked else None


def _fill_one(
    job: _Job, name: str, cache: Cache, in_use: tuple[str, ...]
) -> tuple[MemoryReader, Report]:
    began = time.monotonic()
    part = job.composition.model.encoder_parts[name]
    device = job.hardware.device
    layout = Layout(job.spec.format, part.width, _layers(part))
    filler = Filler(
        part=part,
        layout=layout,
        pad=job.composition.processor.pads[f"{name}_input_ids"],
        device=device,
        batch_tokens=BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]),
        autocast=job.autocast,
    )
    part.to(device)
    sentences = Sentences(job.train.select_columns([f"{name}_input_ids"]))
    label = f"{job.recipe_name}: memory cache of {name}"
    whole = int(sentences.tokens.sum()) * layout.token_bytes
    work = Work(
        sentences=sentences,
        block_bytes=max(int(job.spec.block_bytes), whole // MOST_BLOCKS),
        max_bytes=None if job.spec.max_bytes is None else int(job.spec.max_bytes),
        in_use=in_use,
        say=partial(_labelled, job.say, label),
    )
    with filled(cache, filler, work):
        places, tokens = cache.locate(sentences.digests), sentences.tokens
        reader = MemoryReader(places[sentences.of_row], layout, tokens[sentences.of_row])
    report = Report(
        format=job.spec.format,
        directory=str(cache.directory),
        sentences=len(sentences),
        share=float(reader.tokens[reader.cached].sum() / reader.tokens.sum()),
        bytes=int(tokens[np.unique(sentences.of_row[reader.cached])].sum()) * layout.token_bytes,
        seconds=round(time.monotonic() - began, 2),
    )
    job.say(f"{label}: {_in_words(report)}")
    return reader, report


def _labelled(say: Say, label: str, text: str) -> None:
    say(f"{label}: {text}")


def _in_words(report: Report) -> str:
    whole = report.share == 1
    share = "all" if whole else f"{min(report.share, 0.999):.1%}"
    rest = "" if whole else f"; the other {1 - report.share:.1%} are computed on the fly"
    return (
        f"{share} of the encoder's tokens are read from {report.directory} "
        f"({report.format}, {shown_bytes(report.bytes)}, ready after {report.seconds:.1f} s){rest}"
    )
