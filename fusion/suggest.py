"""Rules proposed for a part of a recipe: what the recipe says already is left as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from fusion.checkpoints.source import Source
from fusion.composition import recipe_parts
from fusion.errors import RecipeError, nearest
from fusion.keymap import KeyMap, Pattern, first_match
from fusion.parts import Part, arguments_of
from fusion.proposals import Proposal, Settled, suggest, tensors_of
from fusion.recipe import Recipe


@dataclass(frozen=True)
class PartProposal:
    """A proposal, and the keys of the recipe below which it belongs."""

    proposal: Proposal
    keys: tuple[str, ...]

    def to_yaml(self) -> str:
        """Text to paste into the recipe."""
        lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(self.keys)]
        indent = "  " * len(self.keys)
        lines += [indent + line for line in self.proposal.to_yaml().splitlines()]
        return "\n".join(lines) + "\n"


def suggest_for(recipe: Recipe, name: str = "host", source: Source | None = None) -> PartProposal:
    """Propose rules for one part of a recipe.

    Args:
        name: `host`, an encoder's name, or the name of glue that has a source
        source: the checkpoint that is to be loaded; by default the part's own

    Raises:
        RecipeError: the recipe has no such part, or neither names a checkpoint.
    """
    model, parts = recipe_parts(recipe)
    keys = _keys(recipe)
    known = {_name(part.prefix): part for part in parts if _name(part.prefix) in keys}
    if name not in known:
        raise RecipeError(f'no part "{name}"{nearest(name, known)}; known: {", ".join(known)}')
    part = known[name]
    if source is not None:
        part = replace(part, source=source)
    if part.source is None:
        raise RecipeError(f"{name}: has no source in the recipe; say which checkpoint")
    module = model.get_submodule(part.prefix.rstrip("."))
    return PartProposal(_proposal(part, part.source, module, recipe), keys[name])


def _keys(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Where a recipe has its parts, by their names."""
    found: dict[str, tuple[str, ...]] = {"host": ("host",)}
    found |= {name: ("encoders", name) for name in recipe.encoders}
    for place, spec in enumerate(recipe.glue):
        if spec.source is not None:
            found[spec.key] = (f"# of glue[{place}]",)
    return found


def _name(prefix: str) -> str:
    return prefix.removeprefix("encoders.").removeprefix("glue.").split(".")[0]


def _proposal(part: Part, source: Source, module: nn.Module, recipe: Recipe) -> Proposal:
    told = arguments_of(part, module, recipe)
    keymap = KeyMap.parse(told["rules"])
    fixed = {Pattern(text): "initialised" for text in told["init"]}
    targets, ties = tensors_of(module)
    every = source.tensors()
    hits = {name: keymap.rule_of(name) for name in targets}
    used = {key for hit in hits.values() if hit is not None for key in hit[1]}
    said = {name for name in targets if hits[name] is not None or first_match(fixed, name)}
    have = {name for name in said if (hit := hits[name]) is None or set(hit[1]) <= every.keys()}
    done = said | {name for names in ties if have & set(names) for name in names}
    ignored = {Pattern(text): why for text, why in told["ignore"].items()}
    used |= {key for key in every if first_match(ignored, key) is not None}
    proposal = suggest(
        {name: info for name, info in targets.items() if name not in done},
        {key: info for key, info in every.items() if key not in used},
        [names for names in ties if not done & set(names)],
        Settled(tuple(done), tuple(used)),
    )
    return _without_computed(proposal, told["computed"])


def _without_computed(proposal: Proposal, computed: Callable[[str], bool]) -> Proposal:
    """What the class computes needs no source."""
    lost = {name: why for name, why in proposal.unmatched_targets.items() if not computed(name)}
    return replace(proposal, unmatched_targets=lost)
