"""Tiny real parts, made on the spot: configs of a few units, random weights, letter tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertTokenizerFast,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

VOCABULARY = 110
PAD, END, START = 0, 3, 2  # [PAD], [SEP], [CLS]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz.,"]
WORDS = ["a", "cat", "dog", "house", "near", "old", "reads", "sees", "sleeps", "small", "the"]

# What the configs of transformers call their sizes. A config is given those that it knows.
_SIZES: dict[str, Any] = {
    **{name: VOCABULARY for name in ("vocab_size", "src_vocab_size", "tgt_vocab_size")},
    **{name: 2 for name in ("num_hidden_layers", "n_layers", "n_layer", "num_layers")},
    **{name: 2 for name in ("encoder_layers", "num_encoder_layers")},
    **{name: 2 for name in ("decoder_layers", "num_decoder_layers")},
    **{name: 4 for name in ("num_attention_heads", "n_heads", "n_head", "num_heads")},
    **{name: 4 for name in ("encoder_attention_heads", "decoder_attention_heads")},
    **{name: 2 for name in ("num_key_value_heads", "n_groups")},
    **{name: 32 for name in ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")},
    **{name: 32 for name in ("ffn_dim", "d_ff", "d_inner", "hidden_dim", "n_inner")},
    **{name: 64 for name in ("max_position_embeddings", "n_positions")},
    **{name: 64 for name in ("max_encoder_position_embeddings", "max_decoder_position_embeddings")},
    **{"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": START},
    **{"decoder_start_token_id": START, "pad_index": PAD, "forced_eos_token_id": None},
}
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size")
_HEAD_WIDTHS = ("head_dim", "d_kv", "d_head")


def tiny_config(
    config_class: type[PretrainedConfig], width: int = 24, **options: Any
) -> PretrainedConfig:
    """A config of 2 layers and 4 heads, by the names that configs of transformers usually have.

    Args:
        options: what the config must have beside or instead
    """
    wanted = _SIZES | dict.fromkeys(_WIDTHS, width) | dict.fromkeys(_HEAD_WIDTHS, width // 4)
    wanted["word_embed_proj_dim"] = width
    try:
        known = {*config_class().to_dict(), *config_class.attribute_map}
    except ValueError:  # a composed config is nothing without its parts
        known = set()
    aliases = set(config_class.attribute_map.values()) & wanted.keys()
    sizes = {
        key: value
        for key, value in wanted.items()
        if key in known and config_class.attribute_map.get(key) not in aliases
    }
    return config_class(**sizes | options)


def randomise(model: nn.Module, scale: float = 0.1) -> None:
    """Move every trainable tensor away from the special values that models start with."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.dtype), alpha=scale)


def letter_tokenizer(
    folder: Path, *, pad: int = PAD, words: bool = False
) -> PreTrainedTokenizerBase:
    """Word pieces that spell any word in small letters; with `words`, a few are whole.

    Args:
        folder: where its vocabulary is written
        pad: the id of [PAD]
    """
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    pieces.insert(pad, "[PAD]")
    if words:
        pieces += [word for word in WORDS if word not in pieces]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return BertTokenizerFast(
        vocab=str(folder / "vocab.txt"), model_max_length=1000, eos_token="[SEP]"
    )


def save_part(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A plain transformers directory of a model and its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if model.can_generate():
        ids = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": START}
        GenerationConfig(**ids).save_pretrained(folder)
    return folder
