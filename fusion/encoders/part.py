"""A pretrained encoder as a part of the model: frozen in full, one memory per sentence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fusion.encoders.auto import memory_config
from fusion.errors import ShapeError
from fusion.memory import Memory


class EncoderPart(nn.Module):
    """Runs a pretrained encoder and picks its memory.

    Frozen means: no gradient, eval mode that survives `.train()`, nothing for the optimizer.

    Args:
        model: any transformers encoder with `last_hidden_state` / `hidden_states`
        layer: hidden layer (0 = embeddings, -1 = last), or "mix" or "all": all, stacked
        freeze: see above
        dropout: keep a frozen encoder's dropout on in training (as the BERT-fused paper's code did)
        limit: longest input in tokens; a longer one was cut into windows of exactly this length
            (the last one shorter), which are encoded one by one

    Shapes: ids `[B, S]`, mask `[B, S]` -> states `[B, S, M]`, or `[L, B, S, M]` for "mix" and "all"
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        layer: int | Literal["mix", "all"],
        freeze: bool,
        dropout: bool,
        limit: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.freeze = freeze
        self.dropout = dropout
        self.limit = limit
        self.glued = False  # glue inside it is trained, so gradients pass even where it is frozen
        if freeze:
            model.requires_grad_(False)
            model.eval()

    @property
    def config(self) -> PretrainedConfig:
        """The encoder's own config."""
        return self.model.config

    @property
    def text_config(self) -> PretrainedConfig:
        """The part of its config that describes the text encoder."""
        return memory_config(self.config)

    @property
    def stacked(self) -> bool:
        """Whether it gives all its hidden states."""
        return self.layer in ("mix", "all")

    @property
    def layers(self) -> int:
        """Its hidden states: the embeddings and every layer."""
        return int(self.text_config.num_hidden_layers) + 1

    @property
    def width(self) -> int:
        """M, the memory's width."""
        return int(self.text_config.hidden_size)

    def train(self, mode: bool = True) -> EncoderPart:
        """As `nn.Module.train`, but a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.freeze:
            self.model.train(mode and self.dropout)
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Memory:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.glued or not self.freeze)):
            states = self._windows(input_ids, attention_mask)
        if states.shape[-1] != self.width:
            raise ShapeError(
                f"encoder {self.config.model_type}: its memory is {states.shape[-1]} wide, and its "
                f"config says hidden_size {self.width}; such an encoder needs a builder of its own"
            )
        mask = attention_mask.bool()
        return Memory(states, None if bool(mask.all()) else mask)

    def _windows(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode windows of `limit` positions; windows that are all padding are left at zero."""
        if ids.shape[1] <= self.limit:
            return self._encode(ids, mask)
        parts = []
        for start in range(0, ids.shape[1], self.limit):
            window, window_mask = (
                ids[:, start : start + self.limit],
                mask[:, start : start + self.limit],
            )
            rows = window_mask.any(dim=1)
            encoded = self._encode(window[rows], window_mask[rows])
            batch = encoded.dim() - 3
            shape = [*encoded.shape[:batch], ids.shape[0], *encoded.shape[batch + 1 :]]
            full = encoded.new_zeros(shape)
            full[..., rows, :, :] = encoded
            parts.append(full)
        return torch.cat(parts, dim=-2)

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        every = self.layer != -1
        output = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=every)
        if self.stacked:
            return torch.stack(output.hidden_states)
        states: Tensor = output.hidden_states[self.layer] if every else output.last_hidden_state
        return states
