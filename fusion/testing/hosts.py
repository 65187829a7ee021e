"""A tiny host of every family: the options of its `host.new`, in which the families differ."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from fusion.hosts.family import Family
from fusion.registry import HOSTS
from fusion.testing.tiny import END, PAD, START, VOCABULARY, randomise, tiny_config

IDS = {
    **{"pad_token_id": PAD, "eos_token_id": END},
    **{"bos_token_id": START, "decoder_start_token_id": START},
}
BART = {
    **IDS,
    **{"vocab_size": VOCABULARY, "d_model": 16, "max_position_embeddings": 32},
    **{"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    **{"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 16},
}
# transformers sizes the caches of T5's kin and ProphetNet by the encoder's layers, so that a deeper
# decoder cannot generate there, with glue or without
T5 = {
    **{k: v for k, v in IDS.items() if k != "bos_token_id"},
    **{"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 16},
    **{"num_layers": 3, "num_decoder_layers": 3, "num_heads": 2},
}
EXPERTS = {"num_experts": 2}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
DECODER = {
    **BERT,
    **{"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"is_decoder": True, "add_cross_attention": True},
}
GPT2 = {
    **{"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 3, "n_head": 4},
    **{"n_positions": 32, "is_decoder": True, "add_cross_attention": True},
}
GEMMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": 2,
}
GEMMA_DECODER = {
    **GEMMA,
    **{"num_hidden_layers": 3, "num_attention_heads": 4},
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
NGRAM = {
    **IDS,
    **{"vocab_size": VOCABULARY, "hidden_size": 16, "max_position_embeddings": 33},
    **{"num_encoder_layers": 3, "num_encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    **{"num_decoder_layers": 3, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 16},
}

VISION = {
    **{"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
}
SEAMLESS = {
    **{"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
    **IDS,
    **{"vocab_size": VOCABULARY, "hidden_size": 16, "max_position_embeddings": 32},
    **{"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    **{"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 16},
}


def _composed(encoder: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    return {"encoder": encoder, "decoder": decoder, **IDS}


# name -> (family, options); two rows where the hosts of one family differ in their modules
TINY_HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, BART)
        for name in (
            *("marian", "bart", "mbart", "m2m_100", "plbart", "pegasus", "blenderbot", "mvp"),
            *("blenderbot-small",),
        )
    },
    "nllb-moe": (
        "nllb-moe",
        {**BART, **EXPERTS, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    ),
    "pegasus_x": ("pegasus_x", {**BART, "block_size": 4, "num_global_tokens": 2}),
    "bigbird_pegasus": ("bigbird_pegasus", {**BART, "block_size": 4, "num_random_blocks": 1}),
    "fsmt": (
        "fsmt",
        {
            **{k: v for k, v in BART.items() if k != "vocab_size"},
            **{"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
        },
    ),
    "led": (
        "led",
        {
            **{k: v for k, v in BART.items() if k != "max_position_embeddings"},
            **{"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32},
            "attention_window": 4,
        },
    ),
    "prophetnet": ("prophetnet", NGRAM),
    **{name: (name, T5) for name in ("t5", "mt5", "umt5", "longt5")},
    "longt5-global": (
        "longt5",
        {**T5, "encoder_attention_type": "transient-global", "global_block_size": 4},
    ),
    "switch_transformers": (
        "switch_transformers",
        {**T5, **EXPERTS, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "t5gemma": (
        "t5gemma",
        {"encoder": GEMMA, "decoder": GEMMA_DECODER, "vocab_size": VOCABULARY, **IDS},
    ),
    "t5gemma2": (
        "t5gemma2",
        {
            "encoder": {"text_config": GEMMA, "vision_config": VISION},
            "decoder": GEMMA_DECODER,
            **IDS,
        },
    ),
    **{name: (name, SEAMLESS) for name in ("seamless_m4t", "seamless_m4t_v2")},
    "bert2bert": (
        "encoder-decoder",
        _composed({"model_type": "bert", **BERT}, {"model_type": "bert", **DECODER}),
    ),
    "roberta2roberta": (
        "encoder-decoder",
        _composed({"model_type": "roberta", **BERT}, {"model_type": "roberta", **DECODER}),
    ),
    "bert2gpt2": ("encoder-decoder", _composed({"model_type": "bert", **BERT}, GPT2)),
}


# What transformers itself does not do for a family, with glue or without: (name, check) -> why.
HOST_LIMITS: dict[tuple[str, str], str] = {
    ("fsmt", "generate"): "without a cache, transformers' generate gives it no causal mask",
    ("fsmt", "batch"): "with a cache, transformers gives it no causal mask",
    **dict.fromkeys(
        [("prophetnet", check) for check in ("generate", "steps", "beams", "batch")],
        "in transformers, logits of a prefix change with what follows it",
    ),
    **dict.fromkeys(
        [("gemma2", "dtype"), ("prophetnet", "dtype"), ("t5gemma", "dtype")],
        "in float64, transformers' mask is infinite in its own float32 softmax",
    ),
}

# Rows of a family's sites that one host of it does not have: name -> row -> why.
ABSENT: dict[str, dict[str, str]] = {
    "bert2gpt2": {
        "decoder.{i}.after_cross_attention": "GPT-2 has no module that gives this state",
    },
}


def tiny_host(
    name: str, options: dict[str, Any] | None = None, seed: int = 0
) -> tuple[Family, PreTrainedModel]:
    """A family and a random host of it, in eval mode, no tensor of it at a special value.

    Args:
        name: a row of `TINY_HOSTS`, or a family
        options: of its config; without them, and without a row, sizes by their usual names
    """
    type_name, row = TINY_HOSTS.get(name, (name, None))
    family: Family = HOSTS.get(type_name)
    options = row if options is None else options
    if options is None:
        config = tiny_config(family.architecture.config_class, width=16)
    else:
        config = family.new_config(options)
    torch.manual_seed(seed)
    host = family.build(config).eval()
    randomise(host)
    return family, host
