"""Which tensors a recipe trains, when, and at which peak rate: names and numbers, no torch.

A name in `learning_rates:`, `policies:` and a stage's `train:` is a part (`host`, `encoders`,
`encoders.bert`, `glue`, `glue.gated`, `mixes`), any longer beginning of a tensor's name, or a
pattern of whole names with holes (`host.model.{side}.layers.{i}.fc1.{p*}`). Where several match
a tensor, the most specific one decides: a pattern before a beginning, a longer before a shorter.
A layer mix is glue wherever it is not named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from fusion.errors import KeyMapError, RecipeError, nearest
from fusion.keymap import Pattern
from fusion.recipe import LearningRates, PolicySpec, Recipe, StageSpec

T = TypeVar("T")
# Not the number that an encoder's name ends in within the name of a site: bert_2_0_output
_NUMBER = re.compile(r"[._](\d+)(?=[._]|$)(?!__|_\d)")
_NAMED = ("encoders", "glue", "mixes")  # parts that the recipe names
_LOWEST = ("embed", "shared", "wte", "wpe", "position")


@dataclass(frozen=True)
class Phase:
    """A stage of a run with all that `train:` says in its place, or a run without stages.

    Attributes:
        wanted: parts and patterns that it trains; None: whatever is not frozen for good
        rate: peak learning rate of what `rates` does not name; None: `train.learning_rate`
        schedule, warmup: None: as in `train:`
    """

    label: str
    where: str
    wanted: tuple[str, ...] | None
    policies: Mapping[str, PolicySpec]
    rates: Mapping[str, float]
    rate: float | None = None
    schedule: str | None = None
    warmup: int | None = None

    def trains(self, tensor: str) -> bool:
        """Whether it trains a tensor at some time."""
        named = self.wanted is None or any(_strength(name, tensor) for name in self.wanted)
        return named and not self.policy(tensor).freeze

    def policy(self, tensor: str) -> PolicySpec:
        """What holds for a tensor, said by one name or by several.

        Of `freeze: true` and of settings that say when, the more specific name's hold.
        """
        said: dict[str, Any] = {}
        for name in sorted(self.policies, key=lambda name: _strength(name, tensor)):
            if _strength(name, tensor):
                own = {key: value for key, value in self.policies[name] if value is not None}
                if own.keys() - {"freeze"}:
                    said.pop("freeze", None)
                said |= own
        return PolicySpec(freeze=True) if said.get("freeze") else PolicySpec(**said)

    def peak(self, tensor: str, base: float) -> float:
        """A tensor's peak learning rate."""
        return peak_rate(self.rates, tensor, base if self.rate is None else self.rate)


def phases(recipe: Recipe) -> list[Phase]:
    """The stages of a recipe in order; one that trains everything where it has none."""
    common, rates = recipe.train.policies, recipe.train.learning_rates
    if not recipe.stages:
        return [Phase("all", "train", None, common, rates.by_name)]
    return [
        _phase(stage, f"stages[{index}]", common, rates)
        for index, stage in enumerate(recipe.stages)
    ]


def _phase(
    stage: StageSpec, where: str, common: Mapping[str, PolicySpec], rates: LearningRates
) -> Phase:
    own = stage.learning_rate is not None or stage.learning_rates is not None
    mine = (stage.learning_rates or LearningRates()) if own else rates
    return Phase(
        label=stage.label,
        where=where,
        wanted=None if stage.train == "all" else tuple(stage.train),
        policies={**common, **stage.policies},
        rates=mine.by_name,
        rate=stage.learning_rate,
        schedule=stage.lr_scheduler_type,
        warmup=stage.warmup_steps,
    )


def freezes_for_a_time(recipe: Recipe) -> bool:
    """Whether what is trained changes during the run."""
    policies = [*recipe.train.policies.values()]
    for stage in recipe.stages:
        policies += stage.policies.values()
    return bool(recipe.stages) or any(
        policy.after or policy.unfreeze or (policy.schedule and policy.schedule.type == "ctnmt")
        for policy in policies
    )


def never_trained(recipe: Recipe, tensors: Collection[str]) -> set[str]:
    """The tensors that no stage trains.

    Raises:
        RecipeError: a name matches no tensor, or nothing is left to train.
    """
    stages = phases(recipe)
    _check_names(stages, tensors)
    never = {tensor for tensor in tensors if not any(stage.trains(tensor) for stage in stages)}
    if tensors and len(never) == len(tensors):
        raise RecipeError("train.policies: everything is frozen, so nothing is trained")
    return never


def _check_names(stages: Iterable[Phase], tensors: Collection[str]) -> None:
    for stage in stages:
        rates = [name for name in stage.rates if "." in name or "{" in name]
        keys = {"train": stage.wanted or (), "policies": stage.policies, "learning_rates": rates}
        for key, names in keys.items():
            for name in names:
                try:
                    found = any(_strength(name, tensor) for tensor in tensors)
                except KeyMapError as error:
                    raise RecipeError(f"{stage.where}.{key}: {error}") from None
                if not found:
                    near = nearest(name, tensors)
                    raise RecipeError(
                        f'{stage.where}.{key}: "{name}" matches no tensor that can be trained{near}'
                    )


@cache
def _strength(name: str, tensor: str) -> int:
    """How specific a name is for a tensor; 0: it does not match."""
    if "{" in name:
        pattern = Pattern(name)
        if pattern.match(tensor) is None:
            return 0
        return 1_000_000 + len(re.sub(r"\{[^}]*\}", "", name))
    if tensor == name or tensor.startswith(f"{name}."):
        return 1 + len(name)
    return 1 if name == "glue" and tensor.startswith("mixes.") else 0


def _most_specific(told: Mapping[str, T], tensor: str) -> T | None:
    name = max(told, key=lambda name: _strength(name, tensor), default=None)
    return told[name] if name is not None and _strength(name, tensor) else None


def unfreezing_order(tensors: Iterable[str], order: str) -> dict[str, int]:
    """How many layers are unfrozen before each tensor is; every stack of layers by itself.

    A tensor's layer is the first number in its name after the part's own, its stack what comes
    before. Of what is in no layer, embeddings (by their names) are below the lowest layer, and the
    rest (norms at the end, heads) goes with the highest.

    Args:
        order: `top` or `bottom`, which layer is first

    Raises:
        RecipeError: there are no layers.
    """
    places = {tensor: _layer(tensor) for tensor in tensors}
    counts: dict[str, int] = {}
    for stack, layer in filter(None, places.values()):
        counts[stack] = max(counts.get(stack, 0), layer + 1)
    if not counts:
        raise RecipeError("there are no numbered layers to unfreeze one after the other")
    deepest, turns = max(counts.values()), {}
    for tensor, place in places.items():
        if place is not None:
            stack, layer = place
            below_top = counts[stack] - 1 - layer
            turns[tensor] = below_top if order == "top" else layer + 1
        else:
            lowest = any(word in tensor for word in _LOWEST)
            turns[tensor] = deepest if lowest == (order == "top") else 0
    first = min(turns.values())
    return {tensor: turn - first for tensor, turn in turns.items()}


def _layer(tensor: str) -> tuple[str, int] | None:
    pieces = tensor.split(".")
    part = ".".join(pieces[: 2 if pieces[0] in _NAMED else 1])
    match = _NUMBER.search(tensor, len(part))
    return None if match is None else (tensor[: match.start()], int(match[1]))


def peak_rate(rates: Mapping[str, float], tensor: str, base: float) -> float:
    """A tensor's peak learning rate; `base` where no name in `rates` matches."""
    found = _most_specific(rates, tensor)
    return base if found is None else found


def part_of(tensor: str) -> str:
    """`host`, `encoders.bert`, `glue.gated`, `mixes`: what a tensor's rate is logged under."""
    pieces = tensor.split(".")
    return ".".join(pieces[:2]) if pieces[0] in ("encoders", "glue") else pieces[0]
