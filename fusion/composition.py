"""Recipe -> FusedModel: build on meta, place the glue, warm-start every part from its source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from fusion.blank import blank_model
from fusion.checkpoints.directory import locate
from fusion.configuration import FusedConfig
from fusion.encoders.auto import ONE_MEMORY, memory_config, position_limit
from fusion.encoders.sentence_transformers import default_prompt
from fusion.errors import RecipeError, SiteError, WarmStartError
from fusion.generation import check_generation, generation_config
from fusion.glue.base import Glue
from fusion.hosts.family import Family, family_of
from fusion.ledger import Ledger
from fusion.model import FusedModel
from fusion.parts import (
    Part,
    arguments_of,
    check_vocabulary,
    encoder_directory,
    foreign_host,
    glue_specs,
    host_directory,
    parts_of_recipe,
    read_config,
    untrained_host,
)
from fusion.planning import Plan
from fusion.processor import EncoderText, FusionProcessor, load_tokenizer
from fusion.recipe import (
    EncoderSpec,
    GlueSpec,
    Recipe,
    SentencePieceSpec,
    names_the_recipe,
)
from fusion.registry import ENCODERS, GLUE, HOSTS
from fusion.timetable import freeze_never_trained
from fusion.warmstart import plan as plan_part
from fusion.warmstart import verify_total, warm_start


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


@names_the_recipe
@torch.inference_mode(False)
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
            filled = warm_start(module, part.source, **arguments_of(part, module, recipe))
        except WarmStartError as error:
            problems.append(str(error))
            continue
        ledger.merge(filled.prefixed(part.prefix))
    if problems:
        raise WarmStartError("\n".join(problems))
    verify_total(model, ledger)
    model.ledger = ledger
    model.generation_config = generation_config(recipe, model.host)
    model.eval()
    return Composition(model, _processor(recipe, model, tokenizer))


@names_the_recipe
def plan(recipe: Recipe) -> RecipePlan:
    """What `compose` would do, from configs and checkpoint headers; reads no weights."""
    notes: list[str] = []
    if untrained_host(recipe) is not None:
        notes.append(f"host: {recipe.host.source} has no output yet; it is trained first")
    if (foreign := foreign_host(recipe)) is not None:
        notes += [f"host: {note}" for note in foreign.notes]
    model, parts = recipe_parts(recipe)
    rows: list[PartPlan] = []
    problems: list[str] = []
    for part in parts:
        module = model.get_submodule(part.prefix.rstrip("."))
        arguments = arguments_of(part, module, recipe)
        arguments.pop("compute")
        decided = plan_part(module, part.source, **arguments)
        problems += decided.problems
        rows.append(_row(part, module, decided))
    return RecipePlan(recipe.name, rows, problems, notes)


def recipe_parts(recipe: Recipe) -> tuple[FusedModel, list[Part]]:
    """A recipe's model on meta and its parts; a host yet to be trained as it will be."""
    planned = recipe
    if (below := untrained_host(recipe)) is not None:
        planned = recipe.model_copy(update={"host": below.host, "data": below.data})
    return _build(planned, _host_config(planned, None))


def _row(part: Part, module: nn.Module, decided: Plan) -> PartPlan:
    trainable, frozen = decided.ledger.parameters()
    inner = module if not part.prefix.startswith("glue.") else None
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


def _host_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> PretrainedConfig:
    """The host's config: its source's, or new with the ids of its tokenizer."""
    if (foreign := foreign_host(recipe)) is not None:
        config = HOSTS.get(foreign.family).new_config(foreign.config)
        if tokenizer is not None and not recipe.host.rules:
            check_vocabulary(foreign, tokenizer)
    elif recipe.host.new is None:
        config = read_config(host_directory(recipe), "host.source")
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
        if not family.causal:
            ids |= {"decoder_start_token_id": ids[family.start], "forced_eos_token_id": eos}
        ids["bos_token_id"] = None
        known = family.fields()
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
        _, model_family = family_of(host_config)
    except SiteError as error:
        raise RecipeError(f"host: {error}") from None
    _check_module_names(recipe)
    specs = {name: _encoder_spec(name, spec) for name, spec in recipe.encoders.items()}
    glue = [
        {
            "name": spec.key,
            "method": spec.method,
            "encoder": spec.encoder,
            "sites": spec.sites or _default_sites(spec, model_family),
            "options": spec.options,
        }
        for spec in glue_specs(recipe)
    ]
    config = FusedConfig(
        host=host_config.to_dict(),
        encoders=specs,
        glue=glue,
        seed=recipe.seed,
        freeze_host=recipe.host.freeze,
        attention=recipe.host.attention,
    )
    if model_family.causal and recipe.host.prompt is None:
        raise RecipeError(
            f"host.prompt: {host_config.model_type} is a decoder-only model, which translates by a "
            'prompt; for example "Translate to German: {source}\n"'
        )
    check_generation(recipe)
    model = blank_model(config)
    freeze_never_trained(recipe, model)
    _check_limits(recipe, model)
    return model, parts_of_recipe(recipe, model)


def _check_module_names(recipe: Recipe) -> None:
    """torch keeps parts by name in modules that have attributes of their own."""
    taken = set(dir(nn.ModuleDict()))
    wrong = [
        f'encoders.{name}: "{name}" cannot name an encoder; for example: bert'
        for name in recipe.encoders
        if name in taken
    ]
    wrong += [
        f'glue[{place}].name: "{spec.key}" cannot name glue; for example: gated_2'
        for place, spec in enumerate(recipe.glue)
        if spec.key in taken
    ]
    if wrong:
        raise RecipeError("\n".join(wrong))


def _default_sites(spec: GlueSpec, family: Family) -> list[str]:
    method: type[Glue] = GLUE.get(spec.method)
    return list(method.causal_sites if family.causal else method.default_sites)


def _encoder_spec(name: str, spec: EncoderSpec) -> dict[str, Any]:
    ENCODERS.get(spec.builder)  # a plug-in brings its config's class
    config = read_config(encoder_directory(spec), f"encoders.{name}.source")
    if config.model_type in ONE_MEMORY and spec.layer != -1:
        raise RecipeError(
            f"encoders.{name}.layer: {config.model_type} has hidden states of several lengths; "
            f"only -1, the last, is a memory; found {spec.layer}"
        )
    layers = getattr(memory_config(config), "num_hidden_layers", None)
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


def _processor(
    recipe: Recipe, model: FusedModel, tokenizer: PreTrainedTokenizerBase
) -> FusionProcessor:
    encoders = {}
    for name, spec in recipe.encoders.items():
        own = load_tokenizer(encoder_directory(spec))
        limit = model.encoder_parts[name].limit
        if spec.max_length is None and own.model_max_length < limit:
            limit = own.model_max_length
            model.encoder_parts[name].limit = model.config.encoders[name]["limit"] = limit
        encoders[name] = EncoderText(own, limit, spec.overflow, default_prompt(locate(spec.source)))
    longest = model.family.source_positions(model.host)
    return FusionProcessor(
        tokenizer,
        encoders,
        max_length=longest,
        prompt=recipe.host.prompt,
        causal=model.family.causal,
    )
