"""What pydantic found wrong, in a line per mistake that names the key and the nearest known one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from fusion.errors import nearest
from fusion.recipe.parts import EncoderSpec, HostSpec, SentencePieceSpec
from fusion.recipe.recipe import Recipe
from fusion.recipe.text import CorpusSpec, DataSpec, FilterSpec
from fusion.recipe.training import (
    EarlyStopping,
    MemoryCacheSpec,
    PolicySpec,
    ScheduleSpec,
    StageSpec,
    TrainSpec,
    UnfreezeSpec,
)


def explain(error: ValidationError) -> list[str]:
    """One line per mistake."""
    lines: list[str] = []
    alternatives: dict[tuple[str, str], int] = {}
    for item in _of_the_meant_branch(error):
        location = [part for part in item["loc"] if not _is_union_tag(part)]
        key = _dotted(location)
        if item["type"] == "extra_forbidden":
            known = _fields_at(location[:-1])
            lines.append(f'{key}: unknown key "{location[-1]}"{nearest(str(location[-1]), known)}')
        elif item["type"] == "missing":
            lines.append(f"{key}: is missing")
        elif item["type"] == "value_error":
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}")
        else:
            message = "should be a mapping" if item["type"] == "model_type" else item["msg"]
            message = message.replace("Input should be", "should be")
            place = (key, _shown(item["input"]))
            if place in alternatives:
                lines[alternatives[place]] += f" or {message.removeprefix('should be ')}"
            else:
                alternatives[place] = len(lines)
                lines.append(f"{key}: found {place[1]}; {message}")
    return list(dict.fromkeys(lines))


def _shown(found: Any) -> str:
    if isinstance(found, dict) and found:
        return "a mapping"
    return "a list" if isinstance(found, list) and found else repr(found)


_OTHER_BRANCH = {
    "string_type",
    "list_type",
    "model_type",
    "int_type",
    "int_parsing",
    "literal_error",
}


def _of_the_meant_branch(error: ValidationError) -> list[Any]:
    """pydantic reports every branch of a union; keep the one whose type was written."""
    items = error.errors()
    deeper = {
        item["loc"][:depth]
        for item in items
        if item["type"] not in _OTHER_BRANCH or not _is_union_tag(item["loc"][-1])
        for depth, part in enumerate(item["loc"])
        if _is_union_tag(part)
    }
    return [
        item
        for item in items
        if item["type"] not in _OTHER_BRANCH
        or not _is_union_tag(item["loc"][-1])
        or item["loc"][:-1] not in deeper
    ]


def _is_union_tag(part: int | str) -> bool:
    """pydantic puts the branch of a union into the location; it is not a key of the recipe."""
    return isinstance(part, str) and (
        part in {"SentencePieceSpec", "CorpusSpec", "str", "int", "none"}
        or part.startswith(("list[", "literal[", "function-"))
    )


def _dotted(location: list[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "recipe"


def _fields_at(location: list[int | str]) -> list[str]:
    """Known keys at a place in the recipe."""
    by_place: dict[str, type[BaseModel]] = {
        "": Recipe,
        "host": HostSpec,
        "host.tokenizer": SentencePieceSpec,
        "data": DataSpec,
        "data.filters": FilterSpec,
        "train": TrainSpec,
        "train.early_stopping": EarlyStopping,
        "memory_cache": MemoryCacheSpec,
        "stages": StageSpec,
    }
    place = ".".join(str(part) for part in location if isinstance(part, str))
    if place.startswith("encoders."):
        model: type[BaseModel] = EncoderSpec
    elif place.startswith(("data.train", "data.dev", "data.tests.")):
        model = CorpusSpec
    elif ".policies." in f"{place}.":
        inner: dict[str, type[BaseModel]] = {"schedule": ScheduleSpec, "unfreeze": UnfreezeSpec}
        model = inner.get(str(location[-1]), PolicySpec)
    else:
        model = by_place.get(place, Recipe)
    return list(model.model_fields)
