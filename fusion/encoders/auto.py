"""Any text encoder that transformers' AutoModel builds, without code that names it.

What differs between encoders is data: see `BY_LENGTH`, `ONE_MEMORY`, `UNSUPPORTED`, `LEFT_OUT`.
A model with a decoder gives its encoder only; a causal language model is read as it is, each state
knowing what is to its left.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from fusion.errors import RecipeError

# Encoders that look past the mask: padding reaches real tokens. Each length is run on its own.
BY_LENGTH: dict[str, str] = {
    "canine": "characters are pooled four by four, and the last four may hold padding",
    "convbert": "its convolutions see the padding beside a sentence's end",
    "fnet": "the Fourier transform has no mask",
    "funnel": "tokens are pooled two by two, and the last two may hold padding",
    "mobilebert": "an embedding holds the neighbours' too, padding among them",
    "nystromformer": "a convolution over its values sees the padding beside a sentence's end",
    "yoso": "its attention weighs padding instead of leaving it out",
}

# Encoders whose hidden layers are not all as long as the sentence: only the last one is a memory.
ONE_MEMORY = ("canine", "funnel")

# Models that AutoModel builds from text and that give no memory: model type -> reason.
UNSUPPORTED: dict[str, str] = {
    "perceiver": "it gives latents, not a state per token",
    "reformer": "its hashing draws at random: a memory would never be the same twice",
    "modernvbert": "it reads images beside text",
    "ultravbert": "it reads images beside text",
}

# Source tensors that every encoder leaves out, with the reason.
_HEAD = "a memory is hidden states; the head of the pretraining task is not built"
LEFT_OUT = {
    "pooler.{rest*}": "the memory is token states; the pooler is not built",
    "embeddings.position_ids": "computed by the constructor since transformers 4.31",
    "decoder.{rest*}": "the memory is the encoder's; the decoder is not built",
    "head.{rest*}": _HEAD,
    "lm_head.{rest*}": _HEAD,
    "lm_loss.{rest*}": _HEAD,
    "cls.{rest*}": _HEAD,
    "lm_predictions.{rest*}": _HEAD,
    "mask_predictions.{rest*}": _HEAD,
    "entity_predictions.{rest*}": _HEAD,
    "generator_predictions.{rest*}": _HEAD,
    "generator_lm_head.{rest*}": _HEAD,
    "discriminator_predictions.{rest*}": _HEAD,
    "pred_layer.{rest*}": _HEAD,
    "predictions.{rest*}": _HEAD,
    "vocab_transform.{rest*}": _HEAD,
    "vocab_layer_norm.{rest*}": _HEAD,
    "vocab_projector.{rest*}": _HEAD,
    "final_logits_bias": _HEAD,
}


def build_auto_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """The bare encoder of a config, without pooler and decoder, which a memory does not read.

    BigBird is read with full attention: its sparse form depends on the batch's length, and on
    whether a short batch came before.

    Raises:
        RecipeError: AutoModel does not know the type, or it gives no memory; says why.
    """
    kind = config.model_type
    if kind in UNSUPPORTED:
        raise RecipeError(f'model type "{kind}" cannot be an encoder: {UNSUPPORTED[kind]}')
    if getattr(config, "attention_type", None) == "block_sparse":
        config.attention_type = "original_full"
    if getattr(config, "use_cache", False):
        config.use_cache = False
    model = _bare_model(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = nn.Identity()  # some models call theirs without asking if it is there
    if _has_decoder(model):
        model.decoder = None
        ties = (model._tied_weights_keys or {}).items()
        model._tied_weights_keys = {k: v for k, v in ties if not k.startswith("decoder.")}
        # Marian's files lack what it computes; its class with a head says so, its bare one does not
        model._keys_to_ignore_on_save = {r"encoder\.embed_positions\.weight"}
        model.__class__ = _adapted(_EncoderOnly, type(model))  # type: ignore[arg-type]
    elif kind in BY_LENGTH:
        model.__class__ = _adapted(_ByLength, type(model))  # type: ignore[arg-type]
    return model


def _bare_model(config: PretrainedConfig) -> PreTrainedModel:
    """AutoModel's first class for a config, whatever class the checkpoint was saved from."""
    if type(config) not in MODEL_MAPPING:
        raise RecipeError(
            f'model type "{config.model_type}" cannot be an encoder: AutoModel does not build it'
        )
    saved_from, config.architectures = config.architectures, []
    try:
        model: PreTrainedModel = AutoModel.from_config(config)
    finally:
        config.architectures = saved_from
    model.config.architectures = saved_from
    model.tie_weights()  # where initialisation is switched off, so is tying
    return model


def _has_decoder(model: PreTrainedModel) -> bool:
    return isinstance(getattr(model, "decoder", None), PreTrainedModel) and hasattr(
        model, "encoder"
    )


def memory_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that describes the text encoder: of T5Gemma 2, the text's of both."""
    part = getattr(config, "encoder", None)
    if isinstance(part, PretrainedConfig):
        config = part
    text: PretrainedConfig = config.get_text_config()
    return text


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input in tokens that an encoder was made for; None: no limit.

    RoBERTa and its kin start counting after the padding index, so their table is larger than their
    limit. Encoders with relative positions alone (T5, XLNet, Funnel) have no table.
    """
    config = memory_config(model.config)
    names = ("max_encoder_position_embeddings", "max_position_embeddings")
    sizes = [getattr(config, name, None) for name in names]
    size = next((s for s in sizes if isinstance(s, int) and s > 0), None)
    if size is None:
        return None
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings":
            padding = getattr(module, "padding_idx", None)
            return size - padding - 1 if isinstance(padding, int) else size
    return size


class _EncoderOnly:
    """An encoder-decoder model of which the encoder is left; its tensors keep their names."""

    encoder: nn.Module

    def forward(self, **inputs: Any) -> Any:
        return self.encoder(**inputs)

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.encoder


class _ByLength:
    """An encoder that is given rows of one length at a time, so that there is no padding."""

    config: PretrainedConfig

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        if output_hidden_states and self.config.model_type in ONE_MEMORY:
            raise RecipeError(
                f"{self.config.model_type}: its hidden layers are shorter than the sentence; "
                "encoders.NAME.layer must be -1"
            )
        lengths = attention_mask.sum(dim=1)
        found: list[Tensor] = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            every = self._run(input_ids[rows, :length], output_hidden_states)
            if not found:
                shape = (*input_ids.shape, every[0].shape[-1])
                found = [every[0].new_zeros(shape) for _ in every]
            for whole, states in zip(found, every, strict=True):
                whole[rows, :length] = states[:, :length]
        hidden = tuple(found) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=found[-1], hidden_states=hidden)

    def _run(self, ids: Tensor, every: bool) -> list[Tensor]:
        """All hidden states, or the last one; a row too short to be pooled is padded for it."""
        missing = max(0, int(getattr(self.config, "downsampling_rate", 1)) - ids.shape[1])
        mask = nn.functional.pad(torch.ones_like(ids), (0, missing))
        pad = self.config.pad_token_id or 0
        output = super().forward(  # type: ignore[misc]
            input_ids=nn.functional.pad(ids, (0, missing), value=pad),
            attention_mask=mask,
            output_hidden_states=every,
        )
        return list(output.hidden_states) if every else [output.last_hidden_state]


@cache
def _adapted(mixin: type, base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    return type(base.__name__, (mixin, base), {"__module__": base.__module__})
