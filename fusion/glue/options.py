"""The options that a recipe gives a glue method, against the method's signature."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from fusion.errors import RecipeError, nearest
from fusion.glue.base import Glue


def options_of(method: type[Glue], spec: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a method's constructor.

    Args:
        spec: of a FusedConfig: "name", "method" and "options"

    Raises:
        RecipeError: the method has no such option, or the value is of another type.
    """
    here = f'glue "{spec["name"]}"'
    parameters = inspect.signature(method.__init__).parameters.items()
    known = [name for name, one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    kinds = _kinds(method)
    options = {}
    for option, value in spec["options"].items():
        if option not in known:
            near = nearest(option, known) or "; it has none"
            raise RecipeError(f'{here}: {spec["method"]} has no option "{option}"{near}')
        options[option] = _typed(f"{here}: {option}", value, kinds.get(option, Any))
    return options


def _kinds(method: type[Glue]) -> dict[str, Any]:
    try:
        return get_type_hints(method.__init__)
    except NameError:  # a plug-in's annotation that is there for type checkers alone
        return {}


def _typed(where: str, value: Any, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except PydanticSchemaGenerationError:
        return value
    except ValidationError as error:
        wanted = [item["msg"].replace("Input should", "should") for item in error.errors()]
        raise RecipeError(f"{where}: found {value!r}; {' or '.join(wanted)}") from None
