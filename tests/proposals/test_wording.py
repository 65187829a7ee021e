"""Names of several toolkits say the same thing."""

from __future__ import annotations

import pytest

from fusion.proposals.wording import agreement, contradictions, is_ordered, normal, read, words


@pytest.mark.parametrize(
    ("component", "found"),
    [
        ("LayerNorm", ["layer", "norm"]),
        ("self_attn_layer_norm", ["self", "attn", "layer", "norm"]),
        ("fc1", ["fc", "1"]),
        ("EncDecAttention", ["enc", "dec", "attention"]),
        ("W1", ["w", "1"]),
    ],
)
def test_words_come_apart_at_case_underscore_and_digit(component: str, found: list[str]) -> None:
    assert words(component) == found


def test_components_stay_apart() -> None:
    assert normal("layer.0/SelfAttention.q_proj") == "layer.0.self_attention.q_proj"


@pytest.mark.parametrize(
    ("block", "kind", "names"),
    [
        ("self", "q", ["self_attn.q_proj.weight", "attention.self.query.weight",
                       "layer.0.SelfAttention.q.weight", "self_attn.linear_query.weight",
                       "src_src_att.q_layer.weight", "_self_Wq",
                       "self_attention.multihead_attention.q.kernel"]),
        ("cross", "v", ["encoder_attn.v_proj.weight", "crossattention.self.value.weight",
                        "layer.1.EncDecAttention.v.weight", "context_attn.linear_values.weight",
                        "src_trg_att.v_layer.weight", "_context_Wv", "enc_attention.ff_v.weight"]),
        ("ffn", "ffn_in", ["fc1.weight", "intermediate.dense.weight", "mlp.c_fc.weight",
                           "layer.1.DenseReluDense.wi.weight", "feed_forward.w_1.weight",
                           "feed_forward.pwff_layer.0.weight", "linear1.weight", "_ffn_W1"]),
        ("ffn", "ffn_out", ["fc2.weight", "output.dense.weight", "mlp.c_proj.weight",
                            "layer.1.DenseReluDense.wo.weight", "feed_forward.w_2.weight",
                            "feed_forward.pwff_layer.3.weight", "linear2.weight", "_ffn_W2"]),
        ("self", "qkv", ["self_attn.in_proj_weight", "self_attention.qkv.weight"]),
        ("ffn", "norm", ["final_layer_norm.weight", "output.LayerNorm.gamma",
                         "feed_forward.layer_norm.weight", "_ffn_ffn_ln_scale"]),
    ],
)  # fmt: skip
def test_one_part_has_many_names(block: str, kind: str, names: list[str]) -> None:
    for name in names:
        meaning = read(name, "decoder.layers.")
        assert (meaning.block, meaning.kind, meaning.leaf) == (block, kind, "w"), name
        assert meaning.side == "dec"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("emb", ["model.shared.weight", "encoder.embed_tokens.weight", "transformer.wte.weight",
                 "embeddings.word_embeddings.weight", "src_embed.lut.weight", "encoder_Wemb"]),
        ("pos", ["encoder.embed_positions.weight", "transformer.wpe.weight",
                 "embeddings.position_embeddings.weight", "src_embed.pe"]),
        ("head", ["lm_head.weight", "generator.weight", "decoder.output_projection.weight",
                  "decoder_ff_logit_out_W"]),
        ("type", ["embeddings.token_type_embeddings.weight", "encoder.embed_segments.weight"]),
    ],
)  # fmt: skip
def test_tables_outside_of_layers_have_many_names(kind: str, names: list[str]) -> None:
    for name in names:
        assert read(name).kind == kind, name


def test_a_word_without_meaning_speaks_neither_for_nor_against() -> None:
    opaque, known = read("zz.w", "blk."), read("self_attn.q_proj.weight", "blk.")
    assert (opaque.block, opaque.kind, opaque.side) == (None, None, None)
    assert agreement(opaque, known) == pytest.approx(2.0)  # both are weights
    assert contradictions(opaque, known) == []


def test_names_of_different_parts_contradict_each_other() -> None:
    q, k = read("self_attn.q_proj.weight", "l."), read("attention.self.key.bias", "l.")
    assert contradictions(q, k) == ["q against k", "w against b"]
    assert agreement(q, k) < 0 < agreement(q, read("attention.self.query.weight", "l."))


def test_alphabetical_order_tells_nothing() -> None:
    assert not is_ordered(["a", "b", "c"])
    assert is_ordered(["a", "c", "b"])
