"""Rules that say which source tensor a target tensor comes from: pure strings, invertible.

A pattern is a whole name with holes: `{i}` matches one component (no dot), `{p*}` any number of
characters. `encoder.layers.{i}.fc1.{p}` <- `enc.{i}.ffn_in.{p}` maps `encoder.layers.10.fc1.weight`
to `enc.10.ffn_in.weight`. Patterns match whole names, so `layers.1` never matches `layers.10`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fusion.errors import KeyMapError, nearest

_HOLE = re.compile(r"\{(\w+)(\*?)\}")


@dataclass(frozen=True)
class Pattern:
    """A whole-name pattern with named holes."""

    text: str

    @cached_property
    def holes(self) -> list[str]:
        """Names of the holes in order."""
        return [match[1] for match in _HOLE.finditer(self.text)]

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts, position, seen = [], 0, set()
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
                raise KeyMapError(
                    f'"{self.text}": nothing fills the hole {{{match[1]}}}{nearest(match[1], values)}'
                )
            return values[match[1]]

        return _HOLE.sub(value, self.text)


@dataclass(frozen=True)
class Rule:
    """target <- source, by pattern; both sides have the same holes, so it runs backwards as well."""

    target: str
    source: str

    def __post_init__(self) -> None:
        here, there = set(Pattern(self.target).holes), set(Pattern(self.source).holes)
        if here != there:
            odd = ", ".join(sorted(here ^ there))
            raise KeyMapError(f'rule "{self.target}" <- "{self.source}": hole on one side only: {odd}')

    def source_of(self, target: str) -> str | None:
        """The source name for a target name; None when the rule is about another tensor."""
        values = Pattern(self.target).match(target)
        return Pattern(self.source).fill(values) if values is not None else None

    def target_of(self, source: str) -> str | None:
        """The target name for a source name; None when the rule is about another tensor."""
        values = Pattern(self.source).match(source)
        return Pattern(self.target).fill(values) if values is not None else None


class KeyMap:
    """Rules for the tensors that are not called the same on both sides.

    Exactly one rule per tensor: two rules that match one name are an error, and so is a rule that
    matches no name. A name that no rule matches keeps its name.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = list(rules)
        self._used: set[Rule] = set()

    def source_of(self, target: str) -> str:
        """The source name of a target name.

        Raises:
            KeyMapError: two rules match.
        """
        return self._map(target, backwards=False)

    def target_of(self, source: str) -> str:
        """The target name of a source name: the map run backwards."""
        return self._map(source, backwards=True)

    def _map(self, name: str, *, backwards: bool) -> str:
        hits = []
        for rule in self.rules:
            mapped = rule.target_of(name) if backwards else rule.source_of(name)
            if mapped is not None:
                hits.append((rule, mapped))
        if len(hits) > 1:
            shown = " and ".join(f'"{r.target}" <- "{r.source}"' for r, _ in hits)
            raise KeyMapError(f'"{name}": more than one rule matches: {shown}')
        if not hits:
            return name
        self._used.add(hits[0][0])
        return hits[0][1]

    def unused(self) -> list[Rule]:
        """Rules that have matched nothing so far."""
        return [rule for rule in self.rules if rule not in self._used]
