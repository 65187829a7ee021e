"""How several toolkits name the parts of a Transformer, and two that say nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """How a toolkit writes names.

    Attributes:
        layer: of a layer's path, from the side; `{n}` is the number
        parts: "block.part" -> words; blocks are filled in for `{b}`
        flat: block -> words, with `{s}` for the side
        packed: words of a packed q, k, v, where the toolkit has it
        kv: words of a packed k, v, where its cross-attention has that instead
    """

    name: str
    layer: dict[str, str]
    blocks: dict[str, str]
    parts: dict[str, str]
    flat: dict[str, str]
    packed: str = ""
    kv: str = ""
    always_packed: bool = False
    leaves: tuple[str, str] = (".weight", ".bias")
    norm_leaves: tuple[str, str] | None = None
    turned: bool = False
    first: int = 0
    sides: tuple[str, str] = ("encoder", "decoder")


def _attention(q: str, k: str, v: str, o: str, **more: str) -> dict[str, str]:
    return {"q": q, "k": k, "v": v, "o": o, **more}


_FAIRSEQ_FLAT = {
    "emb": "{s}.embed_tokens", "pos": "{s}.embed_positions", "embnorm": "{s}.layernorm_embedding",
    "finalnorm": "{s}.layer_norm", "head": "decoder.output_projection", "bias": "decoder.out",
    "type": "{s}.embed_segments", "pool": "sentence_head.pooler",
}  # fmt: skip
STYLES = [
    Style(
        "fairseq", {"encoder": "encoder.layers.{n}.", "decoder": "decoder.layers.{n}."},
        {"self": "self_attn", "cross": "encoder_attn"},
        _attention(
            "{b}.q_proj", "{b}.k_proj", "{b}.v_proj", "{b}.out_proj",
            norm="{b}_layer_norm", rel="{b}.relative_attention_bias",
        ) | {"in": "fc1", "out": "fc2", "ffn.norm": "final_layer_norm"},
        _FAIRSEQ_FLAT, packed="{b}.in_proj",
    ),
    Style(
        "opennmt",
        {"encoder": "encoder.transformer.{n}.", "decoder": "decoder.transformer_layers.{n}."},
        {"self": "self_attn", "cross": "context_attn"},
        _attention(
            "{b}.linear_query", "{b}.linear_keys", "{b}.linear_values", "{b}.final_linear",
            rel="{b}.relative_positions_embeddings",
        ) | {
            "in": "feed_forward.w_1", "out": "feed_forward.w_2", "self.norm": "layer_norm_1",
            "cross.norm": "layer_norm_2", "ffn.norm": "feed_forward.layer_norm",
        },
        {
            "emb": "{s}.embeddings.make_embedding.emb_luts.0", "head": "generator.0",
            "pos": "{s}.embeddings.make_embedding.pe", "embnorm": "{s}.embeddings.layer_norm",
            "finalnorm": "{s}.layer_norm", "bias": "generator.1", "type": "{s}.embeddings.segment",
            "pool": "pooler.linear",
        },
    ),
    Style(
        "joey", {"encoder": "encoder.layers.{n}.", "decoder": "decoder.layers.{n}."},
        {"self": "trg_trg_att", "cross": "src_trg_att"},
        _attention(
            "{b}.q_layer", "{b}.k_layer", "{b}.v_layer", "{b}.output_layer", rel="{b}.rel_bias"
        ) | {
            "in": "feed_forward.pwff_layer.0", "out": "feed_forward.pwff_layer.3",
            "self.norm": "x_layer_norm", "cross.norm": "dec_layer_norm",
            "ffn.norm": "feed_forward.layer_norm",
        },
        {
            "emb": "{s}_embed.lut", "head": "decoder.output_layer", "pos": "{s}_embed.pe",
            "embnorm": "{s}_embed.norm.norm", "finalnorm": "{s}.layer_norm", "pool": "pool.linear",
            "bias": "decoder.logits", "type": "{s}_embed.segments",
        },
    ),
    Style(
        "tensor2tensor",
        {"encoder": "body/encoder/layer_{n}/", "decoder": "body/decoder/layer_{n}/"},
        {"self": "self_attention", "cross": "encdec_attention"},
        _attention(
            "{b}/multihead_attention/q", "{b}/multihead_attention/k", "{b}/multihead_attention/v",
            "{b}/multihead_attention/output_transform", rel="{b}/multihead_attention/rel_bias",
            norm="{b}/layer_prepostprocess/layer_norm",
        ) | {
            "in": "ffn/conv1", "out": "ffn/conv2",
            "ffn.norm": "ffn/layer_prepostprocess/layer_norm",
        },
        {
            "emb": "symbol_modality/{s}/emb", "head": "symbol_modality/softmax",
            "pos": "body/{s}/positional_embedding", "embnorm": "body/{s}/embedding_layer_norm",
            "finalnorm": "body/{s}/layer_prepostprocess/layer_norm", "bias": "symbol_modality/out",
            "type": "symbol_modality/{s}/segment_embedding", "pool": "pooler/dense",
        },
        leaves=("/kernel", "/bias"), norm_leaves=("/layer_norm_scale", "/layer_norm_bias"),
        turned=True,
    ),
    Style(
        "torch", {"encoder": "encoder.layers.{n}.", "decoder": "decoder.layers.{n}."},
        {"self": "self_attn", "cross": "multihead_attn"},
        _attention(
            "{b}.q_proj", "{b}.k_proj", "{b}.v_proj", "{b}.out_proj", rel="{b}.relative_bias"
        ) | {
            "in": "linear1", "out": "linear2", "self.norm": "norm1", "cross.norm": "norm2",
            "ffn.norm": "norm3",
        },
        {
            "emb": "{s}_tok_emb.embedding", "head": "generator", "pos": "{s}_positional_encoding",
            "embnorm": "{s}_emb_norm", "finalnorm": "{s}.norm", "bias": "generator_out",
            "type": "{s}_type_embedding", "pool": "pooler",
        },
        packed="{b}.in_proj", always_packed=True,
    ),
    Style(
        "sockeye", {"encoder": "encoder.layers.{n}.", "decoder": "decoder.layers.{n}."},
        {"self": "self_attention", "cross": "enc_attention"},
        _attention(
            "{b}.ff_q", "{b}.ff_k", "{b}.ff_v", "{b}.ff_out", norm="pre_{b}.layer_norm",
            rel="{b}.relative_bias",
        ) | {"in": "ff.ff1", "out": "ff.ff2", "ffn.norm": "pre_ff.layer_norm"},
        {
            "emb": "embedding_{s}.embedding", "head": "output_layer", "bias": "output_layer_out",
            "pos": "{s}.pos_embedding", "embnorm": "embedding_{s}.layer_norm",
            "finalnorm": "{s}.final_process.layer_norm", "type": "{s}.segment_embedding",
            "pool": "pooler.linear",
        },
        packed="{b}.ff_in", kv="{b}.ff_kv", always_packed=True,
    ),
    Style(
        "ctranslate2", {"encoder": "encoder/layer_{n}/", "decoder": "decoder/layer_{n}/"},
        {"self": "self_attention", "cross": "attention"},
        _attention(
            "{b}/linear_0", "{b}/linear_k", "{b}/linear_v", "{b}/linear_2",
            norm="{b}/layer_norm", rel="{b}/relative_attention_bias",
        ) | {
            "self.o": "{b}/linear_1", "in": "ffn/linear_0", "out": "ffn/linear_1",
            "ffn.norm": "ffn/layer_norm",
        },
        {
            "emb": "{s}/embeddings_0", "head": "decoder/projection", "bias": "decoder/proj_out",
            "pos": "{s}/position_encodings/encodings", "embnorm": "{s}/layernorm_embedding",
            "finalnorm": "{s}/layer_norm", "type": "{s}/token_type_embeddings",
            "pool": "pooler_dense",
        },
        packed="{b}/linear_0", kv="{b}/linear_1", always_packed=True,
        leaves=("/weight", "/bias"), norm_leaves=("/gamma", "/beta"),
    ),
    Style(
        "bert", {"encoder": "bert.encoder.layer.{n}.", "decoder": "bert.decoder.layer.{n}."},
        {"self": "attention", "cross": "crossattention"},
        _attention(
            "{b}.self.query", "{b}.self.key", "{b}.self.value", "{b}.output.dense",
            norm="{b}.output.LayerNorm", rel="{b}.self.relative_attention_bias",
        ) | {"in": "intermediate.dense", "out": "output.dense", "ffn.norm": "output.LayerNorm"},
        {
            "emb": "bert.{s}.embeddings.word_embeddings", "head": "cls.predictions.decoder",
            "pos": "bert.{s}.embeddings.position_embeddings", "pool": "bert.pooler.dense",
            "embnorm": "bert.{s}.embeddings.LayerNorm", "finalnorm": "bert.{s}.final_norm",
            "bias": "cls.predictions", "type": "bert.{s}.embeddings.token_type_embeddings",
        },
        norm_leaves=(".gamma", ".beta"),
    ),
    Style(
        "t5", {"encoder": "encoder.block.{n}.", "decoder": "decoder.block.{n}."},
        {"self": "layer.0.SelfAttention", "cross": "layer.1.EncDecAttention"},
        _attention("{b}.q", "{b}.k", "{b}.v", "{b}.o", rel="{b}.relative_attention_bias") | {
            "in": "layer.2.DenseReluDense.wi", "out": "layer.2.DenseReluDense.wo",
            "self.norm": "layer.0.layer_norm", "cross.norm": "layer.1.layer_norm",
            "ffn.norm": "layer.2.layer_norm",
        },
        {
            "emb": "{s}.embed_tokens", "head": "lm_head", "pos": "{s}.position_embedding",
            "embnorm": "{s}.embedding_layer_norm", "finalnorm": "{s}.final_layer_norm",
            "bias": "lm_head_out", "type": "{s}.token_type_embedding", "pool": "pooler.dense",
        },
    ),
    Style(
        "marian", {"encoder": "encoder_l{n}_", "decoder": "decoder_l{n}_"},
        {"self": "self", "cross": "context"},
        _attention("{b}_?q", "{b}_?k", "{b}_?v", "{b}_?o", norm="{b}_Wo_ln", rel="{b}_rel_bias")
        | {"in": "ffn_?1", "out": "ffn_?2", "ffn.norm": "ffn_ffn_ln"},
        {
            "emb": "{s}_Wemb", "head": "decoder_ff_logit_out", "pos": "{s}_Wpos",
            "embnorm": "{s}_emb_ln", "finalnorm": "{s}_top_ln", "bias": "decoder_ff_logit",
            "type": "{s}_Wtype", "pool": "pooler_ff",
        },
        leaves=("W", "b"), norm_leaves=("_ln_scale", "_ln_bias"), turned=True, first=1,
    ),
    Style(
        "opaque parts", {"encoder": "enc.blk{n}.", "decoder": "dec.blk{n}."},
        {"self": "att_a", "cross": "att_b"},
        _attention("{b}.m1", "{b}.m2", "{b}.m3", "{b}.m4", norm="{b}.s", rel="{b}.r")
        | {"in": "ff_a", "out": "ff_b", "ffn.norm": "ff_s"},
        {
            "emb": "{s}.table", "head": "last.table", "pos": "{s}.where", "embnorm": "{s}.s0",
            "finalnorm": "{s}.s1", "bias": "last.b", "type": "{s}.what", "pool": "top",
        },
        leaves=(".w", ".b"), sides=("enc", "dec"),
    ),
    Style(
        "opaque", {"encoder": "blk.{n}.", "decoder": "blks.{n}."},
        {"self": "x", "cross": "y"},
        _attention("{b}a", "{b}b", "{b}c", "{b}d", norm="{b}e", rel="{b}f")
        | {"in": "za", "out": "zb", "ffn.norm": "zc"},
        {
            "emb": "t{s}.a", "head": "u.a", "pos": "t{s}.b", "embnorm": "t{s}.c",
            "finalnorm": "t{s}.d", "bias": "u.b", "type": "t{s}.e", "pool": "u.c",
        },
        leaves=(".p0", ".p1"), sides=("0", "1"),
    ),
]  # fmt: skip
