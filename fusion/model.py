"""FusedModel: host, encoders and glue as one transformers model that can generate()."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.bart.modeling_bart import shift_tokens_right

from fusion.beams import is_first_step, keep_sentences_in_place, once_per_sentence
from fusion.configuration import FusedConfig, config_from_dict
from fusion.encoders.part import EncoderPart
from fusion.errors import FusionError, ModelError, RecipeError, SiteError
from fusion.glue.base import Glue, Place
from fusion.glue.mix import LayerMix
from fusion.glue.options import options_of
from fusion.hosts.family import family_of
from fusion.ledger import Ledger
from fusion.memory import Memory, joined
from fusion.placement import Memories, Placed, Placement, place_of, seats_for, sites_of
from fusion.registry import ENCODERS, GLUE


@dataclass
class FusedEncoderOutput(BaseModelOutput):  # type: ignore[misc]
    """The host encoder's output and the encoders' memories, kept through generation."""

    memories: Memories | None = None
    router_logits: Any = None  # NLLB-MoE's decoder step asks for them


@dataclass
class Clock:
    """Counts updates and forward passes within one, so that a resumed run draws the same."""

    update: int = 0
    forward: int = 0

    def next_update(self, update: int) -> None:
        """Called at the start of an update."""
        self.update, self.forward = update, 0


class _EncodeAll(nn.Module):
    """What generation calls as the encoder: the host's encoder after the encoders' memories."""

    def __init__(self, model: FusedModel) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a child: the parameters belong to the model

    def forward(self, **kwargs: Any) -> FusedEncoderOutput:
        model: FusedModel = self.__dict__["model"]
        inputs, rest = model.split_inputs(kwargs)
        rest.pop("labels", None)
        memories = model.memories(inputs, rest.get("attention_mask"))
        for memory in memories.values():
            memory.reusable = True
        return model.encode(memories, rest)


def _encoder_output(output: Any, memories: Memories) -> FusedEncoderOutput:
    return FusedEncoderOutput(
        last_hidden_state=output.last_hidden_state,
        hidden_states=output.hidden_states,
        attentions=output.attentions,
        memories=memories,
        router_logits=getattr(output, "router_logits", None),
    )


class FusedModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A host that reads encoders' memory through glue in its sites.

    Inputs beside the host's own: `{encoder}_input_ids` and `{encoder}_attention_mask` `[B, S]` for
    every encoder. Tensors are named `host.*`, `encoders.{name}.model.*`, `glue.{name}.{site}.*` and
    `mixes.{name}.*`.
    """

    config_class = FusedConfig
    base_model_prefix = "fused"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: FusedConfig) -> None:
        super().__init__(config)
        host_config = config.host_config
        if config.attention is not None:
            host_config._attn_implementation = config.attention
        self.family_name, self.family = family_of(host_config)
        self.host = self.family.build(host_config)
        self.encoders = nn.ModuleDict(
            {name: _build_encoder(name, spec) for name, spec in config.encoders.items()}
        )
        self.mixes = nn.ModuleDict()
        self.glue = nn.ModuleDict()
        self.clock = Clock()
        self.host_at_rest = config.freeze_host  # nothing of it is trained now: eval mode
        self.placement = Placement(self.family.causal)
        self._place_glue()
        if config.freeze_host:
            self.host.requires_grad_(False)
        self.generation_config = self.host.generation_config
        self.ledger = Ledger()

    def _place_glue(self) -> None:
        """Build every glue module, and let the sites read through them."""
        parts = self.encoder_parts
        sites = sites_of(self.host, self.family, parts)
        for name, encoder in parts.items():
            if encoder.layer == "mix":
                self.mixes[name] = LayerMix(encoder.layers)
        for spec in self.config.glue:
            read = _encoders_of(spec)
            try:
                seats = seats_for(spec["sites"], sites, self.host, parts)
            except SiteError as error:
                raise SiteError(f'glue "{spec["name"]}": sites: {error}') from None
            placed = nn.ModuleDict()
            for index, (site, seat) in enumerate(seats.items()):
                widths = tuple(parts[name].width for name in read)
                place = place_of(site, seat, widths, self.host, self.family, parts)
                layers = parts[read[0]].layers if read and parts[read[0]].stacked else 0
                place = replace(place, index=index, count=len(seats), memory_layers=layers)
                module = _build_glue(spec, place)
                self._check_memory(spec, module)
                placed[site.replace(".", "_").replace(":", "__")] = module
                rest = self.family.rest if site in sites else None
                self.placement.add(Placed(site, module, read), seat, rest)
                inside = re.split("[.:]", site, maxsplit=1)[0]
                if inside in parts:
                    parts[inside].glued = True
            self.glue[spec["name"]] = placed
        self.placement.attach()
        sequence = self.placement.sequence
        if sequence is not None and sequence.module.sequence == "replaced":
            _freeze_only(self.host.get_encoder(), self.host.get_decoder())

    def _check_memory(self, spec: dict[str, Any], module: Glue) -> None:
        read, here = _encoders_of(spec), f'glue "{spec["name"]}": {spec["method"]}'
        known = ", ".join(self.encoder_parts) or "none"
        if module.reads_memory and not read:
            raise RecipeError(f"{here} needs encoder:, one of this recipe's: {known}")
        if not module.reads_memory and read:
            raise RecipeError(f"{here} reads no memory; remove encoder:")
        inside = re.split("[.:]", module.place.site, maxsplit=1)[0]
        if module.reads_memory and inside in self.encoder_parts:
            raise RecipeError(f"{here} reads memory, which is not there inside an encoder yet")
        if module.reads_layers:
            if len(read) > 1:
                raise RecipeError(f"{here} reads the layers of one encoder; found {len(read)}")
            if not self.encoder_parts[read[0]].stacked:
                raise RecipeError(
                    f"{here} reads every layer: set encoders.{read[0]}.layer to all (or mix)"
                )

    def train(self, mode: bool = True) -> FusedModel:
        """As `nn.Module.train`; frozen parts stay in eval mode."""
        super().train(mode)
        if self.host_at_rest:
            self.host.eval()
        return self

    def remove_glue(self) -> PreTrainedModel:
        """Take all glue out and return the host, bit for bit what it would be alone."""
        self.placement.detach()
        return self.host

    @contextlib.contextmanager
    def without_glue(self) -> Iterator[None]:
        """Within it, the model is its host alone."""
        self.remove_glue()
        try:
            yield
        finally:
            self.placement.attach()

    @property
    def glue_modules(self) -> dict[str, Glue]:
        """Every glue module by its tensor prefix."""
        found: dict[str, Glue] = {}
        for name, placed in self.glue.items():
            for site, module in cast(nn.ModuleDict, placed).items():
                found[f"glue.{name}.{site}"] = cast(Glue, module)
        return found

    @property
    def encoder_parts(self) -> dict[str, EncoderPart]:
        """Every encoder by name."""
        return {name: cast(EncoderPart, part) for name, part in self.encoders.items()}

    @property
    def is_composite(self) -> bool:
        """Whether there is anything beside the host."""
        return bool(len(self.encoders) or len(self.glue))

    @property
    def is_neutral(self) -> bool:
        """Whether all glue starts by leaving the host unchanged."""
        return all(module.neutral for module in self.glue_modules.values())

    @property
    def may_drop(self) -> bool:
        """Whether a training step may leave some glue out, so that it gets no gradient."""
        return any(module.may_drop for module in self.glue_modules.values())

    def split_inputs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the encoders' inputs, everything else)."""
        kinds = ("input_ids", "attention_mask", "memory", "cached")
        own = {f"{n}_{k}" for n in self.encoders for k in kinds}
        mine = {key: value for key, value in kwargs.items() if key in own}
        return mine, {key: value for key, value in kwargs.items() if key not in own}

    def memories(self, inputs: dict[str, Any], source_mask: Tensor | None = None) -> Memories:
        """Every encoder's memory of a batch, and of the encoders that glue reads together.

        `{encoder}_memory` `[B, S, M]` (`[L, B, S, M]` for all layers) is taken in place of running
        the encoder, which then needs no ids; beside `{encoder}_cached` `[B]` it is taken where that
        is True, and the other sentences are encoded.

        Raises:
            FusionError: an encoder's ids are missing.
        """
        found = {}
        for name, encoder in self.encoder_parts.items():
            ids, mask = inputs.get(f"{name}_input_ids"), inputs.get(f"{name}_attention_mask")
            states = inputs.get(f"{name}_memory")
            if states is not None:
                memory = self._given(states, mask)
                cached = inputs.get(f"{name}_cached")
                if cached is not None and ids is not None and mask is not None:
                    rows = ~cached
                    encoded = encoder(ids[rows], mask[rows]).states
                    memory.states[..., rows, :, :] = encoded.to(memory.states.dtype)
            elif ids is not None:
                memory = encoder(ids, mask)
            else:
                raise FusionError(
                    f"{name}_input_ids is missing: encode the raw source text with FusionProcessor"
                )
            if encoder.stacked:
                memory.layers = memory.states
                mixed = self.mixes[name](memory.states) if name in self.mixes else None
                memory.states = memory.states[-1] if mixed is None else mixed
            found[name] = memory
        for group in self.placement.joined():
            found["+".join(group)] = joined([found[name] for name in group])
        for memory in found.values():
            memory.source_mask = source_mask
        return found

    def encode(self, memories: Memories, inputs: dict[str, Any]) -> FusedEncoderOutput:
        """Run the host's encoder with these memories shown, or what a glue puts in its place."""
        self.show(memories)
        sequence = self.placement.sequence
        if sequence is not None and sequence.module.sequence == "replaced" and sequence.memory:
            memory = memories[sequence.memory]
            states = sequence.module(memory.states, lambda: memory.states, memory)
            return FusedEncoderOutput(last_hidden_state=states, memories=memories)
        return _encoder_output(self.host.get_encoder()(**inputs), memories)

    def _attended(self, mask: Tensor | None, output: Any, memories: Memories) -> Tensor | None:
        """The mask of what the decoder attends to, with beams adjacent."""
        sequence = self.placement.sequence
        if sequence is None or sequence.memory is None:
            return mask
        memory = memories[sequence.memory]
        rows, sentences = output.last_hidden_state.shape[0], memory.states.shape[0]
        source = memory.source_mask
        if mask is not None:
            source = mask[:: max(1, mask.shape[0] // sentences)]
        if source is None:
            raise FusionError("attention_mask is missing: glue changes what the decoder attends to")
        attended = sequence.module.mask_of(source.bool(), memory)
        return attended.long().repeat_interleave(rows // sentences, dim=0)

    def _given(self, states: Tensor, mask: Tensor | None) -> Memory:
        """States that were computed before; without a mask, none is padding.

        Under autocast they get the type that projections read them in, and skip fp32; a mix of
        layers is taken in fp32.
        """
        kind, dtype = states.device.type, self.dtype
        if states.dim() == 3 and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return Memory(states.to(dtype), None if mask is None else mask.bool())

    def show(self, memories: Memories) -> None:
        """Let the glue in the host's sites read these memories from now on."""
        self.placement.board.clear()
        self.placement.board.update(memories)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def draw(self) -> None:
        """Draw every random choice of this training step: by seed, update, pass and site."""
        for name, module in self.glue_modules.items():
            text = f"{self.config.seed}\0{self.clock.update}\0{self.clock.forward}\0{name}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
            module.draw(random.Random(seed))
        self.clock.forward += 1

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """As the host's forward, with the encoders' inputs in `kwargs`.

        In training without labels, the loss is that of the penalties alone, where glue has any.

        Shapes: input_ids `[B, T]`, labels `[B, U]` -> logits `[B, U, V]`
        """
        inputs, rest = self.split_inputs(kwargs)
        if self.training:
            self.draw()
        memories: Memories | None = getattr(encoder_outputs, "memories", None)
        if memories is None:
            memories = self.memories(inputs, attention_mask)
        self.show(memories)
        if self.placement.sequence is not None:
            if attention_mask is None and input_ids is not None:
                attention_mask = torch.ones_like(input_ids)
            if encoder_outputs is None:
                source = {"input_ids": input_ids, "attention_mask": attention_mask}
                encoder_outputs = self.encode(memories, source)
            attention_mask = self._attended(attention_mask, encoder_outputs, memories)
        if labels is not None and decoder_input_ids is None and not self.family.shifts_labels:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        with self._beams_together(encoder_outputs, memories, rest):
            output: Seq2SeqLMOutput = self.host(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                encoder_outputs=encoder_outputs,
                labels=labels,
                **rest,
            )
        if output.loss is not None:
            output.loss = self.with_penalties(output.loss)
        elif penalties := self._penalties():
            # DDP looks for the parameters in use behind the outputs alone.
            output.loss = torch.stack([rate * penalty for rate, penalty in penalties]).sum()
        return output

    def _beams_together(
        self, encoded: Any, memories: Memories, rest: dict[str, Any]
    ) -> contextlib.AbstractContextManager[None]:
        """In the first step of a generation with beams, what lets them share their source."""
        if encoded is None or not memories or not is_first_step(rest):
            return contextlib.nullcontext()
        states, memory = encoded[0], next(iter(memories.values()))
        beams, rest_of = divmod(states.shape[0], memory.states.shape[0])
        if rest_of or beams == 1:
            return contextlib.nullcontext()
        return once_per_sentence(self.get_decoder(), states, beams)

    def with_penalties(self, loss: Tensor, share: float | Tensor = 1.0) -> Tensor:
        """(1 - sum l) loss + sum l penalty, over all glue that has a loss term of its own.

        Args:
            share: what part of an update's source tokens this forward pass saw
        """
        penalties = self._penalties()
        if penalties:
            loss = (1 - sum(rate for rate, _ in penalties)) * loss
        for rate, penalty in penalties:
            loss = loss + rate * share * penalty
        for module in self.glue_modules.values():
            module.penalty = None
        return loss

    def _penalties(self) -> list[tuple[float, Tensor]]:
        """(l, penalty) of the last forward pass, of all glue that has one."""
        modules = self.glue_modules.values()
        return [(m.penalty_weight, m.penalty) for m in modules if m.penalty is not None]

    @property
    def has_penalties(self) -> bool:
        """Whether the loss has other terms than the likelihood."""
        return any(module.penalty_weight for module in self.glue_modules.values())

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """What generation runs once per sentence: all encoders, then the host's."""
        return _EncodeAll(self)

    def get_decoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The host's decoder."""
        decoder: nn.Module = self.host.get_decoder()
        return decoder

    def get_input_embeddings(self) -> nn.Module:
        """The host's."""
        embeddings: nn.Module = self.host.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The host's."""
        return self.host.get_output_embeddings()  # type: ignore[no-any-return]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The host's way to shift labels right `[B, U]`, that of BART where it names none."""
        own = hasattr(self.host, "prepare_decoder_input_ids_from_labels")
        if self.family.shifts_labels and own:
            shifted: Tensor = self.host.prepare_decoder_input_ids_from_labels(labels)
            return shifted
        config = self.host.config
        moved: Tensor = shift_tokens_right(
            labels, config.pad_token_id, config.decoder_start_token_id
        )
        return moved

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """As transformers does; the encoders' inputs are no mistakes."""
        model_kwargs.pop("decoder_input_ids", None)
        super()._validate_model_kwargs(self.split_inputs(model_kwargs)[1])

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """The host's cache: its decoder's layers, and whatever its class needs beside."""
        made = self.host._prepare_cache_for_generation(*args, **kwargs)
        keep_sentences_in_place(*args, *kwargs.values())
        return made

    def can_generate(self) -> bool:
        """Yes, as every seq2seq host."""
        return True

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: warm_start gives every tensor its values."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """The host ties its own."""

    @classmethod
    def from_pretrained(cls, directory: str, *args: Any, **kwargs: Any) -> FusedModel:
        """Load a saved model; every tensor is accounted for and frozen ones are verified.

        Args:
            sources: part (`host` or an encoder's name) -> where its source is now, for parts that
                were saved without weights
        """
        from fusion.saved import load_model

        kwargs.pop("config", None)
        sources = kwargs.pop("sources", None)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        if args or kwargs:
            raise ModelError(
                f"{directory}: from_pretrained takes no {', '.join(kwargs) or 'arguments'}"
            )
        model = load_model(directory, sources)
        return model.to(dtype) if isinstance(dtype, torch.dtype) else model

    def save_pretrained(
        self, directory: str, *args: Any, full: bool = False, **kwargs: Any
    ) -> None:
        """Save the ledger and all parts, each as a directory that transformers loads alone.

        Args:
            full: write the weights as well of parts that are bit for bit what their source gave
        """
        from fusion.saved import save_model

        save_model(self, directory, full=full)


def _build_encoder(name: str, spec: dict[str, Any]) -> EncoderPart:
    builder = ENCODERS.get(spec["builder"])  # a plug-in brings its config's class
    config = config_from_dict(spec["config"])
    try:
        model = builder(config)
    except FusionError:
        raise
    except Exception as error:  # each class and plug-in has reasons of its own
        raise ModelError(
            f"encoders.{name}: {config.model_type} cannot be built from its config: {error}"
        ) from error
    if not isinstance(getattr(model, "config", None), PretrainedConfig):
        raise ModelError(
            f'encoders.{name}: builder "{spec["builder"]}" gives a {type(model).__name__} without '
            "a .config; it is a module with its transformers config, a PreTrainedModel say"
        )
    return EncoderPart(
        model,
        layer=spec["layer"],
        freeze=spec["freeze"],
        dropout=spec["dropout"],
        limit=spec["limit"],
    )


def _encoders_of(spec: dict[str, Any]) -> tuple[str, ...]:
    """The encoders that a glue reads."""
    read = spec["encoder"]
    return (read,) if isinstance(read, str) else tuple(read or ())


def _freeze_only(part: nn.Module, other: nn.Module) -> None:
    """Freeze what one module has and the other has not."""
    shared = {id(parameter) for parameter in other.parameters()}
    for parameter in part.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)


def _build_glue(spec: dict[str, Any], place: Place) -> Glue:
    method = GLUE.get(spec["method"])
    try:
        module: Glue = method(place, **options_of(method, spec))
    except (TypeError, FusionError) as error:
        raise RecipeError(f'glue "{spec["name"]}": {error}') from None
    except Exception as error:  # a plug-in has reasons of its own
        raise RecipeError(
            f'glue "{spec["name"]}": {spec["method"]} cannot be built: '
            f"{type(error).__name__}: {error}"
        ) from error
    return module


AutoModelForSeq2SeqLM.register(FusedConfig, FusedModel)
