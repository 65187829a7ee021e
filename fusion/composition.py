"""Recipe -> FusedModel: build on meta, place the glue, warm-start every part from its source."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from fusion.checkpoints.directory import locate, open_source
from fusion.checkpoints.source import Source
from fusion.encoders.auto import LEFT_OUT, position_limit
from fusion.errors import RecipeError, SiteError, SourceError, WarmStartError, nearest
from fusion.glue.mix import LayerMix
from fusion.hosts.family import family_of
from fusion.keymap import KeyMap, Pattern
from fusion.ledger import Ledger
from fusion.model import FusedConfig, FusedModel
from fusion.planning import Plan, every_tensor, is_persistent
from fusion.processor import EncoderText, FusionProcessor, load_tokenizer
from fusion.recipe import EncoderSpec, PartSpec, Recipe, SentencePieceSpec, load_recipe
from fusion.registry import HOSTS
from fusion.saved import recomputed
from fusion.warmstart import parameters_on_meta, verify_total, warm_start
from fusion.warmstart import plan as plan_part


@dataclass
class Composition:
    """A composed model with what it needs to read text."""

    model: FusedModel
    processor: FusionProcessor

    @property
    def ledger(self) -> Ledger:
        """Where every tensor of the model comes from."""
        return self.model.ledger


@dataclass(frozen=True)
class PartPlan:
    """What a plan says of one part.

    Attributes:
        memory_bytes: weights, and for trainable ones gradients and two Adam moments, in fp32
    """

    name: str
    module_class: str
    source: str
    digest: str | None
    tensors: dict[str, int]
    ignored: dict[str, str]
    trainable: int
    frozen: int
    memory_bytes: int


@dataclass(frozen=True)
class RecipePlan:
    """What composing a recipe will do; `problems` is empty if every tensor is accounted for."""

    name: str
    parts: list[PartPlan]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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


def compose(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None = None) -> Composition:
    """Build the model of a recipe and give every tensor its values.

    Args:
        tokenizer: the host's, where the recipe trains one on its text (`train.host_tokenizer`)

    Raises:
        FusionError: a source is missing, or any tensor outside glue would start from nothing; the
            message lists every such tensor.
    """
    tokenizer = tokenizer or _host_tokenizer(recipe)
    model, parts = _build(recipe, _host_config(recipe, tokenizer))
    ledger = Ledger()
    problems: list[str] = []
    for part in parts:
        module = model.get_submodule(part.prefix.rstrip("."))
        try:
            filled = warm_start(module, part.source, **_arguments(part, module, recipe))
        except WarmStartError as error:
            problems.append(str(error))
            continue
        ledger.merge(filled.prefixed(part.prefix))
    if problems:
        raise WarmStartError("\n".join(problems))
    verify_total(model, ledger)
    model.ledger = ledger
    model.generation_config = _generation_config(recipe, model)
    model.eval()
    return Composition(model, _processor(recipe, model, tokenizer))


def plan(recipe: Recipe) -> RecipePlan:
    """What `compose` would do, from configs and checkpoint headers; reads no weights."""
    notes: list[str] = []
    if not is_host_ready(recipe):
        notes.append(f"host: {recipe.host.source} has no output yet; it is trained first")
    model, parts = recipe_parts(recipe)
    rows: list[PartPlan] = []
    problems: list[str] = []
    for part in parts:
        module = model.get_submodule(part.prefix.rstrip("."))
        arguments = _arguments(part, module, recipe)
        arguments.pop("compute")
        decided = plan_part(module, part.source, **arguments)
        problems += decided.problems
        rows.append(_row(part, module, decided))
    return RecipePlan(recipe.name, rows, problems, notes)


def is_host_ready(recipe: Recipe) -> bool:
    """False where the host is the output of another recipe that has not been trained."""
    below = host_recipe(recipe)
    return below is None or _is_trained(below)


def recipe_parts(recipe: Recipe) -> tuple[FusedModel, list[Part]]:
    """A recipe's model on meta and its parts; a host yet to be trained as it will be."""
    planned = recipe
    if (below := host_recipe(recipe)) is not None and not _is_trained(below):
        planned = recipe.model_copy(update={"host": below.host, "data": below.data})
    return _build(planned, _host_config(planned, None))


def _row(part: Part, module: nn.Module, decided: Plan) -> PartPlan:
    trainable, frozen = decided.ledger.parameters()
    inner = module if part.prefix != "glue." else None
    return PartPlan(
        name=part.prefix.rstrip("."),
        module_class=type(inner).__name__ if inner is not None else "Glue",
        source=part.where,
        digest=part.source.header_digest() if part.source is not None else None,
        tensors=dict(decided.ledger.counts()) | {"ignored": len(decided.ledger.ignored)},
        ignored=dict(decided.ledger.ignored),
        trainable=trainable,
        frozen=frozen,
        memory_bytes=4 * frozen + 16 * trainable,
    )


def host_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe that makes this recipe's host, for `host: {source: recipe:FILE}`."""
    source = recipe.host.source
    if source is None or not source.startswith("recipe:"):
        return None
    return load_recipe(source.removeprefix("recipe:"))


def model_directory(recipe: Recipe) -> Path:
    """Where a recipe's finished model lies."""
    return Path(recipe.output) / "model"


def _is_trained(recipe: Recipe) -> bool:
    return (model_directory(recipe) / "ledger.json").is_file()


def host_directory(recipe: Recipe) -> Path:
    """The directory of a recipe's pretrained host: config, weights, tokenizer.

    Raises:
        SourceError: it is not there.
    """
    assert recipe.host.source is not None
    below = host_recipe(recipe)
    if below is not None:
        directory = model_directory(below)
        if not _is_trained(below):
            raise SourceError(
                f"{recipe.host.source}: not trained yet (no {directory}); fusion train it"
            )
    else:
        directory = locate(recipe.host.source)
    if not directory.is_dir():
        raise SourceError(f"host.source: {directory}: a directory with config.json is needed")
    return directory / "host" if (directory / "host").is_dir() else directory


def _read_config(directory: Path, where: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"{where}: {directory}: no config: {str(error).splitlines()[0]}"
        ) from None
    return config


def _host_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> PretrainedConfig:
    """The host's config: its source's, or new with the ids of its tokenizer."""
    if recipe.host.new is None:
        config = _read_config(host_directory(recipe), "host.source")
    else:
        options = dict(recipe.host.new)
        family = HOSTS.get(options.pop("family"))
        spec = recipe.host.tokenizer
        if tokenizer is None and not isinstance(spec, SentencePieceSpec):
            tokenizer = _host_tokenizer(recipe)
        if tokenizer is not None:
            size, eos, pad = len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id
        else:  # a tokenizer yet to be trained; subwords.train_tokenizer lays it out so
            assert isinstance(spec, SentencePieceSpec)
            size, eos, pad = spec.vocab_size, 0, spec.vocab_size - 1
        ids = {"vocab_size": size, "pad_token_id": pad, "eos_token_id": eos}
        ids |= {"decoder_start_token_id": pad, "forced_eos_token_id": eos, "bos_token_id": None}
        known = {*family.new_config({}).to_dict()}
        config = family.new_config({k: v for k, v in ids.items() if k in known} | options)
    return config


def _host_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    spec = recipe.host.tokenizer
    if isinstance(spec, SentencePieceSpec):
        raise RecipeError(
            "host.tokenizer: is trained on the recipe's text; fusion train or build does it"
        )
    return load_tokenizer(locate(spec) if spec is not None else host_directory(recipe))


def _build(recipe: Recipe, host_config: PretrainedConfig) -> tuple[FusedModel, list[Part]]:
    """The model with its parameters on meta, and every part with its source."""
    try:
        family_of(host_config)
    except SiteError as error:
        raise RecipeError(f"host: {error}") from None
    if not host_config.is_encoder_decoder:
        raise RecipeError(f"host: {host_config.model_type} is no encoder-decoder model")
    specs = {name: _encoder_spec(name, spec) for name, spec in recipe.encoders.items()}
    glue = [
        {
            "name": spec.key,
            "method": spec.method,
            "encoder": spec.encoder,
            "sites": list(spec.sites),
            "options": spec.options,
        }
        for spec in recipe.glue
    ]
    config = FusedConfig(
        host=host_config.to_dict(),
        encoders=specs,
        glue=glue,
        seed=recipe.seed,
        freeze_host=recipe.host.freeze,
        attention=recipe.host.attention,
    )
    with parameters_on_meta():
        model = FusedModel(config)
    _check_limits(recipe, model)
    return model, _parts(recipe, model)


def _encoder_spec(name: str, spec: EncoderSpec) -> dict[str, Any]:
    config = _read_config(locate(spec.source), f"encoders.{name}.source")
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(spec.layer, int) and layers is not None and not -1 <= spec.layer <= layers:
        raise RecipeError(
            f"encoders.{name}.layer: the hidden states are 0 to {layers} and -1, the last; "
            f"found {spec.layer}"
        )
    return {
        "config": config.to_dict(),
        "builder": spec.builder,
        "layer": spec.layer,
        "freeze": spec.freeze,
        "dropout": spec.encoder_dropout,
        "limit": spec.max_length or 0,
    }


def _check_limits(recipe: Recipe, model: FusedModel) -> None:
    """Give every encoder its limit in tokens: its position table's or the recipe's smaller one."""
    for name, part in model.encoder_parts.items():
        own = position_limit(part.model)
        wanted = recipe.encoders[name].max_length
        if own is not None and wanted is not None and wanted > own:
            raise RecipeError(
                f"encoders.{name}.max_length: the encoder has {own} positions; found {wanted}"
            )
        part.limit = wanted or own or 1_000_000
        model.config.encoders[name]["limit"] = part.limit


def _parts(recipe: Recipe, model: FusedModel) -> list[Part]:
    host = recipe.host
    if host.new is not None:
        parts = [Part("host.", None, "new", init={"{name*}": host.init})]
    else:
        parts = [_loaded_part("host.", open_source(host_directory(recipe)), host)]
    for name, spec in recipe.encoders.items():
        parts.append(_loaded_part(f"encoders.{name}.model.", open_source(spec.source), spec))
    if len(model.encoders):
        init: dict[str, str] = {}
        for place, module in model.glue_modules.items():
            own = place.removeprefix("glue.")
            init |= {f"{own}.{pattern}": rule for pattern, rule in module.initial().items()}
        parts.append(Part("glue.", None, "new", init=init | {"{name*}": "transformer"}))
    for name, mix in model.mixes.items():
        assert isinstance(mix, LayerMix)
        parts.append(Part(f"mixes.{name}.", None, "new", init=mix.initial()))
    return parts


def _loaded_part(prefix: str, source: Source, spec: PartSpec) -> Part:
    rules = {
        target: rule if isinstance(rule, str) else rule.model_dump(by_alias=True)
        for target, rule in spec.rules.items()
    }
    return Part(prefix, source, str(spec.source), rules, dict(spec.ignore), dict(spec.new_tensors))


def _arguments(part: Part, module: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the warm start of one part."""
    no: Callable[[str], bool] = lambda name: False  # noqa: E731
    pretrained = hasattr(module, "base_model_prefix")
    rules, ignore, init = dict(part.rules), dict(part.ignore), dict(part.init)
    computed = recomputed(module) if pretrained else no
    if pretrained and part.source is not None:
        rules |= _usual_names(module, part.source, rules)
        ignore |= _usually_ignored(module, part.source, part.prefix)
    if part.source is None:
        init = _by_tensor(module, init, computed)
    return {
        "rules": rules,
        "ignore": ignore,
        "init": init,
        "compute": getattr(module, "_init_weights", None) if pretrained else None,
        "computed": computed,
        "seed": recipe.seed,
        "prefix": part.prefix,
    }


def _by_tensor(
    module: nn.Module, init: dict[str, str], computed: Callable[[str], bool]
) -> dict[str, str]:
    """The first pattern that matches decides; what the class computes is not initialised."""
    patterns = [(Pattern(pattern), rule) for pattern, rule in init.items()]
    found = {}
    for names, _, kind in every_tensor(module):
        if any(map(computed, names)) or (kind == "buffer" and not is_persistent(module, names[0])):
            continue
        hits = (rule for pattern, rule in patterns if pattern.match(names[0]) is not None)
        if (rule := next(hits, None)) is not None:
            found[names[0]] = rule
    return found


def _usual_names(module: nn.Module, source: Source, rules: dict[str, Any]) -> dict[str, str]:
    """Renames that transformers' own loader makes: the base model's prefix, gamma and beta."""
    headers = source.tensors()
    prefix = f"{module.base_model_prefix}."
    own = KeyMap.parse(rules)
    found = {}
    for name in module.state_dict():
        if name in headers or own.rule_of(name) is not None:
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
        hits = (why for p, why in left_out.items() if p.match(base) is not None)
        why = next(hits, None)
        if why is None and any(re.search(pattern, key) for pattern in patterns):
            why = "transformers leaves it out of this class"
        if why is not None:
            ignored[key] = why
    return ignored


def _generation_config(recipe: Recipe, model: FusedModel) -> GenerationConfig:
    """The host's generation settings with the recipe's on top.

    Raises:
        RecipeError: a setting that transformers does not have.
    """
    if recipe.host.new is None:
        try:
            base = GenerationConfig.from_pretrained(host_directory(recipe))
        except OSError:
            base = GenerationConfig.from_model_config(model.host.config)
    else:
        base = GenerationConfig.from_model_config(model.host.config)
    known = base.to_dict()
    for key in recipe.generate:
        if key not in known and not hasattr(base, key):
            raise RecipeError(f"generate.{key}: no such setting{nearest(key, known)}")
    base.update(**recipe.generate)
    return base


def _processor(
    recipe: Recipe, model: FusedModel, tokenizer: PreTrainedTokenizerBase
) -> FusionProcessor:
    encoders = {}
    for name, spec in recipe.encoders.items():
        own = load_tokenizer(locate(spec.source))
        limit = model.encoder_parts[name].limit
        if spec.max_length is None and own.model_max_length < limit:
            limit = own.model_max_length
            model.encoder_parts[name].limit = model.config.encoders[name]["limit"] = limit
        encoders[name] = EncoderText(own, limit, spec.overflow)
    longest = getattr(model.host.config, "max_position_embeddings", None)
    return FusionProcessor(tokenizer, encoders, max_length=longest)
