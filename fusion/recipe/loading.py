"""YAML file -> Recipe, or one error that says what is wrong where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fusion.errors import RecipeError
from fusion.recipe.messages import explain
from fusion.recipe.names import unknown_names
from fusion.recipe.paths import anchored
from fusion.recipe.reading import override_value, read_recipe
from fusion.recipe.recipe import Recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, resolve and validate a recipe.

    Args:
        path: the YAML file
        overrides: `a.b=value` or `glue.0.method=gated`; values are YAML, paths relative to the
            recipe

    Raises:
        RecipeError: names the file, the key, what was found and the nearest thing that would work.
    """
    path = Path(path)
    raw = read_recipe(path)
    for override in overrides or []:
        override_value(raw, override, path)
    raw = anchored(raw, path.resolve().parent)
    return validate_recipe(raw, path)


def validate_recipe(raw: dict[str, Any], path: Path) -> Recipe:
    """A Recipe from its plain dict, with names checked against the registries."""
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {line}" for line in explain(error))) from None
    recipe._file = path
    problems = unknown_names(recipe)
    if problems:
        raise RecipeError("\n".join(f"{path}: {line}" for line in problems))
    return recipe
