"""Names that learning rates, policies and stages use: parts of the recipe, or patterns."""

from __future__ import annotations

from collections.abc import Iterable

from fusion.errors import nearest
from fusion.recipe.recipe import Recipe
from fusion.recipe.training import LENGTHS

PARTS = ("host", "encoders", "glue", "mixes")


def training_problems(recipe: Recipe) -> list[str]:
    """One line per name that is no part, and per part that is frozen and to be trained."""
    problems: list[str] = []
    for where, names in _named(recipe):
        problems += [f"{where}.{name}: {said}" for name in names if (said := _wrong(recipe, name))]
    for where, names in _wanted(recipe):
        problems += [f"{where}: {said}" for name in names if (said := _frozen(recipe, name))]
    if recipe.stages:
        problems += [
            f"train.{key}: the stages say how long the run is; remove it, or set it to null"
            for key in LENGTHS
            if key in recipe.train.arguments
        ]
    return problems


def _named(recipe: Recipe) -> Iterable[tuple[str, Iterable[str]]]:
    """Every place that uses names of parts, with the names."""
    yield "train.learning_rates", recipe.train.learning_rates.by_name
    yield "train.policies", recipe.train.policies
    for index, stage in enumerate(recipe.stages):
        here = f"stages[{index}]"
        yield f"{here}.train", stage.train if isinstance(stage.train, list) else ()
        yield f"{here}.policies", stage.policies
        if stage.learning_rates is not None:
            yield f"{here}.learning_rates", stage.learning_rates.by_name


def _wanted(recipe: Recipe) -> Iterable[tuple[str, Iterable[str]]]:
    """Every place that says a part is trained at some time."""
    for name, policy in recipe.train.policies.items():
        if not policy.freeze:
            yield f"train.policies.{name}", [name]
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage.train, list):
            yield f"stages[{index}].train", stage.train


def _wrong(recipe: Recipe, name: str) -> str | None:
    """What is wrong with a name; None: nothing that can be seen without the model."""
    part, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    if "{" in part:
        return None
    if part not in PARTS:
        return f'unknown key "{part}"{nearest(part, PARTS)}'
    has = {
        "encoders": recipe.encoders,
        "mixes": [n for n, encoder in recipe.encoders.items() if encoder.layer == "mix"],
        "glue": [glue.key for glue in recipe.glue],
    }.get(part)
    if not inner or "{" in inner or has is None or inner in has:
        return None
    what = "glue" if part == "glue" else "encoder" if part == "encoders" else "layer mix"
    return f'no {what} "{inner}"; this recipe has: {", ".join(has) or "none"}'


def _frozen(recipe: Recipe, name: str) -> str | None:
    """Why a part is never trained; None: it may be."""
    part, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    if part == "host" and recipe.host.freeze:
        return "host is frozen for good (freeze: true); set host.freeze to false"
    meant = [n for n in recipe.encoders if part == "encoders" and inner in ("", n)]
    if meant and all(recipe.encoders[n].freeze for n in meant):
        return (
            f"encoders.{meant[0]} is frozen for good (freeze: true, the default); "
            f"set encoders.{meant[0]}.freeze to false"
        )
    return None
