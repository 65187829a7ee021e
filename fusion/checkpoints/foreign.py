"""What a checkpoint of another toolkit becomes here: a host's config, and the rules into it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoints.source import Source, TensorInfo
from fusion.checkpoints.torch import load_pickle
from fusion.checkpoints.torch_file import check_torch_file
from fusion.errors import SourceError, nearest

UNSHARED = "source and target embeddings were one tensor; here they are two"


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another toolkit, described.

    Attributes:
        toolkit: its name
        family: the host family that computes what the toolkit's model computes
        config: the host's config, without `model_type`
        rules: target pattern -> source, as a warm start takes them
        ignore: source pattern that is not loaded -> reason
        computed: target pattern that the host computes itself -> how
        init: target pattern that starts from an init rule -> its name
        source_vocabulary, target_vocabulary: tokens by id; None: no vocabulary was found
        copies: source tensor -> the one that it repeats bit for bit (embeddings saved twice)
        arguments: the toolkit's own options, as read
        notes: what a user should know
        encoder: config of a BERT in the file, without `model_type`
        glue: options of the glue in the file, as in a recipe, one per kind of site
    """

    toolkit: str
    config: dict[str, Any]
    rules: dict[str, Any]
    family: str = "fusion_transformer"
    ignore: dict[str, str] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)
    init: dict[str, str] = field(default_factory=dict)
    source_vocabulary: list[str] | None = None
    target_vocabulary: list[str] | None = None
    copies: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    encoder: dict[str, Any] | None = None
    glue: list[dict[str, Any]] = field(default_factory=list)


class StateSource(Source):
    """Tensors of a state dict that lies somewhere inside a file."""

    def __init__(
        self, path: Path, state: Mapping[str, Any], toolkit: str, location: str | None = None
    ) -> None:
        self.location = location or str(path)
        self.files = (path,)
        self.digest_scope = f"{toolkit}/1"
        self._state = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        if not self._state:
            raise SourceError(f"{self.location}: holds no named tensors")
        self._is_checked = False

    def check_stored(self, name: str) -> None:
        if not self._is_checked:
            check_torch_file(self.files[0])
            self._is_checked = True

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {k: TensorInfo(tuple(v.shape), v.dtype) for k, v in self._state.items()}

    def read(self, name: str) -> Tensor:
        return self._state[name]


def load(path: Path) -> dict[str, Any]:
    """Everything in a toolkit's torch checkpoint.

    Raises:
        SourceError: missing, damaged, refused, or no mapping.
    """
    state = load_pickle(path)
    if not isinstance(state, dict):
        raise SourceError(f"{path}: holds a {type(state).__name__}; a mapping was expected")
    return state


def part(state: Mapping[str, Any], key: str, path: Path, toolkit: str) -> dict[str, Any]:
    """`state[key]`, which must be a mapping.

    Raises:
        SourceError: it is not there, so the file is none of this toolkit.
    """
    found = state.get(key)
    if not isinstance(found, Mapping):
        keys = [str(one) for one in state]
        raise SourceError(f"{path}: no {toolkit} checkpoint: no {key}{nearest(key, keys)}")
    return dict(found)


def fields(options: Any) -> dict[str, Any]:
    """The options of a namespace, a mapping or None."""
    if options is None:
        return {}
    return dict(options) if isinstance(options, Mapping) else dict(vars(options))


def refuse(path: Path, options: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Check options that change the architecture to something that the host is not.

    Args:
        plain: option -> the values that are supported

    Raises:
        SourceError: names every one of them.
    """
    odd = [
        f"{key}: {options[key]!r}"
        for key, fine in plain.items()
        if key in options and options[key] not in fine
    ]
    if odd:
        raise SourceError(f"{path}: not supported: {', '.join(odd)}")


def duplicate(source: Source, name: str, of: str) -> dict[str, str]:
    """`{name: of}` where both are stored, as tied tensors are.

    Raises:
        SourceError: they differ, so they cannot be one tensor.
    """
    if not {name, of} <= set(source.tensors()):
        return {}
    if not torch.equal(source.read(name), source.read(of)):
        raise SourceError(f"{source.location}: {name} differs from {of}; its options tie them")
    return {name: of}


def embedding_rules(
    source: Source,
    config: Mapping[str, Any],
    rules: dict[str, Any],
    tables: tuple[str, str],
    outputs: Sequence[str],
) -> dict[str, str]:
    """Add the rules of embeddings and output; return the tensors that repeat another.

    Args:
        config: says what is shared and tied
        tables: the source's embeddings of encoder and decoder
        outputs: names of the output's weight in the source; the first one is loaded if not tied
    """
    encoder, decoder = tables
    copies: dict[str, str] = {}
    if config["share_encoder_decoder_embeddings"]:
        rules["model.shared.weight"] = encoder
        copies |= duplicate(source, decoder, encoder)
    else:
        rules["model.encoder.embed_tokens.weight"] = encoder
        rules["model.decoder.embed_tokens.weight"] = decoder
    if config["tie_word_embeddings"]:
        first = encoder if config["share_encoder_decoder_embeddings"] else decoder
        for name in outputs:
            copies |= duplicate(source, name, first)
    elif outputs:
        rules["lm_head.weight"] = outputs[0]
    return copies


def repeated(copies: Mapping[str, str]) -> dict[str, str]:
    """What to ignore, since it repeats another tensor: name -> reason."""
    return {name: f"the same tensor as {of}" for name, of in copies.items()}


def width(source: Source, name: str, path: Path) -> tuple[int, ...]:
    """A tensor's shape.

    Raises:
        SourceError: there is no such tensor.
    """
    tensors = source.tensors()
    if name not in tensors:
        raise SourceError(f"{path}: no tensor {name}{nearest(name, tensors)}")
    return tensors[name].shape


def layers(names: Collection[str], prefix: str) -> int:
    """How many numbers follow a prefix: `encoder.layers.` -> 6."""
    found = {n[len(prefix) :].partition(".")[0] for n in names if n.startswith(prefix)}
    return len({one for one in found if one.isdigit()})


def check_vocabulary(path: Path, tokens: list[str] | None, rows: int) -> list[str] | None:
    """The tokens, which must be as many as the embeddings' rows.

    Raises:
        SourceError: they are not.
    """
    if tokens is not None and len(tokens) != rows:
        raise SourceError(f"{path}: {len(tokens)} tokens for {rows} rows of embeddings")
    return tokens
