"""A sentence's memory is its own, for encoder types that no code of ours names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from fusion.composition import Composition, compose
from fusion.errors import DataError, RecipeError

BERT_LIKE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
DISTIL = {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "sinusoidal_pos_embds": False}
KINDS = {
    "bert": ("BertModel", BERT_LIKE | {"max_position_embeddings": 20}),
    "distilbert": ("DistilBertModel", DISTIL | {"max_position_embeddings": 20}),
    # RoBERTa counts positions from the padding index + 1, so 20 positions need a table of 22
    "roberta": ("RobertaModel", BERT_LIKE | {"pad": 1, "max_position_embeddings": 22}),
    "electra": (
        "ElectraModel",
        BERT_LIKE | {"embedding_size": 16, "max_position_embeddings": 20},
    ),
    "deberta-v2": (
        "DebertaV2Model",
        BERT_LIKE | {"max_position_embeddings": 20, "position_biased_input": True},
    ),
}


@pytest.fixture
def composed(make_recipe: Any, make_encoder: Any) -> Any:
    def make(kind: str, **settings: Any) -> tuple[Composition, Path]:
        model_class, options = KINDS[kind]
        directory = make_encoder(model_class, model_max_length=1000, **options)
        encoders = {"bert": {"source": str(directory)} | settings}
        return compose(make_recipe(encoders=encoders)), directory

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, 1, "mix"])
def test_a_sentence_has_the_same_memory_alone_and_beside_longer_ones(
    composed: Any, sentences: list[str], kind: str, layer: Any
) -> None:
    composition, _ = composed(kind, layer=layer)
    model, processor = composition.model, composition.processor
    with torch.no_grad():
        together = model.memories(processor(sentences))["bert"]
        for index, sentence in enumerate(sentences):
            alone = model.memories(processor([sentence]))["bert"]
            length = alone.states.shape[1]
            assert alone.mask is None
            assert together.mask[index].sum() == length
            found = together.states[index, :length]
            assert torch.allclose(found, alone.states[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_is_what_plain_transformers_computes(
    composed: Any, sentences: list[str], kind: str
) -> None:
    composition, directory = composed(kind)
    plain = AutoModel.from_pretrained(directory).eval()
    batch = composition.processor(sentences)
    with torch.no_grad():
        expected = plain(
            input_ids=batch["bert_input_ids"], attention_mask=batch["bert_attention_mask"]
        ).last_hidden_state
        found = composition.model.memories(batch)["bert"].states
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_position_of_an_encoder_can_be_used_and_one_more_is_an_error(
    composed: Any, kind: str
) -> None:
    composition, _ = composed(kind)
    assert composition.processor.encoders["bert"].limit == 20
    batch = composition.processor([" ".join(["cat"] * 18)])
    assert batch["bert_input_ids"].shape == (1, 20)
    with torch.no_grad():
        assert composition.model.memories(batch)["bert"].states.shape == (1, 20, 24)
    with pytest.raises(DataError, match="21 tokens for encoder bert, which reads 20"):
        composition.processor([" ".join(["cat"] * 19)])


@pytest.mark.parametrize("kind", KINDS)
def test_any_encoder_generates_trains_and_is_read_back(
    composed: Any, open_glue: Any, sentences: list[str], tmp_path: Path, kind: str
) -> None:
    from fusion.model import FusedModel

    composition, _ = composed(kind, overflow="windows")
    model = open_glue(composition.model)
    batch = composition.processor(
        [*sentences, " ".join(["cat"] * 30)], ["ein", "Hund", "schläft", "."]
    )
    model.save_pretrained(tmp_path / "model")
    again = FusedModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert model.generate(**composition.processor(sentences), num_beams=2).shape[0] == 3
    model.train()
    model(**batch).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.glue.parameters())


def test_a_limit_beyond_the_encoders_positions_is_refused(composed: Any) -> None:
    with pytest.raises(RecipeError, match=r"bert\.max_length: the encoder has 20 .*found 22"):
        composed("roberta", max_length=22)


def test_a_tokenizers_smaller_limit_is_the_encoders(make_recipe: Any, make_encoder: Any) -> None:
    model_class, options = KINDS["bert"]
    directory = make_encoder(model_class, model_max_length=12, **options)
    composition = compose(make_recipe(encoders={"bert": {"source": str(directory)}}))
    assert composition.processor.encoders["bert"].limit == 12
    assert composition.model.encoders["bert"].limit == 12
    assert composition.model.config.encoders["bert"]["limit"] == 12
