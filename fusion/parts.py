"""The parts of a recipe: where the tensors of each come from, and by which rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fusion.checkpoints.bert_nmt import HOST, piece, shares
from fusion.checkpoints.directory import locate, open_source
from fusion.checkpoints.foreign import Foreign
from fusion.checkpoints.source import Source
from fusion.checkpoints.toolkits import describe_fused, describe_host
from fusion.computed import computing
from fusion.encoders.auto import LEFT_OUT
from fusion.encoders.sentence_transformers import transformer_directory
from fusion.errors import RecipeError, SourceError
from fusion.glue.mix import LayerMix
from fusion.hosts.family import config_of
from fusion.keymap import KeyMap, Pattern, first_match
from fusion.model import FusedModel
from fusion.recipe import EncoderSpec, GlueSpec, Recipe, SourceSpec, load_recipe
from fusion.registry import TOOLKITS
from fusion.renames import hub_rules
from fusion.saved import recomputed
from fusion.tensors import every_tensor


@dataclass(frozen=True)
class Part:
    """One part of a recipe, ready for the warm start.

    Attributes:
        prefix: of its tensors in the model
        where: its source as the recipe has it
    """

    prefix: str
    source: Source | None
    where: str
    rules: dict[str, Any] = field(default_factory=dict)
    ignore: dict[str, str] = field(default_factory=dict)
    init: dict[str, str] = field(default_factory=dict)


def host_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe that makes this recipe's host, for `host: {source: recipe:FILE}`.

    Raises:
        RecipeError: it cannot be read, or needs its own output.
    """
    first = file = _host_file(recipe)
    chain: list[str] = []
    found = None
    while file is not None:
        if file in chain:
            names = " -> ".join(Path(one).name for one in [*chain, file])
            raise RecipeError(f"{first}: host.source: recipes take each other's host: {names}")
        chain.append(file)
        below = load_recipe(file)
        found = found or below
        file = _host_file(below)
    return found


def _host_file(recipe: Recipe) -> str | None:
    source = recipe.host.source or ""
    return source.removeprefix("recipe:") if source.startswith("recipe:") else None


def model_directory(recipe: Recipe) -> Path:
    """Where a recipe's finished model lies."""
    return Path(recipe.output) / "model"


def is_trained(recipe: Recipe) -> bool:
    """Whether a recipe's finished model is there."""
    return (model_directory(recipe) / "ledger.json").is_file()


def untrained_host(recipe: Recipe) -> Recipe | None:
    """The recipe that makes this recipe's host, where that has yet to be trained."""
    below = host_recipe(recipe)
    return None if below is None or is_trained(below) else below


def host_directory(recipe: Recipe) -> Path:
    """The directory of a recipe's pretrained host: config, weights, tokenizer.

    Raises:
        SourceError: it is not there.
    """
    assert recipe.host.source is not None
    below = host_recipe(recipe)
    if below is not None:
        directory = model_directory(below)
        if not is_trained(below):
            raise SourceError(
                f"{recipe.host.source}: not trained yet (no {directory}); fusion train it"
            )
    else:
        directory = locate(recipe.host.source)
    if not directory.is_dir():
        raise SourceError(f"host.source: {directory}: a directory with config.json is needed")
    return directory / "host" if (directory / "host").is_dir() else directory


def read_config(directory: Path, where: str) -> PretrainedConfig:
    """A transformers config; `where` is the recipe's key.

    Raises:
        SourceError: there is none that transformers reads.
    """
    try:
        config = config_of(directory)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"{where}: {directory}: no config: {str(error).splitlines()[0]}"
        ) from None
    return config


def foreign_host(recipe: Recipe) -> Foreign | None:
    """What another toolkit's checkpoint becomes, where the host is one."""
    if recipe.host.source is None or recipe.host.format is None:
        return None
    return describe_host(locate(recipe.host.source), recipe.host.format)


def check_vocabulary(foreign: Foreign, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer's ids must mean what the checkpoint's did.

    Raises:
        RecipeError: names the first token that is another one.
    """
    theirs = foreign.source_vocabulary
    if theirs is None:
        return
    ours: list[str] = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), len(theirs)))))
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            raise RecipeError(
                f'host.tokenizer: id {index} is "{one}", and "{other}" in the checkpoint; a rule '
                "with ops: [{vocabulary: {old: ..., new: ...}}] carries the rows over by token"
            )


def parts_of_recipe(recipe: Recipe, model: FusedModel) -> list[Part]:
    """Every part with its source opened, in the order of the model's own parts."""
    host, opened = recipe.host, _Opened()
    if host.new is not None:
        parts = [Part(HOST, None, "new", init={"{name*}": host.init})]
    else:
        place = host.source if host.format in TOOLKITS else str(host_directory(recipe))
        parts = [_loaded_part(HOST, opened(str(place), host.format), host)]
    for name, encoder in recipe.encoders.items():
        source = opened(_encoder_source(encoder), encoder.format)
        parts.append(_loaded_part(f"encoders.{name}.model.", source, encoder))
    parts += _glue_parts(recipe, model, opened)
    fused = {p.prefix: p.source for p in parts if p.source is not None and _is_fused(p.source)}
    own = shares(fused)
    parts = [replace(part, source=own.get(part.prefix, part.source)) for part in parts]
    for name, mix in model.mixes.items():
        assert isinstance(mix, LayerMix)
        parts.append(Part(f"mixes.{name}.", None, "new", init=mix.initial()))
    return parts


def _is_fused(source: Source) -> bool:
    return source.location.startswith("bert-nmt:")


class _Opened:
    """Sources by place and format, each opened once for all the parts that it has tensors of."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, str | None], Source] = {}

    def __call__(self, place: str, format: str | None = None) -> Source:
        if (place, format) not in self._sources:
            self._sources[place, format] = open_source(place, format)
        return self._sources[place, format]


def _glue_parts(recipe: Recipe, model: FusedModel, opened: _Opened) -> list[Part]:
    """All glue as one new part; or one part for each, where one of them has a source."""
    init: dict[str, str] = {}
    for place, module in model.glue_modules.items():
        own = place.removeprefix("glue.")
        init |= {f"{own}.{pattern}": rule for pattern, rule in module.initial().items()}
    last = {"{name*}": "transformer"}
    if not any(spec.source for spec in recipe.glue):
        return [Part("glue.", None, "new", init=init | last)] if len(model.glue) else []
    parts = []
    for spec in recipe.glue:
        prefix = f"glue.{spec.key}."
        if spec.source is not None:
            parts.append(_loaded_part(prefix, opened(spec.source, spec.format), spec))
            continue
        head = f"{spec.key}."
        mine = {n.removeprefix(head): rule for n, rule in init.items() if n.startswith(head)}
        parts.append(Part(prefix, None, "new", init=mine | last))
    return parts


def glue_specs(recipe: Recipe) -> list[GlueSpec]:
    """The recipe's glue; what it leaves open of glue in a bert-nmt file is as the file says."""
    specs = []
    for spec in recipe.glue:
        if spec.source is not None and spec.format == "bert-nmt":
            (told,) = describe_fused(locate(spec.source)).glue
            sites = spec.sites or told["sites"]
            spec = spec.model_copy(update={**told["options"], **spec.options, "sites": sites})
        specs.append(spec)
    return specs


def encoder_directory(spec: EncoderSpec) -> Path:
    """The folder with an encoder's config and tokenizer, and mostly with its weights."""
    return transformer_directory(locate(spec.config or spec.source))


def part_directories(recipe: Recipe) -> dict[str, list[Path]]:
    """Prefix of a part -> the directories with its config, its tokenizer and its prompts.

    A host that another recipe has yet to train has none.
    """
    places = {
        f"encoders.{name}.model.": [encoder_directory(spec), locate(spec.source)]
        for name, spec in recipe.encoders.items()
    }
    host, places[HOST] = recipe.host, []
    if isinstance(host.tokenizer, str):
        places[HOST].append(locate(host.tokenizer))
    if host.source is not None and host.format is None and untrained_host(recipe) is None:
        places[HOST].append(host_directory(recipe))
    return {
        prefix: [p for p in dict.fromkeys(found) if p.is_dir()] for prefix, found in places.items()
    }


def _encoder_source(spec: EncoderSpec) -> str:
    """What to open: the source as written, or the folder inside it that holds the transformer."""
    if spec.config is not None or (inner := encoder_directory(spec)) == locate(spec.source):
        return spec.source
    return str(inner)


def _loaded_part(prefix: str, source: Source, spec: SourceSpec) -> Part:
    rules = {
        target: rule if isinstance(rule, str) else rule.model_dump(by_alias=True)
        for target, rule in spec.rules.items()
    }
    part = Part(prefix, source, str(spec.source), rules, dict(spec.ignore), dict(spec.new_tensors))
    foreign = _foreign(prefix, spec)
    if foreign is None:
        return part
    return replace(
        part,
        rules=foreign.rules | part.rules,
        ignore=foreign.ignore | part.ignore,
        init=foreign.init | part.init,
    )


def _foreign(prefix: str, spec: SourceSpec) -> Foreign | None:
    """What another toolkit's checkpoint says of a part."""
    if spec.source is None or spec.format is None:
        return None
    if not (spec.format == "bert-nmt" or prefix == HOST):
        return None
    path = locate(spec.source)
    if spec.format == "bert-nmt":
        return piece(describe_fused(path), prefix)
    return describe_host(path, spec.format)


def arguments_of(part: Part, module: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the warm start of one part."""
    no: Callable[[str], bool] = lambda name: False  # noqa: E731
    pretrained = hasattr(module, "base_model_prefix")
    rules, ignore, init = dict(part.rules), dict(part.ignore), dict(part.init)
    computed = recomputed(module) if pretrained else no
    if pretrained and part.source is not None:
        left_out = {Pattern(pattern): why for pattern, why in ignore.items()}
        keys = [key for key in part.source.tensors() if first_match(left_out, key) is None]
        taken = _targets(module, rules)
        usual = _usual_names(module, keys, taken)
        rules |= usual
        rules |= hub_rules(module, keys, taken | usual.keys())
        ignore |= _usually_ignored(module, part.source, part.prefix)
    if part.source is None:
        buffers = {name for name, _ in module.named_buffers()}
        known = computed
        computed = lambda name: known(name) or name in buffers  # noqa: E731
        init = _by_tensor(module, init, computed)
    return {
        "rules": rules,
        "ignore": ignore,
        "init": init,
        "compute": computing(module) if isinstance(module, PreTrainedModel) else None,
        "computed": computed,
        "seed": recipe.seed,
        "prefix": part.prefix,
    }


def _by_tensor(
    module: nn.Module, init: dict[str, str], computed: Callable[[str], bool]
) -> dict[str, str]:
    """The first pattern that matches decides; what the class computes is not initialised."""
    patterns = {Pattern(pattern): rule for pattern, rule in init.items()}
    found = {}
    for names, _, _ in every_tensor(module):
        rule = None if any(map(computed, names)) else first_match(patterns, names[0])
        if rule is not None:
            found[names[0]] = rule
    return found


def _usual_names(
    module: nn.Module, keys: Collection[str], taken: Collection[str]
) -> dict[str, str]:
    """Renames that transformers' own loader makes: the base model's prefix, gamma and beta.

    Args:
        taken: targets that a rule is for
    """
    headers = set(keys)
    prefix = f"{module.base_model_prefix}."
    found = {}
    for name in module.state_dict():
        if name in headers or name in taken:
            continue
        old = name
        if name.endswith("LayerNorm.weight"):
            old = name.removesuffix("weight") + "gamma"
        elif name.endswith("LayerNorm.bias"):
            old = name.removesuffix("bias") + "beta"
        for candidate in (prefix + name, old, prefix + old):
            if candidate in headers:
                found[name] = candidate
                break
    return found


def _targets(module: nn.Module, rules: dict[str, Any]) -> set[str]:
    """The module's tensors that a rule is for."""
    keymap = KeyMap.parse(rules)
    return {name for name in module.state_dict() if keymap.rule_of(name) is not None}


def _usually_ignored(module: nn.Module, source: Source, prefix: str) -> dict[str, str]:
    """What transformers leaves out of a class by itself, and what no memory reads."""
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    left_out = {Pattern(p): why for p, why in LEFT_OUT.items()} if prefix != "host." else {}
    wanted = set(module.state_dict())
    ignored = {}
    for key in source.tensors():
        base = key.removeprefix(f"{module.base_model_prefix}.")
        if {key, base} & wanted:
            continue
        why = first_match(left_out, base)
        if why is None and any(re.search(pattern, key) for pattern in patterns):
            why = "transformers leaves it out of this class"
        if why is not None:
            ignored[key] = why
    return ignored
