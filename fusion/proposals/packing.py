"""Stored tensors that hold several of the other side's: stacked layers, packed q, k and v."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusion.proposals.roles import TABLES, Part, Piece, Role, layers, placed, slim, towers
from fusion.proposals.wording import normal, read


def unstacked(roles: list[Role], other: list[Role]) -> list[Role]:
    """Tensors that hold all layers of the other side's towers, taken apart into layers."""
    outside = [one for role in roles for one in role.alone()]
    chosen: dict[str, tuple[int, list[Role]]] = {}
    for tower, theirs in towers(other).items():
        count = len(layers(theirs))
        if tower is None or count < 2:
            continue
        shapes = {tuple(sorted(role.shape)) for role in theirs}
        stacks = [
            role
            for role in outside
            if len(role.shape) > 1
            and role.shape[0] == count
            and tuple(sorted(role.shape[1:])) in shapes
            and tuple(sorted(role.shape)) not in shapes
            and role.meaning.kind not in TABLES
        ]
        if 2 * len(stacks) >= len(theirs):
            chosen.update({role.template: (count, stacks) for role in stacks})
    sides: dict[str | None, list[Role]] = defaultdict(list)
    for role in outside:
        if role.template in chosen:
            sides[role.meaning.side].append(role)
    found = []
    for role in roles:
        whole = not any(one.template in chosen for one in role.alone())
        found += [role] if whole else [r for r in role.alone() if r.template not in chosen]
    for side, stacks in sides.items():
        found += _layers_of(side, stacks, chosen)
    return sorted(found, key=lambda role: role.position)


def _layers_of(
    side: str | None, stacks: list[Role], chosen: Mapping[str, tuple[int, list[Role]]]
) -> list[Role]:
    shared = _shared([role.template.split(".")[:-1] for role in stacks])
    tower = f"{shared or side or ''}:stack"
    found = []
    for role in stacks:
        count = chosen[role.template][0]
        parts = {n: Part(role.template, (Piece("pick", n, count),)) for n in range(count)}
        meaning = replace(read(role.template.removeprefix(f"{shared}."), ""), side=side)
        found.append(
            replace(role, tower=tower, members=parts, shape=role.shape[1:], meaning=meaning)
        )
    return placed(found)


def _shared(paths: list[list[str]]) -> str:
    """The components that all paths begin with."""
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    return ".".join(column[0] for column in columns)


def unpacked(roles: list[Role], other: list[Role]) -> list[Role]:
    """Packed q, k, v (or k, v) that the other side has one by one, taken apart.

    A role is packed where this side has more tensors of its shape than the other, and fewer of the
    pieces' shape; a name that says so goes first, then the order.
    """
    for kinds in (("q", "k", "v"), ("k", "v")):
        for rank in (2, 1):
            roles = _unpacked(roles, other, kinds, rank)
    return roles


def _unpacked(roles: list[Role], other: list[Role], kinds: Sequence[str], rank: int) -> list[Role]:
    parts, packed_kind = len(kinds), "".join(kinds)
    here = Counter(tuple(sorted(slim(role.shape))) for role in roles)
    there = Counter(tuple(sorted(slim(role.shape))) for role in other)
    done = {role.key[0] for role in roles if len(role.key) > 1}
    likely = sorted(
        (
            role
            for role in roles
            if len(slim(role.shape)) == rank and len(role.key) == 1
            and role.meaning.kind in (packed_kind, None)
        ),
        key=lambda role: (
            role.meaning.kind != packed_kind,
            role.meaning.module not in done,
            role.position,
        ),
    )  # fmt: skip
    taken: dict[str, list[Role]] = {}
    for role in likely:
        for dim, size in enumerate(role.shape):
            if size == 1 or size % parts or role.template in taken:
                continue
            shape = (*role.shape[:dim], size // parts, *role.shape[dim + 1 :])
            whole, piece = tuple(sorted(slim(role.shape))), tuple(sorted(slim(shape)))
            if here[whole] > there[whole] and there[piece] - here[piece] >= parts:
                here[whole] -= 1
                here[piece] += parts
                taken[role.template] = _pieces(role, kinds, dim, shape)
    return [piece for role in roles for piece in taken.get(role.template, [role])]


def _pieces(role: Role, kinds: Sequence[str], dim: int, shape: tuple[int, ...]) -> list[Role]:
    found = []
    for index, kind in enumerate(kinds):
        piece = Piece("split", index, len(kinds), dim)
        members = {n: Part(p.name, (*p.pieces, piece)) for n, p in role.members.items()}
        meaning = replace(role.meaning, kind=kind, block=role.meaning.block or "attn")
        position = role.position + 0.1 * index
        found.append(
            replace(role, members=members, shape=shape, meaning=meaning, position=position)
        )
    return found


def packed_order(template: str) -> str | None:
    """What cannot be told of the order within a packed tensor; None where its name tells."""
    text = normal(template)
    if re.search(r"in_proj|c_attn|qkv|q_k_v|kv", text):
        return None
    if "query_key_value" in text:
        return "some toolkits store it head by head, not q, k, v one after another"
    return "q, k, v in this order is an assumption"
