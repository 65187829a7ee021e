"""What a class computes is made faster than it makes it, and bit for bit the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MarianConfig, MarianMTModel, PegasusConfig, PegasusForConditionalGeneration
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding

from fusion.computed import computing, half_sines

SIZES = {
    "d_model": 24,
    "vocab_size": 20,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 37,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


@pytest.mark.parametrize("table", [(512, 512), (1024, 256), (7, 33)])
@pytest.mark.parametrize(
    "embedding", [MarianSinusoidalPositionalEmbedding, RoFormerSinusoidalPositionalEmbedding]
)
def test_sinusoids_are_the_bits_of_the_class(embedding: Any, table: tuple[int, int]) -> None:
    assert torch.equal(half_sines(*table), embedding(*table).create_weight())


@pytest.mark.parametrize(
    ("config", "model_class"),
    [(MarianConfig, MarianMTModel), (PegasusConfig, PegasusForConditionalGeneration)],
)
def test_tables_of_encoder_and_decoder_are_filled(config: Any, model_class: Any) -> None:
    model = model_class(config(**SIZES))
    tables = [m for m in model.modules() if hasattr(m, "create_weight")]
    expected = [table.weight.clone() for table in tables]
    fill = computing(model)
    with torch.no_grad():
        for table in tables:
            table.weight.zero_()
            fill(table)
    assert len(tables) == 2
    assert all(torch.equal(t.weight, e) for t, e in zip(tables, expected, strict=True))


class Shifted(MarianSinusoidalPositionalEmbedding):
    """A class whose table is another one."""

    def create_weight(self) -> torch.Tensor:
        return super().create_weight() + 1


def test_a_class_with_another_table_makes_its_own() -> None:
    model = MarianMTModel(MarianConfig(**SIZES))
    module = model.model.encoder.embed_positions = Shifted(37, 24)
    with torch.no_grad():
        computing(model)(module)
    assert torch.equal(module.weight, module.create_weight())


class Longer(MarianSinusoidalPositionalEmbedding):
    """A class that needs another argument, with the table of its parent."""

    def __init__(self, rows: int, width: int, *, more: int) -> None:
        super().__init__(rows + more, width)


@pytest.mark.parametrize("more", [0, 2])
def test_a_class_with_other_arguments_is_filled_too(more: int) -> None:
    model = MarianMTModel(MarianConfig(**SIZES))
    module = Longer(37, 24, more=more)
    with torch.no_grad():
        module.weight.zero_()
        computing(model)(module)
    assert module.weight.shape == (37 + more, 24)
    assert torch.equal(module.weight, half_sines(37 + more, 24))
