"""A fused model as it is usually written today; the baseline of `train_speed`.

Host and encoder are transformers' own classes, loaded with `load_state_dict(strict=False)`. The
encoder runs in every step under `no_grad`, in its own padding; each layer has an
`nn.MultiheadAttention` of its own to the memory, and its output and the layer's are averaged. No
step, cast or projection is shared, and nothing is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, MarianMTModel


class WithMemory(nn.Module):
    """A host's attention, averaged with attention to the memory that was last encoded."""

    def __init__(self, attention: nn.Module, owner: Straightforward, width: int, heads: int):
        super().__init__()
        memory_width = owner.encoder.config.hidden_size
        self.attention = attention
        self.read = nn.MultiheadAttention(
            width, heads, kdim=memory_width, vdim=memory_width, batch_first=True
        )
        self.__dict__["owner"] = owner

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        own, *rest = self.attention(hidden_states, *args, **kwargs)
        memory, padding = self.__dict__["owner"].memory
        read, _ = self.read(hidden_states, memory, memory, key_padding_mask=padding)
        return (0.5 * (own + read), *rest)


class Straightforward(nn.Module):
    """Host, encoder and attention to memory in every layer."""

    def __init__(self, host: Path, encoder: Path) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(host, attn_implementation="eager")
        self.host = MarianMTModel(config)
        self.host.load_state_dict(load_file(host / "model.safetensors"), strict=False)
        self.encoder = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
        self.memory: tuple[Tensor, Tensor] | None = None
        width, parts = config.d_model, self.host.model
        for layer in parts.encoder.layers:
            heads = config.encoder_attention_heads
            layer.self_attn = WithMemory(layer.self_attn, self, width, heads)
        for layer in parts.decoder.layers:
            heads = config.decoder_attention_heads
            layer.encoder_attn = WithMemory(layer.encoder_attn, self, width, heads)
        self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Straightforward:
        """As usual; the encoder's dropout stays off."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, batch: dict[str, Tensor], decoder_input_ids: Tensor) -> Tensor:
        mask = batch["bert_attention_mask"]
        with torch.no_grad():
            states = self.encoder(batch["bert_input_ids"], attention_mask=mask).last_hidden_state
        self.memory = states, mask == 0
        logits: Tensor = self.host(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits
        return logits
