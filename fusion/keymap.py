"""Rules that say which source tensors a target tensor comes from: pure data, names invertible.

A pattern is a whole name with holes: `{i}` matches one component (no dot), `{p*}` any number of
characters. `encoder.layers.{i}.fc1.{p}` <- `enc.{i}.ffn_in.{p}` maps `encoder.layers.10.fc1.weight`
to `enc.10.ffn_in.weight`. Patterns match whole names, so `layers.1` never matches `layers.10`.
Text between two `{p*}`, or none between two `{i}`, may leave several ways to fill the holes; a name
that would not come back from the other side is an error, not a guess.

A rule is written as the source's pattern, or as a mapping:

    {from: PATTERN or [PATTERN, ...], ops: [OPERATION, ...], where: {HOLE: [VALUE, ...]}}

`ops` change the tensor on its way (see operations.py); `where` says what a hole of the target
stands for at the source: `{i: [0, 2, 4, 4]}` takes every second layer, and the last one twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from fusion.errors import KeyMapError, nearest

T = TypeVar("T")
_HOLE = re.compile(r"\{([^\W\d]\w*)(\*?)\}")


@dataclass(frozen=True)
class Pattern:
    """A whole-name pattern with named holes."""

    text: str

    def __post_init__(self) -> None:
        if re.search(r"[{}]", _HOLE.sub("", self.text)):
            raise KeyMapError(
                f'"{self.text}": a brace that is no hole; holes look like {{i}} or {{p*}}'
            )
        if len(set(self.holes)) < len(set(self._kinds)):
            raise KeyMapError(f'"{self.text}": one hole is written both {{p}} and {{p*}}')

    @cached_property
    def _kinds(self) -> list[tuple[str, str]]:
        return [(match[1], match[2]) for match in _HOLE.finditer(self.text)]

    @cached_property
    def holes(self) -> list[str]:
        """Names of the holes in order."""
        return [match[1] for match in _HOLE.finditer(self.text)]

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts: list[str] = []
        position, seen = 0, set[str]()
        for match in _HOLE.finditer(self.text):
            parts.append(re.escape(self.text[position : match.start()]))
            name, greedy = match[1], match[2]
            if name in seen:
                parts.append(f"(?P={name})")
            else:
                parts.append(f"(?P<{name}>{'.*' if greedy else '[^.]+'})")
            seen.add(name)
            position = match.end()
        parts.append(re.escape(self.text[position:]))
        return re.compile("".join(parts))

    def match(self, name: str) -> dict[str, str] | None:
        """What fills the holes when the whole name matches, else None."""
        found = self._regex.fullmatch(name)
        return found.groupdict() if found is not None else None

    def fill(self, values: dict[str, str]) -> str:
        """The name with its holes filled.

        Raises:
            KeyMapError: a hole has no value.
        """

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                near = nearest(match[1], values)
                raise KeyMapError(f'"{self.text}": nothing fills the hole {{{match[1]}}}{near}')
            return values[match[1]]

        return _HOLE.sub(value, self.text)


def first_match(patterns: Mapping[Pattern, str], name: str) -> str | None:
    """What the first pattern that matches a name stands for; None: none does."""
    return next(
        (told for pattern, told in patterns.items() if pattern.match(name) is not None), None
    )


@dataclass(frozen=True)
class Rule:
    """target <- source, by pattern; both sides have the same holes, so it runs backwards too.

    Args:
        source: one pattern, or several whose tensors the first operation joins
        operations: applied in order; each is a name, or a mapping of one name to its arguments
        where: hole -> what each value of the target's hole is called at the source
    """

    target: str
    source: str | tuple[str, ...]
    operations: tuple[Any, ...] = ()
    where: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        here = set(Pattern(self.target)._kinds)
        for pattern in self.sources:
            there = set(Pattern(pattern)._kinds)
            if here != there:
                odd = ", ".join(f"{{{name}{star}}}" for name, star in sorted(here ^ there))
                raise KeyMapError(f"{self}: hole on one side only: {odd}")
        for hole in self.where:
            if hole not in {name for name, _ in here}:
                near = nearest(hole, [name for name, _ in here])
                raise KeyMapError(f"{self}: where: no hole {{{hole}}}{near}")

    @classmethod
    def parse(cls, target: str, written: Any) -> Rule:
        """A rule as it is written in a recipe.

        Raises:
            KeyMapError: it has no `from`, a key that rules do not have, or a value of another kind.
        """
        if isinstance(written, str):
            return cls(target, written)
        if not isinstance(written, Mapping) or "from" not in written:
            raise KeyMapError(f'rule "{target}": a source pattern, or from: with ops: and where:')
        for key in written:
            if key not in ("from", "ops", "where"):
                near = nearest(str(key), ["from", "ops", "where"])
                raise KeyMapError(f'rule "{target}": no key "{key}"{near}')
        source, operations = written["from"], written.get("ops") or ()
        if not isinstance(source, str) and not _is_list(source, str):
            raise KeyMapError(
                f'rule "{target}": from: a pattern or a list of them; found {source!r}'
            )
        if isinstance(operations, str | Mapping):
            operations = (operations,)
        if operations != () and not _is_list(operations, str | Mapping):
            raise KeyMapError(f'rule "{target}": ops: a list of operations; found {operations!r}')
        where = written.get("where") or {}
        if not isinstance(where, Mapping):
            raise KeyMapError(
                f'rule "{target}": where: a mapping of holes, {{i: [0, 2]}}; found {where!r}'
            )
        tables = {
            str(hole): {str(k): str(v) for k, v in _pairs(values)} for hole, values in where.items()
        }
        several = source if isinstance(source, str) else tuple(source)
        return cls(target, several, tuple(operations), tables)

    @property
    def sources(self) -> tuple[str, ...]:
        """The source patterns."""
        return (self.source,) if isinstance(self.source, str) else self.source

    def __str__(self) -> str:
        return f'rule "{self.target}" <- ' + " + ".join(f'"{source}"' for source in self.sources)

    def sources_of(self, target: str) -> tuple[str, ...] | None:
        """The source names for a target name; None when the rule is about another tensor.

        Raises:
            KeyMapError: `where` does not say what a hole stands for, or the way back is lost.
        """
        values = Pattern(self.target).match(target)
        if values is None:
            return None
        return tuple(self._fill(Pattern(one), self._there(values, target), target)
                     for one in self.sources)  # fmt: skip

    def source_of(self, target: str) -> str | None:
        """The first source name for a target name."""
        found = self.sources_of(target)
        return found[0] if found is not None else None

    def target_of(self, source: str) -> str | None:
        """The target name for a source name; None when the rule is about another tensor."""
        for pattern in self.sources:
            values = Pattern(pattern).match(source)
            here = self._here(values) if values is not None else None
            if here is not None:
                return self._fill(Pattern(self.target), here, source)
        return None

    def _fill(self, there: Pattern, values: dict[str, str], name: str) -> str:
        mapped = there.fill(values)
        if there.match(mapped) != values:
            raise KeyMapError(
                f'{self}: "{name}" would become "{mapped}", which does not lead back; '
                "put a dot between the holes, and use one {p*} at most"
            )
        return mapped

    def _there(self, values: dict[str, str], name: str) -> dict[str, str]:
        there = dict(values)
        for hole, table in self.where.items():
            if values[hole] not in table:
                raise KeyMapError(
                    f'{self}: "{name}": where.{hole} says nothing of {values[hole]}; it has '
                    f"{', '.join(table)}"
                )
            there[hole] = table[values[hole]]
        return there

    def _here(self, values: dict[str, str]) -> dict[str, str] | None:
        """Hole values at the target; the first of those that share a source."""
        here = dict(values)
        for hole, table in self.where.items():
            found = next((k for k, v in table.items() if v == values[hole]), None)
            if found is None:
                return None
            here[hole] = found
        return here


def nearest_pattern(text: str, names: Iterable[str]) -> str:
    """`nearest` for a pattern that matches none of the names: one with its holes that matches some.

    Without one that is close, the nearest name.
    """
    known, parts = list(names), text.split(".")
    shaped = set()
    for name in known:
        found = name.split(".", len(parts) - 1 if parts[-1].endswith("*}") else -1)
        if len(found) == len(parts):
            pairs = zip(parts, found, strict=True)
            shaped.add(".".join(p if _HOLE.fullmatch(p) else here for p, here in pairs))
    close = nearest(text, shaped - {text})  # which may want two equal holes
    return close if close.startswith("; nearest") else nearest(text, known)


def _is_list(value: Any, kind: Any) -> bool:
    """Whether a value is a list of at least one of a kind."""
    return isinstance(value, list | tuple) and bool(value) and all(
        isinstance(one, kind) for one in value
    )  # fmt: skip


def _pairs(values: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(values, Mapping):
        return values.items()
    if isinstance(values, list | tuple):
        return enumerate(values)
    raise KeyMapError(f"where: a list (by number) or a mapping; found {values!r}")


class KeyMap:
    """Rules for the tensors that are not called the same on both sides.

    Exactly one rule per tensor: two rules that match one name are an error, and so is a rule that
    matches no name. A name that no rule matches keeps its name.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = list(rules)
        self._used: set[int] = set()

    @classmethod
    def parse(cls, rules: Mapping[str, Any]) -> KeyMap:
        """Rules as they are written in a recipe: target pattern -> source."""
        return cls(Rule.parse(target, written) for target, written in rules.items())

    def rule_of(self, target: str) -> tuple[Rule, tuple[str, ...]] | None:
        """The rule for a target name with the source names; None: the name is kept.

        Raises:
            KeyMapError: two rules match.
        """
        return self._only(target, [rule.sources_of(target) for rule in self.rules])

    def source_of(self, target: str) -> str:
        """The (first) source name of a target name.

        Raises:
            KeyMapError: two rules match.
        """
        hit = self.rule_of(target)
        return hit[1][0] if hit is not None else target

    def target_of(self, source: str) -> str:
        """The target name of a source name: the map run backwards.

        Raises:
            KeyMapError: two rules match.
        """
        hit = self._only(source, [rule.target_of(source) for rule in self.rules])
        return hit[1] if hit is not None else source

    def _only(self, name: str, mapped: list[T | None]) -> tuple[Rule, T] | None:
        """The one rule that maps a name, with what it gives; it counts as used."""
        hits = [(index, one) for index, one in enumerate(mapped) if one is not None]
        if len(hits) > 1:
            self._used.update(index for index, _ in hits)
            shown = " and ".join(str(self.rules[index]) for index, _ in hits)
            raise KeyMapError(f'"{name}": more than one rule matches: {shown}')
        if not hits:
            return None
        index, one = hits[0]
        self._used.add(index)
        return self.rules[index], one

    def wanted_by(self, target: str) -> list[str]:
        """Every source name that any rule has for a target name, where several match."""
        found: list[str] = []
        for rule in self.rules:
            try:
                found += rule.sources_of(target) or ()
            except KeyMapError:
                continue  # said elsewhere
        return found

    def unused(self) -> list[Rule]:
        """Rules that have matched nothing so far."""
        return [rule for index, rule in enumerate(self.rules) if index not in self._used]
