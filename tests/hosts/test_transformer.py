"""The toolkits' Transformer as a host: padding, positions, norms, training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from fusion.errors import ShapeError
from fusion.hosts.family import family_of
from fusion.hosts.transformer import TransformerForTranslation
from fusion.hosts.transformer_config import TransformerConfig
from fusion.hosts.transformer_positions import sinusoids

TINY = {
    **{"vocab_size": 30, "d_model": 16, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0},
    **{"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    **{"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
    **{"max_position_embeddings": 20, "position_offset": 2, "decoder_start_token_id": 2},
    **{"forced_eos_token_id": None},
}


def tiny(**changed: Any) -> TransformerForTranslation:
    torch.manual_seed(1)
    return TransformerForTranslation(TransformerConfig(**(TINY | changed))).eval()


def logits(host: TransformerForTranslation, source: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        output = host(
            input_ids=source, attention_mask=(source != 1).long(), decoder_input_ids=target
        )
    return output.logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("learned", [False, True])
def test_padding_on_the_left_or_the_right_changes_no_sentence(learned: bool) -> None:
    host = tiny(encoder_learned_positions=learned, decoder_learned_positions=learned)
    words, target = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[2, 8, 9]])
    pads = torch.ones(1, 3, dtype=torch.long)
    alone = logits(host, words, target)
    for sides in ([pads, words], [words, pads], [pads, words, pads]):
        assert (logits(host, torch.cat(sides, 1), target) - alone).abs().max() < 1e-6


@pytest.mark.parametrize(("before", "norm"), [(True, "pre"), (False, "post")])
def test_a_site_says_where_its_norm_is(before: bool, norm: str) -> None:
    host = tiny(encoder_normalize_before=before, decoder_normalize_before=not before)
    name, family = family_of(host.config)
    assert name == "fusion_transformer"
    other = {"pre": "post", "post": "pre"}[norm]
    assert family.norm_at(host.config, "encoder.0.self_attention") == norm
    assert family.norm_at(host.config, "decoder.0.cross_attention") == other


def test_the_family_builds_from_a_recipes_options_and_has_every_site() -> None:
    _, family = family_of(TransformerConfig())
    host = family.build(family.new_config(TINY))
    assert isinstance(host, TransformerForTranslation)
    sites = family.find_sites(host)
    for site in ("encoder.1.self_attention", "decoder.0.cross_attention", "decoder.1.feed_forward"):
        assert site in sites


def test_the_config_comes_back_by_its_model_type() -> None:
    config = tiny(position_layout="halves").config
    again = AutoConfig.for_model(**config.to_dict())
    assert isinstance(again, TransformerConfig) and again.position_layout == "halves"


@pytest.mark.parametrize("learned", [False, True])
def test_only_learned_positions_are_trained(learned: bool) -> None:
    host = tiny(encoder_learned_positions=learned, decoder_learned_positions=learned).train()
    source, labels = torch.tensor([[5, 6, 2]]), torch.tensor([[7, 8, 2]])
    host(input_ids=source, labels=labels).loss.backward()
    table = host.model.encoder.embed_positions.weight
    assert table.requires_grad == learned and (table.grad is not None) == learned
    missing = [n for n, p in host.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_beams_with_a_cache_score_what_the_full_pass_does() -> None:
    host = tiny(decoder_normalize_before=True, decoder_final_norm=True)
    source = torch.tensor([[1, 1, 5, 6, 2], [7, 8, 9, 10, 2]])
    made = host.generate(
        input_ids=source, attention_mask=(source != 1).long(), num_beams=3, max_new_tokens=6,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    for row, score in enumerate(made.sequences_scores):
        ids = made.sequences[row : row + 1]
        ids = ids[:, : 1 + int((ids[0, 1:] != 1).sum())]
        table = logits(host, source[row : row + 1], ids[:, :-1]).log_softmax(-1)
        total = table.gather(2, ids[:, 1:, None]).sum()
        assert abs(float(total - score)) < 1e-4


@pytest.mark.parametrize(
    ("layout", "width"), [("spiral", 16), ("halves", 15), ("tensor2tensor", 2)]
)
def test_a_layout_or_width_without_a_table_is_an_error(layout: str, width: int) -> None:
    with pytest.raises(ShapeError, match=f'position_layout "?{layout}'):
        sinusoids(4, width, layout)
