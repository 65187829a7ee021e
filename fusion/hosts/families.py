"""The families: one row each."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from fusion.hosts.family import Family, Norm, Where
from fusion.hosts.site import At


def _whole(name: str, module: str, layer: str) -> dict[str, Where]:
    """The sites around the layers of one side: token embeddings, whole layers, the output.

    Embeddings are the tokens' alone, before positions and norm.
    """
    return {
        f"{name}.embeddings": At(f"{module}.embed_tokens", x="output"),
        f"{name}.{{i}}.output": At(f"{module}.{layer}.{{i}}", x="output"),
        f"{name}.output": At(module, x="output"),
    }


def _between(encoder: str, decoder: str) -> dict[str, Where]:
    """The sites behind an attention sublayer, its residual included; not every host has a module
    that gives this state.
    """
    return {
        "encoder.{i}.after_self_attention": At(encoder, x="output"),
        "decoder.{i}.after_cross_attention": At(decoder, x="output"),
    }


def _bart_like(model_class: str, norm: Norm = "post", base: str = "model") -> Family:
    encoder, decoder = (f"{base}.{side}.layers.{{i}}" for side in ("encoder", "decoder"))
    sites: dict[str, Where] = {
        "encoder.{i}.self_attention": f"{encoder}.self_attn",
        "decoder.{i}.self_attention": f"{decoder}.self_attn",
        "decoder.{i}.cross_attention": f"{decoder}.encoder_attn",
        "encoder.{i}.feed_forward": At(f"{encoder}.fc2", query=f"{encoder}.fc1"),
        "decoder.{i}.feed_forward": At(f"{decoder}.fc2", query=f"{decoder}.fc1"),
    }
    if norm == "post":  # the norm after the residual gives the state between two sublayers
        sites |= _between(f"{encoder}.self_attn_layer_norm", f"{decoder}.encoder_attn_layer_norm")
    sites |= _whole("encoder", f"{base}.encoder", "layers")
    sites |= _whole("decoder", f"{base}.decoder", "layers")
    return Family(model_class=model_class, sites=sites, norm=norm, rest=(None,))


def _t5_like(model_class: str, feed_forward: str = "DenseReluDense") -> Family:
    sites: dict[str, Where] = {
        "encoder.{i}.self_attention": "encoder.block.{i}.layer.0.SelfAttention",
        "decoder.{i}.self_attention": "decoder.block.{i}.layer.0.SelfAttention",
        "decoder.{i}.cross_attention": "decoder.block.{i}.layer.1.EncDecAttention",
        "encoder.{i}.feed_forward": At(f"encoder.block.{{i}}.layer.1.{feed_forward}"),
        "decoder.{i}.feed_forward": At(f"decoder.block.{{i}}.layer.2.{feed_forward}"),
    }
    sites |= _between("encoder.block.{i}.layer.0", "decoder.block.{i}.layer.1")
    sites |= _whole("encoder", "encoder", "block") | _whole("decoder", "decoder", "block")
    return Family(
        model_class=model_class,
        sites=sites,
        encoder_heads="num_heads",
        decoder_heads="num_heads",
        norm="pre",
        positions=None,
        rest=None,  # the first layer's attention also makes the position bias of all layers
    )


def _changed(family: Family, sites: dict[str, Where]) -> dict[str, Where]:
    return family.sites | sites


MARIAN = _bart_like("MarianMTModel")
BART = _bart_like("BartForConditionalGeneration")
MBART = _bart_like("MBartForConditionalGeneration", "pre")
PEGASUS = _bart_like("PegasusForConditionalGeneration", "pre")
PLBART = _bart_like("PLBartForConditionalGeneration")
M2M_100 = replace(
    _bart_like("M2M100ForConditionalGeneration", "pre"),
    start="eos_token_id",
)
BLENDERBOT = _bart_like("BlenderbotForConditionalGeneration", "pre")
BLENDERBOT_SMALL = _bart_like("BlenderbotSmallForConditionalGeneration")
MVP = _bart_like("MvpForConditionalGeneration")
T5 = _t5_like("T5ForConditionalGeneration")
MT5 = _t5_like("MT5ForConditionalGeneration")
UMT5 = _t5_like("UMT5ForConditionalGeneration")
SWITCH_TRANSFORMERS = _t5_like("SwitchTransformersForConditionalGeneration", "mlp")

_bigbird = _bart_like("BigBirdPegasusForConditionalGeneration", "pre")
# Block-sparse attention fits the mask that it was given for padded blocks; it is never left out.
BIGBIRD_PEGASUS = replace(_bigbird, rest=None)

_pegasus_x = _bart_like("PegasusXForConditionalGeneration", "pre")
# The encoder's attention carries global tokens beside the sentence's; the layer writes both out.
PEGASUS_X = replace(
    _pegasus_x,
    sites=_changed(
        _pegasus_x, {"encoder.{i}.self_attention": At("model.encoder.layers.{i}.self_attn")}
    ),
)

_nllb_moe = _bart_like("NllbMoeForConditionalGeneration", "pre")
NLLB_MOE = replace(
    _nllb_moe,
    start="eos_token_id",
    sites=_changed(
        _nllb_moe,
        {
            "decoder.{i}.cross_attention": "model.decoder.layers.{i}.cross_attention",
            "encoder.{i}.feed_forward": At("model.encoder.layers.{i}.ffn"),
            "decoder.{i}.feed_forward": At("model.decoder.layers.{i}.ffn"),
        },
    ),
)

_led = _bart_like("LEDForConditionalGeneration", base="led")
LED = replace(_led, positions="max_encoder_position_embeddings", rest=None)

_fsmt = _bart_like("FSMTForConditionalGeneration")
# Where labels come without the decoder's inputs, transformers' FSMT decodes the source shifted; and
# where it generates without a cache, it forgets the causal mask.
FSMT = replace(
    _fsmt,
    shifts_labels=False,
    start="eos_token_id",
    sites={
        site: replace(At(where, skip=True) if isinstance(where, str) else where, time_major=True)
        if "{i}" in site
        else where
        for site, where in _fsmt.sites.items()
        if not isinstance(where, tuple) and site != "decoder.output"
    },
)

_LONG = "encoder.block.{i}.layer.0."
_longt5 = _t5_like("LongT5ForConditionalGeneration")
LONGT5 = replace(
    _longt5,
    sites=_changed(
        _longt5,
        {
            "encoder.{i}.self_attention": (
                f"{_LONG}LocalSelfAttention",
                f"{_LONG}TransientGlobalSelfAttention",
            )
        },
    ),
)

# The decoder's layers have n-gram streams beside the words: their x has (1 + n) T positions. Logits
# come from those streams, not from the words' that the decoder gives out: no decoder.output.
# In transformers 5 its logits of a prefix change with what follows; with glue as without.
PROPHETNET = Family(
    model_class="ProphetNetForConditionalGeneration",
    sites={
        "encoder.{i}.self_attention": "prophetnet.encoder.layers.{i}.self_attn",
        "decoder.{i}.self_attention": At("prophetnet.decoder.layers.{i}.self_attn"),
        "decoder.{i}.cross_attention": "prophetnet.decoder.layers.{i}.cross_attn",
        "encoder.{i}.feed_forward": At("prophetnet.encoder.layers.{i}.feed_forward"),
        "decoder.{i}.feed_forward": At("prophetnet.decoder.layers.{i}.feed_forward"),
        "encoder.embeddings": At("prophetnet.encoder.word_embeddings", x="output"),
        "decoder.embeddings": At("prophetnet.decoder.word_embeddings", x="output"),
        "encoder.{i}.output": At("prophetnet.encoder.layers.{i}", x="output"),
        "decoder.{i}.output": At("prophetnet.decoder.layers.{i}", x="output"),
        "encoder.output": At("prophetnet.encoder", x="output"),
    },
    encoder_heads="num_encoder_attention_heads",
    decoder_heads="num_decoder_attention_heads",
    rest=(None,),
)

_gemma: dict[str, Where] = {
    "encoder.{i}.self_attention": "model.encoder.layers.{i}.self_attn",
    "decoder.{i}.self_attention": "model.decoder.layers.{i}.self_attn",
    "decoder.{i}.cross_attention": "model.decoder.layers.{i}.cross_attn",
    "encoder.{i}.feed_forward": At("model.encoder.layers.{i}.mlp"),
    "decoder.{i}.feed_forward": At("model.decoder.layers.{i}.mlp"),
}
_gemma |= _whole("encoder", "model.encoder", "layers")
_gemma |= _whole("decoder", "model.decoder", "layers")
T5GEMMA = Family(
    model_class="T5GemmaForConditionalGeneration",
    sites=_gemma,
    encoder_heads="encoder.num_attention_heads",
    decoder_heads="decoder.num_attention_heads",
    encoder_width="encoder.hidden_size",
    decoder_width="decoder.hidden_size",
    eps=("decoder.rms_norm_eps",),
    norm="both",
    start="eos_token_id",
    positions="encoder.max_position_embeddings",
    rest=(None,),
)

# One attention of the decoder reads its own states and the encoder's together. The encoder can see
# images; a host is given text.
_GEMMA2 = "model.encoder.text_model"
_gemma2: dict[str, Where] = {
    "encoder.{i}.self_attention": f"{_GEMMA2}.layers.{{i}}.self_attn",
    "decoder.{i}.cross_attention": At("model.decoder.layers.{i}.self_attn"),
    "encoder.{i}.feed_forward": At(f"{_GEMMA2}.layers.{{i}}.mlp"),
    "decoder.{i}.feed_forward": At("model.decoder.layers.{i}.mlp"),
}
_gemma2 |= _whole("encoder", _GEMMA2, "layers") | _whole("decoder", "model.decoder", "layers")
T5GEMMA2 = replace(
    T5GEMMA,
    model_class="T5Gemma2ForConditionalGeneration",
    sites=_gemma2,
    encoder_heads="encoder.text_config.num_attention_heads",
    encoder_width="encoder.text_config.hidden_size",
    positions="encoder.text_config.max_position_embeddings",
)

_SEAMLESS = {side: f"text_{side}.layers.{{i}}" for side in ("encoder", "decoder")}
_seamless: dict[str, Where] = {
    "encoder.{i}.self_attention": f"{_SEAMLESS['encoder']}.self_attn",
    "decoder.{i}.self_attention": f"{_SEAMLESS['decoder']}.self_attn",
    "decoder.{i}.cross_attention": f"{_SEAMLESS['decoder']}.cross_attention",
    "encoder.{i}.feed_forward": At(f"{_SEAMLESS['encoder']}.ffn"),
    "decoder.{i}.feed_forward": At(f"{_SEAMLESS['decoder']}.ffn"),
}
_seamless |= _whole("encoder", "text_encoder", "layers")
_seamless |= _whole("decoder", "text_decoder", "layers")
SEAMLESS_M4T = Family(
    model_class="SeamlessM4TForTextToText",
    sites=_seamless,
    norm="pre",
    start="eos_token_id",
    rest=(None,),
)
SEAMLESS_M4T_V2 = replace(SEAMLESS_M4T, model_class="SeamlessM4Tv2ForTextToText")

_BERT, _GPT = "encoder.encoder.layer.{i}", "decoder.transformer.h.{i}"
_BERT_DECODER = "decoder.{base}.encoder.layer.{i}"
_PRE_NORM = ("gpt2", "roberta-prelayernorm")


def _bert_attention(attention: str) -> At:
    """The sublayer's output is inside BertSelfOutput, before dropout, residual and norm."""
    return At(f"{attention}.output.dense", query=f"{attention}.self")


def _composed_norm(config: PretrainedConfig, site: str) -> Norm:
    side = site.partition(".")[0]
    return "pre" if getattr(config, side).model_type in _PRE_NORM else "post"


# BERT2BERT and its kin: parts with BERT's modules on both sides, or GPT-2 as the decoder.
ENCODER_DECODER = Family(
    model_class="EncoderDecoderModel",
    sites={
        "encoder.{i}.self_attention": _bert_attention(f"{_BERT}.attention"),
        "decoder.{i}.self_attention": (
            _bert_attention(f"{_BERT_DECODER}.attention"),
            At(f"{_GPT}.attn"),
        ),
        "decoder.{i}.cross_attention": (
            _bert_attention(f"{_BERT_DECODER}.crossattention"),
            At(f"{_GPT}.crossattention"),
        ),
        "encoder.{i}.feed_forward": At(f"{_BERT}.output.dense", query=f"{_BERT}.intermediate"),
        "decoder.{i}.feed_forward": (
            At(f"{_BERT_DECODER}.output.dense", query=f"{_BERT_DECODER}.intermediate"),
            At(f"{_GPT}.mlp"),
        ),
        "encoder.embeddings": At("encoder.embeddings.word_embeddings", x="output"),
        "decoder.embeddings": (
            At("decoder.{base}.embeddings.word_embeddings", x="output"),
            At("decoder.transformer.wte", x="output"),
        ),
        **_between(f"{_BERT}.attention.output", f"{_BERT_DECODER}.crossattention.output"),
        "encoder.{i}.output": At(_BERT, x="output"),
        "decoder.{i}.output": (At(_BERT_DECODER, x="output"), At(_GPT, x="output")),
        "encoder.output": At("encoder", x="output"),
    },
    encoder_heads="encoder.num_attention_heads",
    decoder_heads="decoder.num_attention_heads",
    encoder_width="encoder.hidden_size",
    decoder_width="decoder.hidden_size",
    eps=("encoder.layer_norm_eps",),
    norm=_composed_norm,
    start="eos_token_id",
    positions="encoder.max_position_embeddings",
)
