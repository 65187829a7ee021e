"""Rules that say which source tensor a target tensor comes from: pure strings, invertible.

A pattern is a whole name with holes: `{i}` matches one component (no dot), `{p*}` any number of
characters. `encoder.layers.{i}.fc1.{p}` <- `enc.{i}.ffn_in.{p}` maps `encoder.layers.10.fc1.weight`
to `enc.10.ffn_in.weight`. Patterns match whole names, so `layers.1` never matches `layers.10`.
Text between two `{p*}`, or none between two `{i}`, may leave several ways to fill the holes; a name
that would not come back from the other side is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fusion.errors import KeyMapError, nearest

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


@dataclass(frozen=True)
class Rule:
    """target <- source, by pattern; both sides have the same holes, so it runs backwards too."""

    target: str
    source: str

    def __post_init__(self) -> None:
        here, there = set(Pattern(self.target)._kinds), set(Pattern(self.source)._kinds)
        if here != there:
            odd = ", ".join(f"{{{name}{star}}}" for name, star in sorted(here ^ there))
            raise KeyMapError(f"{self}: hole on one side only: {odd}")

    def __str__(self) -> str:
        return f'rule "{self.target}" <- "{self.source}"'

    def source_of(self, target: str) -> str | None:
        """The source name for a target name; None when the rule is about another tensor."""
        return self._across(Pattern(self.target), Pattern(self.source), target)

    def target_of(self, source: str) -> str | None:
        """The target name for a source name; None when the rule is about another tensor."""
        return self._across(Pattern(self.source), Pattern(self.target), source)

    def _across(self, here: Pattern, there: Pattern, name: str) -> str | None:
        values = here.match(name)
        if values is None:
            return None
        mapped = there.fill(values)
        if there.match(mapped) != values:
            raise KeyMapError(
                f'{self}: "{name}" would become "{mapped}", which does not lead back; '
                "put a dot between the holes, and use one {p*} at most"
            )
        return mapped


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
            shown = " and ".join(str(rule) for rule, _ in hits)
            raise KeyMapError(f'"{name}": more than one rule matches: {shown}')
        if not hits:
            return name
        self._used.add(hits[0][0])
        return hits[0][1]

    def unused(self) -> list[Rule]:
        """Rules that have matched nothing so far."""
        return [rule for rule in self.rules if rule not in self._used]
