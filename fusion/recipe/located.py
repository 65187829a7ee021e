"""Errors of whatever works on a recipe name the recipe's file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from fusion.errors import FusionError
from fusion.recipe.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])


def names_the_recipe(function: F) -> F:
    """Put the file of a function's recipe before what it finds wrong."""

    @functools.wraps(function)
    def located(recipe: Recipe, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(recipe, *args, **kwargs)
        except FusionError as error:
            message = str(error)
            if not (recipe.file is None or error.located or message.startswith(str(recipe.file))):
                gap = "\n" if "\n" in message else " "
                error.args = (f"{recipe.file}:{gap}{message}",)
            error.located = True
            raise

    return cast(F, located)
