"""Values of a recipe whose types others declare: a glue method's options, transformers' fields."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from fusion.errors import RecipeError


def typed_value(where: str, value: Any, kind: Any) -> Any:
    """A value as a type has it: "3" is a number where one is wanted.

    Raises:
        RecipeError: it cannot be of that type; says what was found where.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        wanted = [item["msg"].replace("Input should", "should") for item in error.errors()]
        raise RecipeError(f"{where}: found {value!r}; {' or '.join(wanted)}") from None
