"""CausalFusedModel: a decoder-only language model as host; it translates by a prompt."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import Seq2SeqLMOutput

from fusion.errors import FusionError
from fusion.model import FusedModel
from fusion.placement import Memories

IGNORED = -100


class CausalFusedModel(FusedModel):
    """A causal language model that reads encoders' memory through glue in its sites.

    The source is a prompt (`host.prompt` in the recipe); the translation goes on from it. Inputs
    are named and shaped as those of a seq2seq host, so that everything around the model is the
    same: `input_ids` `[B, T]` is the prompt, `labels` `[B, U]` the translation with its end mark,
    and the logits `[B, U, V]` are those of the translation alone. Padding on the right is moved to
    the left, and positions are counted over real tokens.

    Source: Bansal et al. 2024 (CALM, arXiv:2401.02412) and Yoon et al. 2024 (LangBridge,
        arXiv:2401.10695) for glue in such a host
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """The host's logits of the translation `[B, U, V]`; without one, of the prompt `[B, T, V]`.

        Args:
            decoder_input_ids: the translation `[B, U]`, not shifted, any id at padding
        """
        if input_ids is None:
            raise FusionError("input_ids is missing: encode the source text with FusionProcessor")
        inputs, rest = self.split_inputs(kwargs)
        if self.training:
            self.draw()
        memories = self.memories(inputs, attention_mask)
        self.show(memories)
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        ids, mask = left_padded(input_ids, attention_mask)
        wanted = ids.shape[1]
        if decoder_input_ids is not None:
            before = decoder_input_ids[:, :-1]
            ids = torch.cat([ids, before], dim=1)
            mask = torch.cat([mask, torch.ones_like(before)], dim=1)
            wanted = decoder_input_ids.shape[1]
        states, mask = self._embedded(ids, mask, memories)
        output = self.host(
            inputs_embeds=states, attention_mask=mask, position_ids=positions(mask), **rest
        )
        logits = output.logits[:, -wanted:]
        loss = None
        if labels is not None:
            flat = logits.float().flatten(0, 1)
            loss = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED)
            loss = self.with_penalties(loss)
        return Seq2SeqLMOutput(loss=loss, logits=logits)

    def _embedded(self, ids: Tensor, mask: Tensor, memories: Memories) -> tuple[Tensor, Tensor]:
        """Token embeddings `[B, P + T, D]`, behind what prefix glue puts there, and their mask."""
        states: Tensor = self.get_input_embeddings()(ids)
        sequence = self.placement.sequence
        if sequence is None or sequence.memory is None:
            return states, mask
        memory = memories[sequence.memory]
        prefixed = sequence.module(states, lambda: states, memory)
        return prefixed, sequence.module.mask_of(mask.bool(), memory).to(mask.dtype)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Translations `[B, U]`, as the host generates them; the prompt is not repeated.

        Args:
            kwargs: the encoders' inputs, and settings of transformers' `generate`; `max_length`
                counts the translation's tokens, as for a seq2seq host
        """
        inputs, rest = self.split_inputs(kwargs)
        rest.pop("labels", None)
        memories = self.memories(inputs, attention_mask)
        for memory in memories.values():
            memory.reusable = True
        self.show(memories)
        ids, mask = left_padded(input_ids, attention_mask)
        states, mask = self._embedded(ids, mask, memories)
        settings = copy.deepcopy(rest.pop("generation_config", None) or self.generation_config)
        others = settings.update(**rest)
        if settings.max_new_tokens is None:
            settings.max_new_tokens = settings.max_length
        settings.max_length = None
        found: Tensor = self.host.generate(
            inputs_embeds=states, attention_mask=mask, generation_config=settings, **others
        )
        return found

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The translation as it is `[B, U]`: `forward` shifts it behind the prompt."""
        return labels.masked_fill(labels == IGNORED, self.config.pad_token_id or 0)


def left_padded(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows with their padding moved from the right to the left. Shapes: `[B, T]`, `[B, T]`."""
    if mask is None:
        return ids, torch.ones_like(ids)
    missing = ids.shape[1] - mask.sum(dim=1, keepdim=True)
    order = (torch.arange(ids.shape[1], device=ids.device)[None, :] - missing) % ids.shape[1]
    return ids.gather(1, order), mask.gather(1, order)


def positions(mask: Tensor) -> Tensor:
    """The number of each real token in its row `[B, T]`; 0 at padding on the left."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
