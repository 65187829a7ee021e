"""YAML -> a validated Recipe: parts, glue, data, training. Imports no torch.

A recipe is read with `load_recipe`, which resolves `extends:`, environment variables and paths
relative to the recipe, applies `a.b=value` overrides, and reports a mistake as one `RecipeError`
that names the file, the key, what was found and the nearest known name.
"""

from fusion.recipe.loading import load_recipe, validate_recipe
from fusion.recipe.located import names_the_recipe
from fusion.recipe.parts import (
    EncoderSpec,
    GlueSpec,
    HostSpec,
    PartSpec,
    RuleSpec,
    SentencePieceSpec,
    SourceSpec,
)
from fusion.recipe.recipe import Recipe
from fusion.recipe.schema import recipe_schema, training_argument_names
from fusion.recipe.text import CorpusSpec, DataSpec, FilterSpec
from fusion.recipe.training import (
    EarlyStopping,
    LearningRates,
    MemoryCacheSpec,
    PolicySpec,
    ScheduleSpec,
    StageSpec,
    TrainSpec,
    UnfreezeSpec,
    byte_size,
)
from fusion.recipe.values import typed_value

__all__ = [
    "CorpusSpec",
    "DataSpec",
    "EarlyStopping",
    "EncoderSpec",
    "FilterSpec",
    "GlueSpec",
    "HostSpec",
    "LearningRates",
    "MemoryCacheSpec",
    "PartSpec",
    "PolicySpec",
    "Recipe",
    "RuleSpec",
    "ScheduleSpec",
    "SentencePieceSpec",
    "SourceSpec",
    "StageSpec",
    "TrainSpec",
    "UnfreezeSpec",
    "byte_size",
    "load_recipe",
    "names_the_recipe",
    "recipe_schema",
    "training_argument_names",
    "typed_value",
    "validate_recipe",
]
