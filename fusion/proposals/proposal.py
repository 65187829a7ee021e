"""Propose rules for a module and a checkpoint whose names differ; nothing is applied.

Only names, shapes, dtypes, order and ties are looked at. Every proposed rule says how sure it is
and what it cannot decide; what finds no counterpart is listed, not dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import nn

from fusion.checkpoints.source import TensorInfo
from fusion.errors import KeyMapError
from fusion.keymap import KeyMap, Pattern, Rule
from fusion.proposals.evidence import Confidence, together
from fusion.proposals.matching import match
from fusion.proposals.patterns import Found, found_by, rules_for


@dataclass(frozen=True)
class Suggestion:
    """One rule to paste.

    Attributes:
        target: the target's pattern
        source: a pattern, or a mapping with from, ops, where
        covers: how many tensors it is for
    """

    target: str
    source: Any
    confidence: Confidence
    rests_on: tuple[str, ...]
    undecided: tuple[str, ...]
    covers: int


@dataclass(frozen=True)
class Settled:
    """Names, of target and source tensors, that need no more rules."""

    targets: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


NOTHING = Settled()


@dataclass(frozen=True)
class Proposal:
    """What `suggest` found.

    Attributes:
        kept: target tensors that need no rule, since the source calls them the same
        unmatched_targets: target tensor -> why it has no source; ties need only one of their names
        unmatched_sources: source tensors that nothing takes
        ignore: proposed patterns that leave those out -> a reason, which is yours to replace
    """

    suggestions: tuple[Suggestion, ...]
    kept: tuple[str, ...] = ()
    unmatched_targets: Mapping[str, str] = field(default_factory=dict)
    unmatched_sources: tuple[str, ...] = ()
    ignore: Mapping[str, str] = field(default_factory=dict)

    @property
    def rules(self) -> dict[str, Any]:
        """As `warm_start` and a recipe's `rules:` take them."""
        return {one.target: one.source for one in self.suggestions}

    @property
    def is_certain(self) -> bool:
        """Whether every rule is of high confidence with nothing undecided, and nothing is left."""
        sure = all(one.confidence == "high" and not one.undecided for one in self.suggestions)
        return sure and not self.unmatched_targets

    def to_yaml(self) -> str:
        """Text to paste into a recipe."""
        lines = ["rules:"] if self.suggestions else ["# no rules needed"]
        for one in self.suggestions:
            count = f"{one.covers} tensor{'s' if one.covers != 1 else ''}"
            rests = ", ".join(one.rests_on)
            lines.append(f"  # confidence {one.confidence} ({rests}); {count}")
            lines += [f"  #   undecided: {why}" for why in one.undecided]
            lines.append(_line(one.target, one.source))
        if self.kept:
            lines.append(f"# {len(self.kept)} tensors keep their names")
        if self.ignore:
            lines.append("ignore:  # replace each reason by yours, or take the line out")
            lines += [_line(pattern, reason) for pattern, reason in self.ignore.items()]
        if self.unmatched_targets:
            lines.append("# no source found; each needs a rule, or an init:")
            lines += [f"#   {name}: {why}" for name, why in self.unmatched_targets.items()]
        return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    return f"  {_flow(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    """YAML on one line; a scalar without the end mark that PyYAML adds."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()


def tensors_of(module: nn.Module) -> tuple[dict[str, TensorInfo], list[list[str]]]:
    """What a module saves, in its order, and the names that are one tensor."""
    state = module.state_dict(keep_vars=True)
    same: dict[int, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        same[id(tensor)].append(name)
    infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in state.items()}
    return infos, [names for names in same.values() if len(names) > 1]


def suggest(
    target: Mapping[str, TensorInfo],
    source: Mapping[str, TensorInfo],
    ties: Sequence[Sequence[str]] = (),
    settled: Settled = NOTHING,
) -> Proposal:
    """Propose rules.

    Args:
        target: the module's tensors in its order (see `tensors_of`)
        source: the checkpoint's, in the file's order
        ties: target names that are one tensor
        settled: what has been said already; no proposed pattern matches any of it
    """
    found = found_by(match(target, source, ties), target)
    names = [*target, *settled.targets]
    suggestions = tuple(
        _suggestion(covered, rule, found) for covered, rule in rules_for(found, names)
    )
    kept = tuple(name for name, one in found.items() if one.keeps(name))
    used = {key for one in found.values() for key in one.sources}
    group = {name: names for names in ties for name in names}
    lost = {
        name: _why(name, info, source, used)
        for name, info in target.items()
        if name not in found and not any(other in found for other in group.get(name, []))
    }
    rest = tuple(key for key in source if key not in used)
    proposal = Proposal(suggestions, kept, lost, rest, _ignored(rest, source, target, settled))
    _check(proposal, found)
    return proposal


def _suggestion(covered: set[str], rule: Rule, found: Mapping[str, Found]) -> Suggestion:
    evidence = together(found[name].evidence for name in found if name in covered)
    source: Any = rule.source
    if rule.operations or rule.where or not isinstance(source, str):
        source = {"from": source if isinstance(source, str) else list(source)}
        if rule.operations:
            source["ops"] = list(rule.operations)
        if rule.where:
            source["where"] = {hole: _short(table) for hole, table in rule.where.items()}
    return Suggestion(
        rule.target, source, evidence.confidence, evidence.rests_on, evidence.doubts(),
        len(covered),
    )  # fmt: skip


def _short(table: Mapping[str, str]) -> Any:
    """A list where the keys count from 0, as rules may write it."""
    plain = {int(k): int(v) for k, v in table.items()}
    return list(plain.values()) if list(plain) == list(range(len(plain))) else plain


def _why(name: str, info: TensorInfo, source: Mapping[str, TensorInfo], used: set[str]) -> str:
    """Why a target tensor has no source."""
    shape = list(info.shape)
    if name in source and tuple(source[name].shape) != tuple(info.shape):
        return f"shape {shape} here, {list(source[name].shape)} in the source"
    free = [key for key, other in source.items()
            if key not in used and sorted(other.shape) == sorted(info.shape)]  # fmt: skip
    if free:
        return f"shape {shape} fits {', '.join(free[:3])}, but the names speak against it"
    near = [
        key
        for key, other in source.items()
        if key not in used and len(shape) == 2 and other.shape[1:] == info.shape[1:]
    ]
    if near:
        rows = source[near[0]].shape[0]
        return f"{shape[0]} rows here; {near[0]} has {rows} (vocabulary or positions may help)"
    return f"nothing that is left has shape {shape}"


def _ignored(
    rest: Sequence[str],
    source: Mapping[str, TensorInfo],
    target: Mapping[str, TensorInfo],
    settled: Settled,
) -> dict[str, str]:
    """Patterns that match what nothing takes, and nothing else."""
    known = [*source, *settled.sources]
    free, shapes = set(rest), {tuple(info.shape) for info in target.values()}
    found: dict[str, str] = {}
    covered: set[str] = set()
    for key in rest:
        if key in covered:
            continue
        parts = key.split(".")
        heads = [".".join([*parts[:n], "{rest*}"]) for n in range(1, len(parts))]
        for text in [*heads, key]:
            hits = {name for name in known if Pattern(text).match(name) is not None}
            if text == key or (hits <= free and len(hits) > 1 and not hits & covered):
                fits = any(tuple(source[name].shape) in shapes for name in hits)
                reason = "no tensor of the target " + ("needs it" if fits else "has its shape")
                found[text] = f"proposed: {reason}"
                covered |= hits
                break
    return found


def _check(proposal: Proposal, found: Mapping[str, Found]) -> None:
    """What is proposed says exactly what was found, by the rules' own reading.

    Raises:
        KeyMapError: it does not; a mistake of ours.
    """
    keymap = KeyMap.parse(proposal.rules)
    for name, one in found.items():
        hit = keymap.rule_of(name)
        sources = hit[1] if hit is not None else (name,)
        if sources != one.sources:
            raise KeyMapError(f"{name}: proposed {' + '.join(sources)}, found {one.sources}")
    if keymap.unused():
        raise KeyMapError(f"proposed, and matches nothing: {keymap.unused()[0]}")
