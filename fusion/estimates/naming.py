"""Stages, policies and learning rates of a recipe, without the names of what is frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusion.model import FusedModel
from fusion.policies import Phase
from fusion.recipe import Recipe


def without_names(
    recipe: Recipe, model: FusedModel, gone: Sequence[str], instead: Mapping[str, str] | None = None
) -> list[str]:
    """Overrides that take out every name that no tensor is left for.

    Args:
        gone: beginnings of the names of tensors that are frozen, or no longer there
        instead: what a stage trains in place of tensors with such a beginning
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = [f"encoders.{name}." for name, spec in recipe.encoders.items() if spec.freeze]
    frozen += ["host."] if recipe.host.freeze else []
    lost = [name for name in names if name.startswith(tuple(gone))]
    left = [name for name in names if not name.startswith((*gone, *frozen))]

    def stays(name: str) -> bool:
        return not _matches(name, lost) or _matches(name, left)

    overrides = []
    for place, named in _mappings(recipe):
        kept = {name: said for name, said in named.items() if stays(name)}
        if len(kept) < len(named):
            overrides.append(f"{place}={json.dumps(kept)}")
    for index, stage in enumerate(recipe.stages):
        wanted = [] if stage.train == "all" else stage.train
        trains = [name for name in wanted if stays(name)]
        for beginning, other in (instead or {}).items():
            given_up = [name for name in lost if name.startswith(beginning)]
            if any(_matches(name, given_up) for name in wanted) and "glue" not in trains:
                trains.append(other)
        if trains != wanted:
            overrides.append(f"stages.{index}.train={json.dumps(trains)}")
    return overrides


def _mappings(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping by names of parts and tensors, and where it is."""
    yield "train.learning_rates", dict(recipe.train.learning_rates.by_name)
    yield "train.policies", _plain(recipe.train.policies)
    for index, stage in enumerate(recipe.stages):
        if stage.learning_rates is not None:
            yield f"stages.{index}.learning_rates", dict(stage.learning_rates.by_name)
        yield f"stages.{index}.policies", _plain(stage.policies)


def _plain(policies: Mapping[str, Any]) -> dict[str, Any]:
    return {name: spec.model_dump(exclude_defaults=True) for name, spec in policies.items()}


def _matches(name: str, tensors: Sequence[str]) -> bool:
    """Whether a stage that trains a name trains any of the tensors."""
    stage = Phase(label=name, where=name, wanted=(name,), policies={}, rates={})
    return any(map(stage.trains, tensors))
