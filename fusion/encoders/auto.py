"""Any text encoder that transformers' AutoModel builds."""

from __future__ import annotations

from transformers import AutoModel, PretrainedConfig, PreTrainedModel


def build_auto_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """The bare encoder of a config, without the pooler, which a memory does not read."""
    model: PreTrainedModel = AutoModel.from_config(config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


# Source tensors that every encoder leaves out, with the reason.
LEFT_OUT = {
    "pooler.{rest*}": "the memory is token states; the pooler is not built",
    "embeddings.position_ids": "computed by the constructor since transformers 4.31",
}


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input in tokens that the encoder's position table allows; None: no table.

    RoBERTa and its kin start counting after the padding index, so their table is larger than their
    limit.
    """
    size = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(size, int) or size <= 0:
        return None
    embeddings = getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return size - padding - 1 if isinstance(padding, int) else size
