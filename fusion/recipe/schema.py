"""JSON schema of a recipe, for editors."""

from __future__ import annotations

from typing import Any

from fusion.recipe.recipe import Recipe
from fusion.registry import GLUE, annotated_fields, keyword_options


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, with each glue method's options, for editors."""
    schema = Recipe.model_json_schema()
    glue = schema["$defs"]["GlueSpec"]
    glue["properties"]["method"]["enum"] = GLUE.names()
    for name in GLUE.names():
        for option in keyword_options(GLUE.target(name) or "") or []:
            glue["properties"].setdefault(option, {"description": f"option of {name}"})
    glue["additionalProperties"] = False
    train = schema["$defs"]["TrainSpec"]
    for argument in training_argument_names():
        train["properties"].setdefault(argument, {"description": "Seq2SeqTrainingArguments"})
    train["additionalProperties"] = False
    return schema


def training_argument_names() -> list[str]:
    """Field names of Seq2SeqTrainingArguments, read without importing transformers."""
    return [
        *annotated_fields("transformers.training_args", "TrainingArguments"),
        *annotated_fields("transformers.training_args_seq2seq", "Seq2SeqTrainingArguments"),
    ]
