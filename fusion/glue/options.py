"""The options that a recipe gives a glue method, against the method's signature."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError

from fusion.errors import RecipeError, nearest
from fusion.glue.base import Glue
from fusion.recipe import typed_value


def options_of(method: type[Glue], spec: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a method's constructor.

    Args:
        spec: of a FusedConfig: "method" and "options"

    Raises:
        RecipeError: the method has no such option, or the value is of another type.
    """
    parameters = inspect.signature(method.__init__).parameters.items()
    known = [name for name, one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    kinds = _kinds(method)
    options = {}
    for option, value in spec["options"].items():
        if option not in known:
            near = nearest(option, known) or "; it has none"
            raise RecipeError(f'{spec["method"]} has no option "{option}"{near}')
        with contextlib.suppress(PydanticSchemaGenerationError):  # a type of the plug-in's own
            value = typed_value(option, value, kinds.get(option, Any))
        options[option] = value
    return options


def _kinds(method: type[Glue]) -> dict[str, Any]:
    try:
        return get_type_hints(method.__init__)
    except NameError:  # a plug-in's annotation that is there for type checkers alone
        return {}
