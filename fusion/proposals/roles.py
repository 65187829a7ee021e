"""The parts that tensors play: one role per tensor of a layer, whatever the number of layers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from fusion.checkpoints.source import TensorInfo
from fusion.proposals.wording import Meaning, normal, read

TABLES = ("emb", "pos", "type", "rel", "head")  # looked up by row: never stored transposed
_LAYER_WORD = re.compile(r"(?:^|[._/])(?:layers?|blocks?|blk|h|l|enc|dec|encoder|decoder)[._/]?$")


@dataclass(frozen=True)
class Piece:
    """One piece of a stored tensor: of equal ones along a dimension, or one layer of a stack."""

    kind: Literal["split", "pick"]
    index: int
    parts: int
    dim: int = 0

    @property
    def operation(self) -> Any:
        """As a rule writes it."""
        if self.kind == "pick":
            return {"pick": self.index}
        along = {"dim": self.dim} if self.dim else {}
        return {"split": {"parts": self.parts, "index": self.index, **along}}


@dataclass(frozen=True)
class Part:
    """A tensor by name, or a piece of it."""

    name: str
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Role:
    """Tensors of one name but for the layer's number, and of one shape.

    Attributes:
        template: the name with `{i}` for the layer's number
        tower: the name before the number; None outside of layers
        members: layer -> tensor (layer 0 outside of layers)
        layer: the layer of a role that was taken out of its tower
    """

    template: str
    tower: str | None
    members: Mapping[int, Part]
    shape: tuple[int, ...]
    dtype: torch.dtype
    position: float
    meaning: Meaning
    layer: int | None = None

    @property
    def path(self) -> str:
        """The name within the layer."""
        return self.template.partition("{i}")[2] if self.tower is not None else self.template

    @property
    def key(self) -> tuple[str, ...]:
        """Roles of one module have it in common."""
        pieces = next(iter(self.members.values())).pieces
        return (self.meaning.module, *(f"{p.kind}{p.index}" for p in pieces if p.kind == "split"))

    def alone(self) -> list[Role]:
        """One role per tensor, out of its tower."""
        if self.tower is None:
            return [self]
        return [
            replace(self, template=part.name, tower=None, members={0: part}, layer=layer)
            for layer, part in self.members.items()
        ]


def roles_of(tensors: Mapping[str, TensorInfo]) -> list[Role]:
    """The roles of a module or a file, in its order."""
    holes = _holes(tensors)
    members: dict[tuple[Any, ...], dict[int, Part]] = defaultdict(dict)
    first: dict[tuple[Any, ...], int] = {}
    for position, (name, info) in enumerate(tensors.items()):
        tower, index, rest = holes[name] or (None, 0, name)
        key = (tower, rest, tuple(info.shape), info.dtype)
        first.setdefault(key, position)
        members[key][index] = Part(name)
    found = []
    for key, parts in members.items():
        tower, rest, shape, dtype = key
        template = rest if tower is None else f"{tower}{{i}}{rest}"
        meaning = read(rest, tower)
        found.append(Role(template, tower, parts, shape, dtype, first[key], meaning))
    return _refined(_leaves(found))


def slim(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its ones: Marian stores a bias as [1, D]."""
    return tuple(size for size in shape if size != 1)


def _leaves(roles: list[Role]) -> list[Role]:
    """Last components that mean nothing but come again and again are leaves all the same.

    One that names a matrix is the weight; another beside it is the bias.
    """
    last = [role.template.rpartition(".")[2] for role in roles]
    again = Counter(last)
    matrices = {word for word, role in zip(last, roles, strict=True) if len(slim(role.shape)) > 1}
    found = []
    for word, role in zip(last, roles, strict=True):
        if role.meaning.leaf is None and again[word] > 2 and "." in role.path.strip("."):
            leaf = "w" if word in matrices else "b" if matrices & set(again) else None
            module = normal(role.path.rpartition(".")[0])
            role = replace(role, meaning=replace(role.meaning, leaf=leaf, module=module))
        found.append(role)
    return found


def towers(roles: Iterable[Role]) -> dict[str | None, list[Role]]:
    """Roles by tower."""
    found: dict[str | None, list[Role]] = defaultdict(list)
    for role in roles:
        found[role.tower].append(role)
    return found


def layers(roles: Iterable[Role]) -> list[int]:
    """The numbers of a tower's layers."""
    return sorted({layer for role in roles for layer in role.members})


def _holes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[str, int, str] | None]:
    """Where the layer's number stands in each name: (before, number, after)."""
    runs = {name: [m.span() for m in re.finditer(r"\d+", name)] for name in tensors}
    inside: dict[str, dict[int, set[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(set))
    for name, spans in runs.items():
        for start, end in spans:
            rest = (name[end:], tuple(tensors[name].shape))
            inside[name[:start]][int(name[start:end])].add(rest)
    found: dict[str, tuple[str, int, str] | None] = {}
    for name, spans in runs.items():
        cuts = [(name[:a], int(name[a:b]), name[b:]) for a, b in spans]
        likely = [cut for cut in cuts if _is_tower(cut, inside[cut[0]])]
        single = [cut for cut in cuts if _is_layer_name(cut) and _rests(inside[cut[0]]) >= 3]
        found[name] = next(iter([*likely, *single]), None)
    return found


def _is_layer_name(cut: tuple[str, int, str]) -> bool:
    before, _, after = cut
    whole = (not before or before[-1] in "./") and (not after or after[0] in "./")
    return whole or _LAYER_WORD.search(before) is not None


def _rests(values: Mapping[int, set[tuple[Any, ...]]]) -> int:
    return len(set().union(*values.values()))


def _is_tower(cut: tuple[str, int, str], values: Mapping[int, set[tuple[Any, ...]]]) -> bool:
    """Whether several numbers have nearly the same names and shapes after them."""
    common = len(set.intersection(*values.values()))
    every = _rests(values)
    return (
        len(values) > 1
        and common >= 0.6 * every
        and (every >= 3 or (_is_layer_name(cut) and every >= 2))
    )


def _refined(roles: list[Role]) -> list[Role]:
    """Blocks of attentions and norms that only their neighbours tell."""
    found: list[Role] = []
    for tower, inside in towers(roles).items():
        found += inside if tower is None else placed(inside)
    return sorted(found, key=lambda role: role.position)


def placed(inside: list[Role]) -> list[Role]:
    """The roles of one tower, each in its block as far as the others tell."""
    return _norms(_feed_forward(_attention(inside)))


def _meant(role: Role, block: str) -> Role:
    return replace(role, meaning=replace(role.meaning, block=block))


def _attention(inside: list[Role]) -> list[Role]:
    """An attention that is not said to be the other one is the self-attention."""
    unsaid = [
        role
        for role in inside
        if role.meaning.block == "attn" and role.meaning.kind in ("q", "qkv")
        and role.meaning.leaf != "b"
    ]  # fmt: skip
    if len(unsaid) > 1:
        return inside
    return [_meant(role, "self") if role.meaning.block == "attn" else role for role in inside]


def _feed_forward(inside: list[Role]) -> list[Role]:
    """Two numbered matrices of a feed-forward block are the first and the second of it."""
    inner = [r for r in inside if r.meaning.block == "ffn" and r.meaning.kind != "norm"]
    numbers = sorted({r.meaning.ordinal for r in inner if r.meaning.ordinal is not None})
    modules = {r.meaning.module for r in inner}
    stems = {re.sub(r"_?\d+$", "", module) for module in modules}
    if len(numbers) != 2 or len(modules) != 2 or len(stems) != 1:
        return inside
    kinds = dict(zip(numbers, ("ffn_in", "ffn_out"), strict=True))
    return [
        replace(r, meaning=replace(r.meaning, kind=kinds[r.meaning.ordinal or 0]))
        if r in inner
        else r
        for r in inside
    ]


def _norms(inside: list[Role]) -> list[Role]:
    """A norm beside one block belongs to it; numbered norms follow the order of the blocks."""
    body = [role for role in inside if role.meaning.kind != "norm"]
    found = {role.template: role for role in inside}
    for role in inside:
        parent = role.meaning.module.rpartition(".")[0]
        if role.meaning.kind != "norm" or role.meaning.block is not None or not parent:
            continue
        near = {r.meaning.block for r in body if r.meaning.module.startswith(f"{parent}.")}
        if len(near) == 1 and None not in near:
            found[role.template] = _meant(role, str(near.pop()))
    present = {role.meaning.block for role in body}
    norms = [role for role in found.values() if role.meaning.kind == "norm"]
    taken = {role.meaning.block for role in norms}
    free = [block for block in ("self", "cross", "ffn") if block in present - taken]
    open_ = [role for role in norms if role.meaning.block is None]
    modules = sorted({(role.meaning.ordinal or 0, role.meaning.module) for role in open_})
    told = len({ordinal for ordinal, _ in modules}) == len(modules)
    if free and told and len(modules) == len(free):
        blocks = {module: block for (_, module), block in zip(modules, free, strict=True)}
        for role in open_:
            found[role.template] = _meant(role, blocks[role.meaning.module])
    return list(found.values())
