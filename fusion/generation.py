"""How a model generates: the recipe's settings on top of its host's."""

from __future__ import annotations

import contextlib
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from fusion.errors import RecipeError, nearest
from fusion.parts import host_directory
from fusion.recipe import Recipe
from fusion.registry import TOOLKITS

WHOLE = {  # numbers of something, and their least
    **dict.fromkeys(("num_beams", "max_new_tokens"), 1),
    **dict.fromkeys(("top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size"), 0),
}
NUMBERS = ("temperature", "top_p", "length_penalty", "repetition_penalty")


def check_generation(recipe: Recipe) -> None:
    """Check what a recipe's `generate:` says by itself.

    Raises:
        RecipeError: a setting that transformers does not have, or a value that it refuses.
    """
    usual = GenerationConfig()
    known = usual.to_dict()
    for key, value in recipe.generate.items():
        if key not in known and not hasattr(usual, key):
            raise RecipeError(f"generate.{key}: no such setting{nearest(key, known)}")
        if key in WHOLE and not (type(value) is int and value >= WHOLE[key]):
            raise RecipeError(
                f"generate.{key}: found {value!r}; should be a whole number from {WHOLE[key]} on"
            )
        if key in NUMBERS and type(value) not in (int, float):
            raise RecipeError(f"generate.{key}: found {value!r}; should be a number")
    if "max_length" in recipe.generate:
        raise RecipeError(
            "generate.max_length: the host's positions are the limit; use max_new_tokens"
        )
    if recipe.generate.get("num_return_sequences", 1) != 1:
        raise RecipeError("generate.num_return_sequences: a line has one translation; remove it")
    _insist(usual, recipe.generate)


def generation_config(recipe: Recipe, host: PreTrainedModel) -> GenerationConfig:
    """The host's generation settings with the recipe's on top.

    Raises:
        RecipeError: together they are refused, and could not be saved.
    """
    base = GenerationConfig.from_model_config(host.config)
    if recipe.host.new is None and recipe.host.format not in TOOLKITS:
        with contextlib.suppress(OSError):
            base = GenerationConfig.from_pretrained(host_directory(recipe))
    _insist(base, recipe.generate)
    if base.pad_token_id is None:  # a language model without padding of its own
        ends = base.eos_token_id
        base.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return base


def _insist(base: GenerationConfig, given: dict[str, Any]) -> None:
    """Update and validate as strictly as saving does."""
    try:
        base.update(**given)
        base.validate(strict=True)
    except (ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        raise RecipeError(f"generate: transformers refuses it: {why}") from None
