"""From matches, tensor by tensor, to few rules with holes that say exactly the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fusion.checkpoints.source import TensorInfo
from fusion.errors import KeyMapError
from fusion.keymap import Pattern, Rule
from fusion.proposals.evidence import Evidence, together
from fusion.proposals.matching import Match
from fusion.proposals.roles import Piece


@dataclass(frozen=True)
class Found:
    """Where one target tensor comes from, and the patterns that say so for every layer."""

    sources: tuple[str, ...]
    operations: tuple[Any, ...]
    target_template: str
    source_templates: tuple[str, ...]
    where: tuple[tuple[int, int], ...]
    evidence: Evidence

    def keeps(self, name: str) -> bool:
        """Whether no rule is needed."""
        return self.sources == (name,) and not self.operations


def found_by(matches: Iterable[Match], target: Mapping[str, TensorInfo]) -> dict[str, Found]:
    """Target name -> its sources; the pieces of a packed target are put together."""
    pieces: dict[str, list[tuple[int, Match, str, tuple[Any, ...]]]] = defaultdict(list)
    for one in matches:
        for _, here, there in one.pairs:
            steps = (*(piece.operation for piece in there.pieces), *one.operations)
            index = here.pieces[-1].index if here.pieces else 0
            pieces[here.name].append((index, one, there.name, steps))
    found = {}
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[0])
        joined = _joined(name, tuple(target[name].shape), parts)
        if joined is not None:
            found[name] = joined
    return found


def _joined(
    name: str, shape: tuple[int, ...], parts: list[tuple[int, Match, str, tuple[Any, ...]]]
) -> Found | None:
    """One target tensor; None where its pieces cannot be joined by one rule."""
    _, first, _, steps = parts[0]
    part = next(here for _, here, _ in first.pairs if here.name == name)
    layered = all("{i}" in one.template for one in (first.target, first.source))
    where = tuple(first.where.items()) if layered else ()
    sources = tuple(there for _, _, there, _ in parts)
    templates = tuple(m.source.template for _, m, _, _ in parts) if layered else sources
    evidence = together(m.evidence for _, m, _, _ in parts)
    if part.pieces:
        piece = part.pieces[-1]
        alike = all(other == steps for *_, other in parts)
        joined = _join(piece, steps, shape)
        if len(parts) != piece.parts or not alike or len(part.pieces) > 1 or joined is None:
            return None
        steps = joined
    target = first.target.template if layered else name
    return Found(sources, steps, target, templates, where, evidence)


def _join(piece: Piece, steps: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...] | None:
    """Operations that make a packed tensor of whole ones, each of which would need `steps`."""
    stack = piece.kind == "pick"
    if steps == ("transpose",):
        dim = 1 - piece.dim
        step: Any = {"transpose": {"first": 1, "second": 2}} if stack else "transpose"
        return ("stack" if stack else _concat(dim), step)
    if not steps:
        return ("stack" if stack else _concat(piece.dim),)
    if all(isinstance(step, dict) and set(step) == {"reshape"} for step in steps):
        return ("stack" if stack else _concat(-1), {"reshape": {"shape": list(shape)}})
    return None


def _concat(dim: int) -> Any:
    return {"concat": {"dim": dim}} if dim else "concat"


def rules_for(found: Mapping[str, Found], targets: list[str]) -> list[tuple[set[str], Rule]]:
    """(tensors, rule): few rules with holes that say exactly what was found."""
    candidates: dict[str, Rule] = {}
    for name, one in found.items():
        if not one.keeps(name):
            for rule in _candidates(name, one):
                candidates.setdefault(repr(rule), rule)
    owners: dict[str, set[str]] = defaultdict(set)
    for name, one in found.items():
        for key in one.sources:
            owners[key].add(name)
    fitting = [(covered, rule) for rule in candidates.values()
               if (covered := _covered(rule, found, targets, owners))]  # fmt: skip
    fitting.sort(key=lambda pair: (-len(pair[0]), len(pair[1].target)))
    taken: set[str] = set()
    chosen = []
    for covered, rule in fitting:
        if not covered & taken:
            taken |= covered
            chosen.append((covered, rule))
    order = {name: position for position, name in enumerate(targets)}
    chosen.sort(key=lambda pair: min(order[name] for name in pair[0]))
    return chosen


def _candidates(name: str, one: Found) -> Iterable[Rule]:
    """The rule for one tensor, and more and more general ones."""
    yield Rule(name, _single(one.sources), one.operations)
    layered = (one.target_template, *one.source_templates)
    shapes = [[text.split(".") for text in layered]]
    if one.where and all(a == b for a, b in one.where):
        shapes.append([text.split(".") for text in (name, *one.sources)])
    number = next((n for n, part in enumerate(shapes[0][0]) if "{i}" in part), 0)
    for plain in shapes:
        for texts in (plain, _sides(plain)):
            for holes in _tails(texts):
                target, *sources = (".".join(parts) for parts in holes)
                rule = _rule(target, tuple(sources), one)
                of_one_layer = (
                    plain is not shapes[0] and holes[0][number:][:1] == plain[0][number:][:1]
                )
                if not of_one_layer and (target not in sources or rule.operations or rule.where):
                    yield rule


def _sides(texts: list[list[str]]) -> list[list[str]]:
    """With a hole for encoder or decoder, where both sides say it."""
    for word in ("encoder", "decoder"):
        if all(parts.count(word) == 1 for parts in texts):
            return [["{s}" if part == word else part for part in parts] for parts in texts]
    return texts


def _tails(texts: list[list[str]]) -> Iterable[list[list[str]]]:
    """With holes for the components that all names end in: none, one each, one for all."""
    yield texts
    tail: list[str] = []
    for column in zip(*(reversed(parts) for parts in texts), strict=False):
        if len(set(column)) > 1:
            return
        hole = column[0] if column[0].startswith("{") else f"{{{'pqrtuvwxyz'[len(tail) % 10]}}}"
        tail.insert(0, hole)
        length = len(tail)
        if len(set(tail)) == length:
            yield [[*parts[:-length], *tail] for parts in texts]
        yield [[*parts[:-length], "{p*}"] for parts in texts]


def _rule(target: str, sources: tuple[str, ...], one: Found) -> Rule:
    moved = "{i}" in target and any(a != b for a, b in one.where)
    where = {"i": {str(a): str(b) for a, b in one.where}} if moved else {}
    return Rule(target, _single(sources), one.operations, where)


def _single(sources: tuple[str, ...]) -> str | tuple[str, ...]:
    return sources[0] if len(sources) == 1 else sources


def _covered(
    rule: Rule, found: Mapping[str, Found], targets: list[str], owners: Mapping[str, set[str]]
) -> set[str]:
    """The tensors a rule is for; none where it would say something else of any tensor."""
    covered = set()
    here, there = Pattern(rule.target), [Pattern(source) for source in rule.sources]
    try:
        for name in targets:
            if here.match(name) is None:
                continue
            one = found.get(name)
            if one is None or one.operations != rule.operations:
                return set()
            if one.sources != rule.sources_of(name):
                return set()
            covered.add(name)
        for key, names in owners.items():
            back = not names & covered and any(side.match(key) is not None for side in there)
            if back and rule.target_of(key) is not None:
                return set()
    except KeyMapError:
        return set()
    return covered
