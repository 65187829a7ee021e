"""The sites that a recipe's patterns name."""

from __future__ import annotations

import difflib
import re

from fusion.errors import SiteError
from fusion.keymap import Pattern

_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_NUMBERED = re.compile(r"-?\d+|\*/\d+|\{.*\}")
SHOWN = 40  # kinds of sites in an error
_EVERY = re.compile(r"\*/([1-9]\d*)")


def select_sites(patterns: list[str], sites: list[str]) -> list[str]:
    """The sites that patterns name, once each, in the host's order.

    A pattern is a site's name in which `*` stands for any component, `**` for any number of them,
    `*/4` for the layers 0, 4, 8 and so on, `-1` for the last layer, `{0,2}` for alternatives and
    `{3..11}` or `{3..11..4}` for a range of layers with both ends, in steps.

    Raises:
        SiteError: a pattern, or a layer in one of its sets or ranges, matches none (lists the
            host's sites), or only sites that patterns before it have named already.
    """
    chosen: dict[str, str] = {}
    for text in patterns:
        found = {one: _named(one, sites) for one in _alternatives(text)}
        hits = [site for site in sites if any(site in named for named in found.values())]
        if not hits:
            raise SiteError(f'no site "{text}"{_what_there_is(text, sites)}')
        for one, named in found.items():
            if not named and _named(_starred(one), sites):  # the kind is there, the layer is not
                raise SiteError(f'no site "{one}" of "{text}"{_what_there_is(one, sites)}')
        if all(site in chosen for site in hits):
            before = ", ".join(dict.fromkeys(f'"{chosen[site]}"' for site in hits))
            raise SiteError(f'sites: "{text}" names nothing new; {before} has all of it')
        for site in hits:
            chosen.setdefault(site, text)
    return [site for site in sites if site in chosen]


def _named(text: str, sites: list[str]) -> set[str]:
    """The sites that a pattern without alternatives names."""
    tests = _component_tests(text, sites)
    return {site for site in sites if _matches(tests, site)}


def _what_there_is(text: str, sites: list[str]) -> str:
    """The nearest pattern, and all sites with the layers of a kind in one: `encoder.{0..5}.x`."""
    layers: dict[str, list[int]] = {}
    for site in sites:
        numbers = [int(part) for part in site.split(".") if part.isdigit()]
        layers.setdefault(_starred(site), []).extend(numbers[:1])
    roles = [
        role.replace("*", f"{{{min(found)}..{max(found)}}}" if len(set(found)) > 1 else "0", 1)
        if found == list(range(len(found)))
        else role
        for role, found in layers.items()
    ]
    close = difflib.get_close_matches(_starred(text), layers, n=1)
    near = f'; nearest: "{close[0]}"' if close else ""
    shown = ", ".join(roles[:SHOWN]) + (", ..." if len(roles) > SHOWN else "")
    return f"{near}; this host has: {shown}"


def _starred(site: str) -> str:
    return ".".join("*" if _NUMBERED.fullmatch(part) else part for part in site.split("."))


def _alternatives(text: str) -> list[str]:
    """`decoder.{3,5}.x` -> `decoder.3.x`, `decoder.5.x`."""
    before, brace, rest = text.partition("{")
    inside, closing, after = rest.partition("}")
    if not brace or not closing:
        return [text]
    return [
        a
        for choice in inside.split(",")
        for one in _range(choice.strip())
        for a in _alternatives(before + one + after)
    ]


def _range(text: str) -> list[str]:
    """`3..11..4` -> 3, 7, 11; anything else stays as it is."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return [text]
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    return [str(number) for number in range(first, last + 1, max(step, 1))]


def _component_tests(text: str, sites: list[str]) -> tuple[Pattern, int | None]:
    """A pattern of whole names, and the step of a `*/4` in it."""
    parts, step = [], None
    for number, part in enumerate(text.split(".")):
        every = _EVERY.fullmatch(part)
        if every is not None:
            step = int(every[1])
            parts.append("{every}")
        elif re.fullmatch(r"-[1-9]\d*", part):
            layers = _layers(parts, sites)
            index = len(layers) + int(part)
            parts.append(str(layers[index]) if index >= 0 else part)
        else:
            parts.append(_holes(part, number))
    return Pattern(".".join(parts)), step


def _layers(before: list[str], sites: list[str]) -> list[int]:
    """The numbers of the layers of a side, `before` being the components in front of the number."""
    found = set()
    for site in sites:
        parts = site.split(".")
        head = Pattern(".".join(before)).match(".".join(parts[: len(before)]))
        if head is not None and len(parts) > len(before) and parts[len(before)].isdigit():
            found.add(int(parts[len(before)]))
    return sorted(found)


def _holes(part: str, number: int) -> str:
    """`*` -> a hole for the component; `*` within a component is text, as in no site's name."""
    return {"*": f"{{h{number}}}", "**": f"{{h{number}*}}"}.get(part, part)


def _matches(tests: tuple[Pattern, int | None], site: str) -> bool:
    pattern, step = tests
    values = pattern.match(site)
    if values is None:
        return False
    every = values.get("every")
    return every is None or (every.isdigit() and step is not None and int(every) % step == 0)
