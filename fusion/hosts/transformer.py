"""The NMT Transformer of the older toolkits as one host: transformers' Marian with switches.

Marian's class is the post-norm Transformer with positions that count from the left edge. fairseq,
OpenNMT-py, Joey NMT, Sockeye and Marian itself differ from it and from each other in small things
that change every logit; each is a field of the config. Names of tensors are Marian's.

    norm        before a sublayer or after it, per side; a norm after the last layer; epsilon
    positions   learned, or sinusoidal in one of three layouts; where they start; they count real
                tokens, so that padding on the left changes nothing
    embeddings  shared or not, scaled or not, with a norm after them or not
    attention   with or without biases
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    MarianMTModel,
    PretrainedConfig,
)
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
)
from transformers.models.marian import modeling_marian as marian
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from fusion.hosts.families import MARIAN
from fusion.hosts.family import Norm
from fusion.hosts.transformer_config import TransformerConfig
from fusion.hosts.transformer_positions import Positions


def _switch(layer: Any, config: TransformerConfig, before: bool) -> None:
    """What both kinds of layer change in a Marian layer once it is built."""
    layer.normalize_before = before
    for module in layer.children():
        if isinstance(module, nn.LayerNorm):
            module.eps = config.layer_norm_eps
        elif isinstance(module, marian.MarianAttention) and not config.attention_bias:
            for part in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                part.register_parameter("bias", None)


class _Sublayers:
    """A residual sublayer with its norm before or after it."""

    normalize_before: bool
    dropout: float
    activation_dropout: float
    training: bool

    def _enter(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.normalize_before else x

    def _leave(self, norm: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        x = residual + F.dropout(x, self.dropout, self.training)
        return x if self.normalize_before else norm(x)

    def _feed_forward(self: Any, x: Tensor) -> Tensor:
        inner = self.activation_fn(self.fc1(self._enter(self.final_layer_norm, x)))
        inner = F.dropout(inner, self.activation_dropout, self.training)
        return self._leave(self.final_layer_norm, self.fc2(inner), x)  # type: ignore[no-any-return]


class EncoderLayer(_Sublayers, marian.MarianEncoderLayer):  # type: ignore[misc]
    """Marian's, with the norms where the config says."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        _switch(self, config, config.encoder_normalize_before)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
        norm = self.self_attn_layer_norm
        mixed, _ = self.self_attn(
            self._enter(norm, hidden_states), attention_mask=attention_mask, **kwargs
        )
        return self._feed_forward(self._leave(norm, mixed, hidden_states))


class DecoderLayer(_Sublayers, marian.MarianDecoderLayer):  # type: ignore[misc]
    """Marian's, with the norms where the config says."""

    def __init__(self, config: TransformerConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        _switch(self, config, config.decoder_normalize_before)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        norm, x = self.self_attn_layer_norm, hidden_states
        mixed, _ = self.self_attn(
            self._enter(norm, x), cache=cache, attention_mask=attention_mask, **kwargs
        )
        x = self._leave(norm, mixed, x)
        norm = self.encoder_attn_layer_norm
        mixed, _ = self.encoder_attn(
            self._enter(norm, x),
            key_value_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            cache=cache,
            **kwargs,
        )
        return self._feed_forward(self._leave(norm, mixed, x))


class _Stack:
    """What encoder and decoder share around their layers."""

    def _build(self: Any, config: TransformerConfig, layers: list[nn.Module]) -> None:
        side = "encoder" if isinstance(self, Encoder) else "decoder"
        rows, count = config.vocab_size, config.max_position_embeddings
        if side == "decoder":
            rows, count = config.decoder_vocab_size, config.max_target_positions or count
        width, eps = config.d_model, config.layer_norm_eps

        def norm(wanted: bool) -> nn.Module:
            return nn.LayerNorm(width, eps=eps) if wanted else nn.Identity()

        self.dropout, self.layerdrop = config.dropout, getattr(config, f"{side}_layerdrop")
        self.embed_scale = math.sqrt(width) if config.scale_embedding else 1.0
        self.embed_tokens = nn.Embedding(rows, width, config.pad_token_id)
        if config.position_embeddings:
            learned = getattr(config, f"{side}_learned_positions")
            self.embed_positions = Positions(config, count, learned)
        self.layernorm_embedding = norm(config.normalize_embeddings)
        self.layers = nn.ModuleList(layers)
        self.layer_norm = norm(getattr(config, f"{side}_final_norm"))
        self.gradient_checkpointing = False
        self.post_init()

    def _enter(self: Any, embedded: Tensor, mask: Tensor | None, past: int) -> Tensor:
        x = embedded * self.embed_scale
        if self.config.position_embeddings:
            x = x + self.embed_positions(mask, past, x.shape[1])
        return F.dropout(self.layernorm_embedding(x), self.dropout, self.training)


class Encoder(_Stack, marian.MarianPreTrainedModel):  # type: ignore[misc]
    """Embeddings, positions, layers, final norm."""

    _can_record_outputs = marian.MarianEncoder._can_record_outputs

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self._build(config, [EncoderLayer(config) for _ in range(config.encoder_layers)])

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """`[B, T]` -> last_hidden_state `[B, T, D]`."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        x = self._enter(inputs_embeds, attention_mask, 0)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask
        )
        for layer in self.layers:
            if not (self.training and self.layerdrop and torch.rand([]) < self.layerdrop):
                x = layer(x, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(x))


class Decoder(_Stack, marian.MarianPreTrainedModel):  # type: ignore[misc]
    """Embeddings, positions, layers with a cache, final norm."""

    _can_record_outputs = marian.MarianDecoder._can_record_outputs

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self._build(config, [DecoderLayer(config, i) for i in range(config.decoder_layers)])

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """`[B, T]` -> last_hidden_state `[B, T, D]` and the cache."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = EncoderDecoderCache(
                DynamicCache(config=self.config), DynamicCache(config=self.config)
            )
        past = cache.get_seq_length() if cache is not None else 0
        real = attention_mask
        if real is None and input_ids is not None and not past and self.config.position_offset:
            real = input_ids != self.config.pad_token_id
        x = self._enter(inputs_embeds, real, past)
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        causal = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask, cache=own
        )
        cross = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        for layer in self.layers:
            if not (self.training and self.layerdrop and torch.rand([]) < self.layerdrop):
                x = layer(x, causal, encoder_hidden_states, cross, cache=cache, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.layer_norm(x), cache=cache
        )


class TransformerModel(marian.MarianModel):  # type: ignore[misc]
    """Encoder and decoder, with embeddings shared or not."""

    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super(marian.MarianModel, self).__init__(config)
        self._tied_weights_keys = None
        if config.share_encoder_decoder_embeddings:
            self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
            self._tied_weights_keys = _tied("", "encoder.embed_tokens", "decoder.embed_tokens")
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.post_init()


def _tied(prefix: str, *modules: str) -> dict[str, str]:
    """Modules whose weight is that of the shared embeddings."""
    return {f"{module}.weight": f"{prefix}shared.weight" for module in modules}


class TransformerForTranslation(MarianMTModel):  # type: ignore[misc]
    """The host: `MarianMTModel` with the switches of `TransformerConfig`.

    Differs: position tables are saved with the rest, so that a saved model needs no recipe for them
    """

    config_class = TransformerConfig
    _keys_to_ignore_on_save = None

    def __init__(self, config: TransformerConfig) -> None:
        super(MarianMTModel, self).__init__(config)
        self._keys_to_ignore_on_load_missing = self.computed_names = ["final_logits_bias"] + [
            rf"model\.{side}\.embed_positions\.weight"
            for side in ("encoder", "decoder")
            if not getattr(config, f"{side}_learned_positions")
        ]
        rows = config.decoder_vocab_size
        if config.share_encoder_decoder_embeddings:
            tables = ("model.encoder.embed_tokens", "model.decoder.embed_tokens")
            self._tied_weights_keys = _tied("model.", "lm_head", *tables)
        self.model = TransformerModel(config)
        self.final_logits_bias = nn.Buffer(torch.zeros(1, rows))
        self.lm_head = nn.Linear(config.d_model, rows, bias=False)
        self.post_init()


def _norm(config: PretrainedConfig, site: str) -> Norm:
    side = "encoder" if site.startswith("encoder.") else "decoder"
    return "pre" if getattr(config, f"{side}_normalize_before") else "post"


TRANSFORMER = replace(
    MARIAN,
    model_class="fusion.hosts.transformer:TransformerForTranslation",
    norm=_norm,
    sites={site: where for site, where in MARIAN.sites.items() if ".after_" not in site},
)

AutoConfig.register("fusion_transformer", TransformerConfig)
AutoModelForSeq2SeqLM.register(TransformerConfig, TransformerForTranslation)
