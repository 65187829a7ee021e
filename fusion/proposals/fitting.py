"""Whether one module's tensors fit another's, by shape and by name, and how sure that is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fusion.proposals.evidence import Evidence
from fusion.proposals.roles import TABLES, Role, slim
from fusion.proposals.wording import agreement, contradictions, is_named

MIXED, DECIDED = 1.5, 2.0  # cost of an odd layout; margin above which a choice is no guess
_BASE, _MISSING = 3.0, 1.0


@dataclass(frozen=True)
class Setting:
    """What holds for a whole comparison.

    Attributes:
        turned: the file is taken to store its matrices transposed
        ordered: the file's order may tell something
        tied: target name -> number of the group of names of one tensor
    """

    turned: bool
    ordered: bool
    tied: Mapping[str, int]


@dataclass(frozen=True)
class Fit:
    """A pair of modules: its tensors pair by pair."""

    score: float
    named: bool
    pairs: tuple[tuple[Role, Role, tuple[Any, ...]], ...]
    open_leaves: bool = False

    @property
    def name(self) -> str:
        """The target's side, for messages."""
        return self.pairs[0][0].template


def fit_units(
    here: list[Role], there: list[Role], where: Mapping[int, int], setting: Setting
) -> Fit | None:
    """The best pairing of two modules' tensors."""
    if len(here) > 4 or len(there) > 4:
        here, there = here[:4], there[:4]
    table = {
        (id(a), id(b)): one
        for a in here
        for b in there
        if (one := _fit_roles(a, b, where, setting)) is not None
    }
    if not table:
        return None
    fits = []
    for columns in itertools.permutations([*there, *[None] * len(here)], len(here)):
        pairs, score, named = [], 0.0, True
        for a, b in zip(here, columns, strict=True):
            one = table.get((id(a), id(b)))
            if one is not None and b is not None:
                pairs.append((a, b, one[0]))
                score += one[1]
                named &= is_named(a.meaning, b.meaning, one[2])
        if pairs:
            alone = len(here) + len(there) - 2 * len(pairs)
            fits.append(Fit(score - _MISSING * alone, named, tuple(pairs)))
    best = max(fits, key=lambda fit: fit.score)
    ids = {(id(a), id(b)) for a, b, _ in best.pairs}
    rivals = [
        fit
        for fit in fits
        if best.score - fit.score < 1.0
        and len(fit.pairs) == len(best.pairs)
        and {(id(a), id(b)) for a, b, _ in fit.pairs} != ids
    ]
    return replace(best, open_leaves=bool(rivals))


def _fit_roles(
    a: Role, b: Role, where: Mapping[int, int], setting: Setting
) -> tuple[tuple[Any, ...], float, float] | None:
    """(operations, score, what names say), or None where the shapes rule it out."""
    found = _operations(a, b, setting.turned)
    both = [layer for layer in a.members if where.get(layer) in b.members]
    if found is None or not both or a.dtype.is_floating_point != b.dtype.is_floating_point:
        return None
    operations, penalty = found
    said = agreement(a.meaning, b.meaning)
    if a.path and a.path == b.path:
        said += 4.0
    if a.template == b.template:
        said += 2.0
    if a.layer is not None and b.layer is not None and a.layer != b.layer:
        said -= 3.0
    penalty += 0.5 * abs(len(a.members) - len(both))
    return operations, _BASE + said - penalty, said


def _operations(a: Role, b: Role, turned: bool) -> tuple[tuple[Any, ...], float] | None:
    """What makes a tensor of b's shape one of a's, and how odd that would be."""
    want, have = a.shape, b.shape
    table = {a.meaning.kind, b.meaning.kind} & set(TABLES)
    if len(want) == 2 and have == want[::-1] and (want != have or (turned and not table)):
        odd = MIXED if want != have and not turned and a.tower is not None else 0.0
        return ("transpose",), odd
    if want == have:
        odd = MIXED if turned and len(want) == 2 and a.tower is not None and not table else 0.0
        return (), odd
    if slim(want) == slim(have):
        return ({"reshape": {"shape": list(want)}},), 0.5
    return None


def judged(fit: Fit, cost: float, other: str | None, setting: Setting) -> Evidence:
    """How sure a fit is.

    Args:
        cost: how much worse the best assignment without it is, by names and shapes alone
        other: the target that would swap with it; None: a source that nothing else takes
    """
    if cost < DECIDED:
        order = (
            "the file's order is taken for the module's"
            if setting.ordered
            else "taken in the file's order, which is alphabetical"
        )
        why = f"equal shapes, and names that do not tell which is which; {order}"
        return Evidence("low", ("order",)).doubted(
            why, f"{fit.name} and {other or 'another candidate in the file'}"
        )
    evidence = Evidence("fair", ("shapes: nothing else fits",))
    if fit.named:
        evidence = Evidence("high", ("names", "shapes"))
    for a, b, _ in fit.pairs:
        against = contradictions(a.meaning, b.meaning)
        if against:
            why = f"names that speak of different things ({', '.join(against)})"
            evidence = evidence.doubted(why, f"{a.template} and {b.template}")
    if fit.open_leaves:
        evidence = evidence.doubted("which is the weight and which the bias is assumed", fit.name)
    return evidence
