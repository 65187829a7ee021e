"""Names in a recipe that must be known: to the registries, to transformers, to the recipe."""

from __future__ import annotations

from typing import Any

from fusion.errors import nearest
from fusion.recipe.parts import GlueSpec, SourceSpec
from fusion.recipe.recipe import Recipe
from fusion.recipe.schema import training_argument_names
from fusion.recipe.stages import training_problems
from fusion.recipe.training import TrainSpec
from fusion.registry import ENCODERS, GLUE, HOSTS, INITS, SOURCES, keyword_options

RESERVED_ENCODER_NAMES = ("decoder", "host", "encoder", "input", "attention", "labels", "cache")


def unknown_names(recipe: Recipe) -> list[str]:
    """One line per name that nothing has."""
    problems: list[str] = []
    new = recipe.host.new
    if new is not None and new["family"] not in HOSTS.names():
        problems.append(f'host.new.family: no host "{new["family"]}"{_near(new["family"], HOSTS)}')
    if recipe.host.init not in INITS.names():
        problems.append(f'host.init: no init "{recipe.host.init}"{_near(recipe.host.init, INITS)}')
    for name, encoder in recipe.encoders.items():
        if not name.isidentifier() or name in RESERVED_ENCODER_NAMES:
            problems.append(f'encoders.{name}: "{name}" cannot name an encoder; for example: bert')
        if encoder.builder not in ENCODERS.names():
            problems.append(
                f'encoders.{name}.builder: no encoder "{encoder.builder}"'
                f"{_near(encoder.builder, ENCODERS)}"
            )
    read = {name for glue in recipe.glue for name in glue.encoders}
    for name in recipe.encoders:
        if read and name not in read and read <= set(recipe.encoders):
            problems.append(f"encoders.{name}: no glue reads it; remove it or add glue")
    if recipe.encoders and not recipe.glue:
        problems.append("glue: is missing: the encoders' memory would go nowhere")
    for where, part in _loaded_parts(recipe):
        if where != "host" and (part.source or "").startswith("recipe:"):
            problems.append(f"{where}.source: recipe: is for hosts only")
        if part.format is not None and part.format not in SOURCES.names():
            near = _near(part.format, SOURCES)
            problems.append(f'{where}.format: no source "{part.format}"{near}')
        for pattern, rule in part.new_tensors.items():
            if (kind := rule.partition(":")[0]) not in INITS.names():
                near = _near(kind, INITS)
                problems.append(f'{where}.new_tensors.{pattern}: no init "{kind}"{near}')
    problems += _glue_problems(recipe)
    problems += training_problems(recipe)
    known_arguments = [*TrainSpec.model_fields, *training_argument_names()]
    for argument in recipe.train.arguments:
        if argument not in known_arguments:
            problems.append(
                f'train.{argument}: unknown key "{argument}"{nearest(argument, known_arguments)}'
            )
    return problems


def _loaded_parts(recipe: Recipe) -> list[tuple[str, SourceSpec]]:
    encoders = [(f"encoders.{name}", spec) for name, spec in recipe.encoders.items()]
    glue = [(f"glue[{place}]", spec) for place, spec in enumerate(recipe.glue)]
    return [("host", recipe.host), *encoders, *glue]


def _glue_problems(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    seen: dict[str, int] = {}
    for index, glue in enumerate(recipe.glue):
        here = f"glue[{index}]"
        if glue.key in seen:
            problems.append(
                f'{here}: its tensors would be named "{glue.key}" as those of '
                f"glue[{seen[glue.key]}]; give it a name:"
            )
        seen[glue.key] = index
        if not glue.key.isidentifier():
            problems.append(f'{here}.name: "{glue.key}" is not a plain name such as bert_fused')
        for name in dict.fromkeys(glue.encoders):
            if glue.encoders.count(name) > 1:
                problems.append(f'{here}.encoder: "{name}" is named twice')
            if name not in recipe.encoders:
                has = ", ".join(recipe.encoders) or "none"
                problems.append(f'{here}.encoder: no encoder "{name}"; this recipe has: {has}')
        if glue.method not in GLUE.names():
            problems.append(f'{here}.method: no glue "{glue.method}"{_near(glue.method, GLUE)}')
            continue
        options = keyword_options(GLUE.target(glue.method) or "")
        for option in glue.options if options is not None else ():
            if option not in (options or []):
                known = [*GlueSpec.model_fields, *(options or [])]
                problems.append(
                    f'{here}.{option}: {glue.method} has no option "{option}"'
                    f"{nearest(option, known)}"
                )
    return problems


def _near(name: str, registry: Any) -> str:
    return nearest(name, registry.names())
