"""A tiny checkpoint of every text encoder, as its own task's class saves it, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertTokenizerFast,
    ByT5Tokenizer,
    CanineTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCABULARY = 400
WIDTH = 24
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 60,
    "pad_token_id": 0,
}
ROBERTA = {**BERT, "pad_token_id": 1, "max_position_embeddings": 62}
ROTARY = {**BERT, "num_key_value_heads": 2, "head_dim": 6}
XLM = {
    **{"vocab_size": VOCABULARY, "emb_dim": WIDTH, "n_layers": 2, "n_heads": 4},
    **{"max_position_embeddings": 60, "pad_index": 0, "pad_token_id": 0},
}
T5 = {
    **{"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 6, "d_ff": 32, "num_heads": 4},
    **{"num_layers": 2, "num_decoder_layers": 1, "pad_token_id": 0, "eos_token_id": 1},
}
BART = {
    **{"vocab_size": VOCABULARY, "d_model": WIDTH, "max_position_embeddings": 60},
    **{"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 32},
    **{"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32},
    **{"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2, "bos_token_id": 2},
}
GEMMA = {**ROTARY, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
NGRAM = {
    **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "max_position_embeddings": 61},
    **{"num_encoder_layers": 2, "num_encoder_attention_heads": 4, "encoder_ffn_dim": 32},
    **{"num_decoder_layers": 1, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 32},
    **{"pad_token_id": 0},
}

# model type -> (config, longest input in tokens)
ENCODERS: dict[str, tuple[dict[str, Any], int | None]] = {
    **{
        name: (BERT, 60)
        for name in (
            *("bert", "ernie", "megatron-bert", "roformer", "gte", "neomme", "ultrabert"),
            *("nomic_bert", "jina_embeddings_v3"),
        )
    },
    **{
        name: (ROBERTA, 60)
        for name in (
            *("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm", "esm"),
            *("data2vec-text", "xlm-roberta-xl", "ibert"),
        )
    },
    "albert": ({**BERT, "embedding_size": 16}, 60),
    "electra": ({**BERT, "embedding_size": 16}, 60),
    "rembert": ({**BERT, "input_embedding_size": 16, "output_embedding_size": 16}, 60),
    "squeezebert": ({**BERT, "embedding_size": WIDTH}, 60),
    "deberta": ({**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, 60),
    "deberta-v2": ({**BERT, "relative_attention": True, "position_biased_input": False}, 60),
    "distilbert": (
        {
            **{"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": 4},
            **{"hidden_dim": 32, "max_position_embeddings": 60, "pad_token_id": 0},
        },
        60,
    ),
    "modernbert": ({**BERT, "global_attn_every_n_layers": 2, "local_attention": 8}, 60),
    "eurobert": (ROTARY, 60),
    "longformer": ({**ROBERTA, "attention_window": 4}, 60),
    "big_bird": ({**BERT, "block_size": 4, "num_random_blocks": 1}, 60),
    "luke": ({**ROBERTA, "entity_vocab_size": 5, "entity_emb_size": 8}, 60),
    "xmod": ({**ROBERTA, "languages": ["en_XX"], "default_language": "en_XX"}, 60),
    "xlm": (XLM, 60),
    "flaubert": (XLM, 60),
    "xlnet": (
        {
            **{"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": 2, "n_head": 4},
            **{"d_inner": 32, "pad_token_id": 0},
        },
        None,
    ),
    "canine": ({**BERT, "num_hash_buckets": 64}, 60),
    "convbert": ({**BERT, "embedding_size": WIDTH}, 60),
    "fnet": ({**BERT}, 60),
    "funnel": (
        {
            **{"vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": WIDTH, "n_head": 4},
            **{"d_head": 6, "d_inner": 32, "num_decoder_layers": 1, "pad_token_id": 0},
        },
        None,
    ),
    "mobilebert": (
        {
            **BERT,
            **{"embedding_size": 16, "intra_bottleneck_size": WIDTH},
            **{"true_hidden_size": WIDTH, "num_feedforward_networks": 1},
        },
        60,
    ),
    "nystromformer": ({**BERT, "num_landmarks": 4, "segment_means_seq_len": 4}, 60),
    "yoso": (BERT, 60),
    **{name: (T5, None) for name in ("t5", "mt5", "umt5", "longt5")},
    "t5gemma": (
        {"encoder": GEMMA, "decoder": GEMMA, "vocab_size": VOCABULARY, "pad_token_id": 0},
        60,
    ),
    **{name: (BART, 60) for name in ("bart", "mbart", "marian", "m2m_100", "pegasus")},
    "led": (
        {
            **{k: v for k, v in BART.items() if k != "max_position_embeddings"},
            **{"max_encoder_position_embeddings": 60, "attention_window": 4},
        },
        60,
    ),
    "prophetnet": (NGRAM, 60),
    "gpt2": (
        {
            **{"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4},
            "n_positions": 60,
        },
        60,
    ),
    **{name: (ROTARY, 60) for name in ("qwen2", "qwen3", "llama", "mistral")},
    "gemma3_text": (GEMMA, 60),
    "opt": (
        {
            **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "ffn_dim": 32, "max_position_embeddings": 60},
            **{"word_embed_proj_dim": WIDTH, "pad_token_id": 0},
        },
        60,
    ),
}
BYTES = ("gpt2", "qwen2", "qwen3", "llama", "mistral", "gemma3_text", "opt", "umt5")
TASKS = (AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForCausalLM, AutoModel)


def save_encoder(kind: str, directory: Path, *, bare: bool = False) -> Path:
    """A random checkpoint with a head, or without, no tensor of it at a special value."""
    config = AutoConfig.for_model(kind, **ENCODERS[kind][0])
    torch.manual_seed(0)
    model = AutoModel.from_config(config) if bare else _with_head(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "embed_positions" not in name:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(directory)
    tokenizer_of(kind, directory).save_pretrained(directory)
    return directory


def _with_head(config: PretrainedConfig) -> PreTrainedModel:
    """The model that a checkpoint on the hub usually is."""
    task = next(task for task in TASKS if type(config) in task._model_mapping)
    model: PreTrainedModel = task.from_config(config)
    return model


def tokenizer_of(kind: str, directory: Path) -> PreTrainedTokenizerBase:
    """Word pieces, characters, bytes with an end token, bytes alone, or special tokens last."""
    if kind == "canine":
        return CanineTokenizer(model_max_length=1000)
    if kind in ("t5", "mt5", "longt5"):
        return ByT5Tokenizer(model_max_length=1000)
    if kind in BYTES:
        return _bytes()
    if kind == "xlnet":
        return _special_tokens_last()
    directory.mkdir(parents=True, exist_ok=True)
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", *_letters(), *(f"##{c}" for c in _letters())]
    pieces.insert(ENCODERS[kind][0].get("pad_token_id", 0), "[PAD]")
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(vocabulary), model_max_length=1000)


def _letters() -> list[str]:
    return [*"abcdefghijklmnopqrstuvwxyz.,"]


def _bytes() -> PreTrainedTokenizerFast:
    """Bytes without special tokens and without padding, as GPT-2's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1000)


def _special_tokens_last() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<unk>": 1, "<sep>": 2, "<cls>": 3}
    vocabulary |= {letter: 4 + index for index, letter in enumerate(_letters())}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <sep> <cls>:2", special_tokens=[("<sep>", 2), ("<cls>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        sep_token="<sep>",
        cls_token="<cls>",
        padding_side="left",
        model_max_length=1000,
    )
