"""Which tensor of a file is which tensor of a module, by shape, name, order; with what it rests on.

Shapes are hard constraints. Names score by what they mean (wording.py), order only breaks ties; a
choice that only the order made is said to be one. Towers (stacks of layers) are paired first, then
the modules in a layer, then what is left over one by one. The whole is done twice, once as if the
file stored matrices transposed, and the better fit is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusion.checkpoints.source import TensorInfo
from fusion.operations import dtype_name, is_lossy
from fusion.proposals.assignment import NEVER, assign, margins
from fusion.proposals.evidence import Evidence
from fusion.proposals.fitting import DECIDED, MIXED, Setting, fit_units, judged
from fusion.proposals.packing import packed_order, unpacked, unstacked
from fusion.proposals.roles import (
    TABLES,
    Part,
    Role,
    layers,
    roles_of,
    towers,
)
from fusion.proposals.wording import is_ordered


@dataclass(frozen=True)
class Match:
    """A target role and the source role that fills it.

    Attributes:
        where: layer of the target -> layer of the source
    """

    target: Role
    source: Role
    operations: tuple[Any, ...]
    where: Mapping[int, int]
    evidence: Evidence

    @property
    def pairs(self) -> list[tuple[int, Part, Part]]:
        """(layer, target tensor, source tensor)."""
        return [
            (layer, part, self.source.members[self.where[layer]])
            for layer, part in self.target.members.items()
            if self.where.get(layer) in self.source.members
        ]


@dataclass
class _Result:
    """All matches under one setting."""

    score: float = 0.0
    matches: list[Match] = field(default_factory=list)
    targets: list[Role] = field(default_factory=list)
    sources: list[Role] = field(default_factory=list)


def match(
    target: Mapping[str, TensorInfo],
    source: Mapping[str, TensorInfo],
    ties: Sequence[Sequence[str]] = (),
) -> list[Match]:
    """The matches, those of towers first.

    Args:
        target, source: in the order of the module and of the file
        ties: names of the target that are one tensor
    """
    here, there = roles_of(target), roles_of(source)
    here, there = unstacked(here, there), unstacked(there, here)
    tied = {name: number for number, names in enumerate(ties) for name in names}
    results = []
    for turned in (False, True):
        setting = Setting(turned, is_ordered(source), tied)
        results.append(_match_all(here, there, setting))
    best = results[results[1].score > results[0].score]
    gap = abs(results[0].score - results[1].score)
    return [_packing(_cast(one)) for one in _layout(best.matches, gap)]


def _match_all(here: list[Role], there: list[Role], setting: Setting) -> _Result:
    """Tower by tower, then everything else."""
    ours, theirs = towers(here), towers(there)
    left = [name for name in ours if name is not None]
    right = [name for name in theirs if name is not None]
    total = _Result()
    spare, unused = list(ours.get(None, [])), list(theirs.get(None, []))
    tried = [[_tower(ours[a], theirs[b], setting) for b in right] for a in left]
    scores = [
        [one.score - 0.01 * (row - column) ** 2 for column, one in enumerate(line)]
        for row, line in enumerate(tried)
    ]
    chosen: list[int | None] = assign(scores) if right else [None] * len(left)
    doubts = margins(scores, chosen, list(range(len(left)))) if right else []
    for row, column in enumerate(chosen):
        if column is None:
            spare += ours[left[row]]
            continue
        found = tried[row][column]
        if doubts[row][0] < DECIDED and len(left) > 1:
            why = "stacks of layers that look alike, taken in order"
            _doubt(found, why, f"{left[row]} and {right[column]}")
        _add(total, found)
        spare += found.targets
        unused += found.sources
    for index in set(range(len(right))) - {c for c in chosen if c is not None}:
        unused += theirs[right[index]]
    _add(total, _outside(spare, unused, setting))
    return total


def _outside(spare: list[Role], unused: list[Role], setting: Setting) -> _Result:
    """Tensors one by one, whatever their layer: modules first, then single tensors."""
    ours = [one for role in spare for one in role.alone()]
    theirs = [one for role in unused for one in role.alone()]
    theirs = unpacked(theirs, ours)
    ours = unpacked(ours, theirs)
    return _twice(ours, theirs, {0: 0}, setting)


def _tower(here: list[Role], there: list[Role], setting: Setting) -> _Result:
    """A stack of layers against another."""
    where, why = _layers(layers(here), layers(there))
    theirs = unpacked(there, here)
    found = _twice(unpacked(here, theirs), theirs, where, setting)
    if why is not None:
        found.score -= 1.0
        _doubt(found, why, f"{here[0].tower}* and {there[0].tower}*")
    return found


def _layers(here: list[int], there: list[int]) -> tuple[dict[int, int], str | None]:
    """Which layer of the source each layer of the target is; what cannot be decided about it."""
    count, wide = len(here), len(there)
    if count == wide:
        return dict(zip(here, there, strict=True)), None
    if count > wide:
        picks = [min(n, wide - 1) for n in range(count)]
        how = "the last one is repeated"
    elif wide % count == 0:
        picks = [n * (wide // count) for n in range(count)]
        how = f"one in {wide // count} is taken"
    else:
        picks = [round(n * (wide - 1) / max(count - 1, 1)) for n in range(count)]
        how = "evenly spaced ones are taken"
    why = f"{count} layers here, {wide} in the source: {how}; which ones is for you to say"
    return {layer: there[pick] for layer, pick in zip(here, picks, strict=True)}, why


def _twice(
    here: list[Role], there: list[Role], where: Mapping[int, int], setting: Setting
) -> _Result:
    """Modules against modules, then their tensors that are still alone."""
    total = _Result()
    for grouped in (True, False):
        found = _once(_units(here, grouped), _units(there, grouped), where, setting)
        if any(m.evidence.confidence == "low" for m in total.matches):
            # What is left over is no surer than what was taken before it.
            found.matches = [replace(m, evidence=m.evidence.capped("fair")) for m in found.matches]
        _add(total, found)
        taken = {id(role) for m in total.matches for role in (m.target, m.source)}
        here = [role for role in here if id(role) not in taken]
        there = [role for role in there if id(role) not in taken]
    total.targets, total.sources = here, there
    return total


def _units(roles: list[Role], grouped: bool) -> list[list[Role]]:
    if not grouped:
        return [[role] for role in roles]
    units: dict[tuple[Any, ...], list[Role]] = {}
    for role in roles:
        units.setdefault((role.layer, *role.key), []).append(role)
    return list(units.values())


def _once(
    here: list[list[Role]],
    there: list[list[Role]],
    where: Mapping[int, int],
    setting: Setting,
) -> _Result:
    """One assignment; its score counts the order, its evidence does not."""
    if not here or not there:
        return _Result()
    fits = [[fit_units(a, b, where, setting) for b in there] for a in here]
    said = [[fit.score if fit is not None else NEVER for fit in line] for line in fits]
    tall, wide = len(here), len(there)
    ranked = [
        [value - 0.5 * (row / tall - column / wide) ** 2 for column, value in enumerate(line)]
        for row, line in enumerate(said)
    ]
    chosen = assign(ranked)
    groups = [_group(unit, row, setting.tied) for row, unit in enumerate(here)]
    doubts = margins(said, chosen, groups)
    found = _Result()
    for row, column in enumerate(chosen):
        fit = fits[row][column] if column is not None else None
        if fit is None or column is None:
            continue
        found.score += ranked[row][column]
        cost, partner = doubts[row]
        other = here[partner][0].template if partner is not None else None
        evidence = judged(fit, cost, other, setting)
        found.matches += [Match(a, b, ops, where, evidence) for a, b, ops in fit.pairs]
    return found


def _group(unit: list[Role], row: int, tied: Mapping[str, int]) -> int:
    """Names of one tensor may swap their sources; all others stand alone."""
    names = [part.name for role in unit for part in role.members.values()]
    return -1 - tied[names[0]] if len(names) == 1 and names[0] in tied else row


def _doubt(found: _Result, why: str, what: str) -> None:
    found.matches = [replace(m, evidence=m.evidence.doubted(why, what)) for m in found.matches]


def _add(total: _Result, found: _Result) -> None:
    total.score += found.score
    total.matches += found.matches


def _layout(matches: list[Match], gap: float) -> list[Match]:
    """Say of square matrices what their transposition, or the lack of it, rests on."""
    votes = {
        bool(m.operations)
        for m in matches
        if _is_matrix(m) and m.target.shape[0] != m.target.shape[1]
    }
    result = []
    for one in matches:
        if _is_matrix(one):
            square = one.target.shape[0] == one.target.shape[1]
            name = one.target.template
            if gap < MIXED and (one.target.tower is not None or square):
                why = "may be transposed; the shapes fit both ways"
                one = replace(one, evidence=one.evidence.doubted(why, name))
            elif square and len(votes) != 1:
                told = "that are not square differ" if votes else "are all square"
                why = f"square, may be transposed, and the other matrices {told}"
                one = replace(one, evidence=one.evidence.doubted(why, name))
            elif square:
                rests = (*one.evidence.rests_on, "layout of the matrices that are not square")
                one = replace(one, evidence=replace(one.evidence, rests_on=rests))
        result.append(one)
    return result


def _is_matrix(one: Match) -> bool:
    kinds = {one.target.meaning.kind, one.source.meaning.kind}
    return len(one.target.shape) == 2 and not kinds & set(TABLES) and _plain(one)


def _plain(one: Match) -> bool:
    return one.operations in ((), ("transpose",))


def _cast(one: Match) -> Match:
    if not is_lossy(one.source.dtype, one.target.dtype):
        return one
    to = dtype_name(one.target.dtype)
    evidence = one.evidence.doubted(
        f"the cast from {dtype_name(one.source.dtype)} loses precision", one.target.template, "fair"
    )
    return replace(one, operations=(*one.operations, {"cast": to}), evidence=evidence)


def _packing(one: Match) -> Match:
    """Doubt the order within a packed tensor, unless its name tells or both sides say the same."""
    roles = (one.source, one.target)
    split = [
        role
        for role in roles
        if any(piece.kind == "split" for piece in next(iter(role.members.values())).pieces)
    ]
    if not split and {role.meaning.kind for role in roles} & {"qkv", "kv"}:
        whole = {packed_order(role.template) for role in roles}
        split = [*roles] if len(whole) > 1 else []
    for role in split:
        why = packed_order(role.template)
        if why is not None:
            one = replace(one, evidence=one.evidence.doubted(why, role.template))
    return one
