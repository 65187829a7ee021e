"""Glue placed in a model: in the host's sites, in its encoders' layers, at modules by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fusion.encoders.part import EncoderPart
from fusion.errors import RecipeError, SiteError
from fusion.glue.base import Glue, Place
from fusion.hosts.family import Family
from fusion.hosts.select import select_sites
from fusion.hosts.site import At, HostBranch, Seat, attach, detach
from fusion.memory import Memory

Memories = dict[str, Memory]
NO_MEMORY = Memory(torch.empty(0, 0, 0), None)
_LAYERS = re.compile(r"(.*\.)?(layers?|block|h|blocks|transformer_layers|albert_layer_groups)")


@dataclass
class Reader:
    """Mixes memory into one site: each glue there in turn, the first one nearest to the host.

    Attributes:
        glue: each module with the name of the memory that it reads; None: it reads none
        board: the memories of this forward pass
    """

    board: Memories
    glue: list[tuple[Glue, str | None]] = field(default_factory=list)

    def __call__(self, x: Tensor, host: HostBranch) -> Tensor:
        branch = host
        for module, name in self.glue:
            memory = NO_MEMORY if name is None else self.board[name]
            branch = _bind(module, x, branch, memory)
        return branch()


def _bind(module: Glue, x: Tensor, host: HostBranch, memory: Memory) -> HostBranch:
    return lambda: module(x, host, memory)


@dataclass(frozen=True)
class Placed:
    """One glue module, its site, and the encoders whose memory it reads."""

    site: str
    module: Glue
    encoders: tuple[str, ...]

    @property
    def memory(self) -> str | None:
        """The name of the memory that it reads."""
        return "+".join(self.encoders) or None


def sites_of(
    host: PreTrainedModel, family: Family, encoders: Mapping[str, EncoderPart]
) -> dict[str, Seat]:
    """Every site by name, in order: the host's, then `{encoder}.{i}.output` of every encoder."""
    found = family.find_sites(host)
    for name, part in encoders.items():
        at = At("", x="output", time_major=part.config.model_type == "xlnet")
        for number, layer in enumerate(encoder_layers(part.model)):
            found[f"{name}.{number}.output"] = Seat(at, layer)
    return found


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The Transformer layers of an encoder, in order; none where no modules give their outputs.

    It is the longest list of modules under one of the names that transformers gives such lists. A
    list of lists is joined (Funnel's blocks). Layers that share their weights are one (ALBERT's
    groups), so glue there is shared as they are. XLM's layers are written out in the model and end
    with a norm, unless FlauBERT's norms come first; SqueezeBERT's give another layout than states.
    """
    lists = [
        list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _LAYERS.fullmatch(name)
    ]
    longest = max(lists, key=len, default=[])
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind == "squeezebert" or getattr(model, "pre_norm", False):
        return []
    if not longest and isinstance(norms := getattr(model, "layer_norm2", None), nn.ModuleList):
        return list(norms)
    return [
        layer for one in longest for layer in (one if isinstance(one, nn.ModuleList) else (one,))
    ]


def seats_for(
    patterns: list[str],
    sites: dict[str, Seat],
    host: PreTrainedModel,
    encoders: Mapping[str, EncoderPart],
) -> dict[str, Seat]:
    """The seats that a glue's `sites` name.

    `host:model.encoder.layers.*.fc1` and `bert:encoder.layer.*.output.dense` name modules of a part
    as they are; everything else is a site.

    Raises:
        SiteError: a pattern names nothing; lists what there is.
    """
    found: dict[str, Seat] = {}
    if plain := [pattern for pattern in patterns if ":" not in pattern]:
        found |= {site: sites[site] for site in select_sites(plain, list(sites))}
    for pattern in patterns:
        part, colon, inner = pattern.partition(":")
        if not colon:
            continue
        roots = {"host": host} | {name: encoder.model for name, encoder in encoders.items()}
        if part not in roots:
            raise SiteError(f'"{pattern}": no part "{part}"; this model has: {", ".join(roots)}')
        modules = {name: module for name, module in roots[part].named_modules() if name}
        for name in select_sites([inner], list(modules)):
            found[f"{part}:{name}"] = Seat(At(name), modules[name])
    return found


def place_of(
    site: str,
    seat: Seat,
    memory_widths: tuple[int, ...],
    host: PreTrainedModel,
    family: Family,
    encoders: Mapping[str, EncoderPart],
) -> Place:
    """What a glue module at a site is told; `index` and `count` are filled in by the caller."""
    part = re.split(r"[.:]", site, maxsplit=1)[0]
    if part in encoders and part not in ("encoder", "decoder"):
        config = encoders[part].text_config
        width, heads = encoders[part].width, int(getattr(config, "num_attention_heads", 1) or 1)
        norm, eps = "post", float(getattr(config, "layer_norm_eps", None) or 1e-5)
    else:
        config = host.config
        side = site
        if ":" in site:
            path = site.partition(":")[2].split(".")
            side = "encoder.module" if "encoder" in path[:2] else "decoder.module"
        width, heads = family.width(config, side), family.heads(config, side)
        norm, eps = str(family.norm_at(config, side)), family.epsilon(config)
    inner = None
    if ":" in site:
        inner, width = _linear_widths(site, seat.module)
    return Place(
        site=site,
        width=width,
        heads=heads,
        memory_width=sum(memory_widths),
        eps=eps,
        norm="pre" if norm in ("pre", "both") else "post",
        dropout=float(getattr(config, "dropout", None) or getattr(config, "dropout_rate", 0) or 0),
        inner=inner,
        key_width=_key_width(seat.query or seat.module, heads),
    )


def _linear_widths(site: str, module: nn.Module) -> tuple[int, int]:
    """Of what goes in and comes out; GPT-2's Conv1D is a Linear that stores W transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    raise SiteError(f"{site}: is a {type(module).__name__}; a Linear is needed")


def _key_width(attention: nn.Module, heads: int) -> int | None:
    """The width of an attention's keys: of its key projection, or what its heads add up to."""
    for name in ("k_proj", "k", "key"):
        if isinstance(projection := getattr(attention, name, None), nn.Linear):
            return projection.out_features
    size = getattr(attention, "head_dim", None)
    if not isinstance(size, int):
        return None
    return heads // int(getattr(attention, "num_key_value_groups", 1)) * size


class Placement:
    """All glue of a model in its place.

    Attributes:
        board: the memories that glue reads from now on

    Args:
        causal: the host is decoder-only: what goes before its source goes before its embeddings
    """

    def __init__(self, causal: bool = False) -> None:
        self._causal = causal
        self.board: Memories = {}
        self.placed: list[Placed] = []
        self._attached = False
        self._seats: dict[str, Seat] = {}
        self._readers: dict[str, Reader] = {}
        self._rest: dict[str, tuple[None, ...] | None] = {}

    def add(self, placed: Placed, seat: Seat, rest: tuple[None, ...] | None) -> None:
        """Let one more glue module read at a site; `attach` makes it so.

        Raises:
            RecipeError: glue that changes the sequence is not at encoder.output, or not alone.
        """
        self.placed.append(placed)
        changes = placed.module.sequence != "kept"
        if changes:
            site = "decoder.embeddings" if self._causal else "encoder.output"
            if placed.site != site:
                raise RecipeError(f"sites: it changes the sequence; only {site} can be its site")
            if self._causal and placed.module.sequence == "replaced":
                raise RecipeError("a decoder-only host has no encoder to replace")
            if sum(one.module.sequence != "kept" for one in self.placed) > 1:
                raise RecipeError(f"{site}: other glue changes the sequence already")
        if placed.module.sequence == "replaced" or (self._causal and changes):
            return  # the model itself runs it
        self._seats[placed.site] = seat
        self._rest[placed.site] = rest
        reader = self._readers.setdefault(placed.site, Reader(self.board))
        reader.glue.append((placed.module, placed.memory))

    def attach(self) -> None:
        """Put every reader into its site."""
        self._attached = True
        for placed in self.placed:
            if (seat := self._seats.get(placed.site)) is not None:
                placed.module.enter(seat.query or seat.module, self.board, placed.memory or "")
        for site, reader in self._readers.items():
            attach(self._seats[site], reader, self._rest[site])

    def detach(self) -> None:
        """Take all glue out."""
        self._attached = False
        for seat in self._seats.values():
            detach(seat)
        for placed in self.placed:
            placed.module.leave()

    def joined(self) -> Iterator[tuple[str, ...]]:
        """The groups of encoders that one glue reads together."""
        yield from {placed.encoders: None for placed in self.placed if len(placed.encoders) > 1}

    @property
    def sequence(self) -> Placed | None:
        """The glue that gives the decoder another sequence than the host's encoder would."""
        changing = [placed for placed in self.placed if placed.module.sequence != "kept"]
        return changing[0] if changing and self._attached else None
