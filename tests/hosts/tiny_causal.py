"""A tiny decoder-only host of every family."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from fusion.registry import HOSTS

CAUSAL = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("olmo2", "smollm3", "granite", "gpt2", "gpt_neox", "opt"),
]
VOCABULARY = 60
_SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    **{"ffn_dim": 48, "word_embed_proj_dim": 32, "query_pre_attn_scalar": 8},
}


def tiny_config(name: str) -> PretrainedConfig:
    """A config of width 32 with 3 layers and 4 heads."""
    config_class = HOSTS.get(name).architecture.config_class
    known = {*config_class().to_dict(), *config_class.attribute_map}
    return config_class(**{key: value for key, value in _SIZES.items() if key in known})


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts of 7, 5 and 3 tokens padded on the right, their mask, and translations of 4."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 3:] = 0
    return ids, mask, torch.randint(3, VOCABULARY, (3, 4), generator=generator)
