"""Decoder-only families: one row each. The source is their prompt; all sites are the decoder's."""

from __future__ import annotations

from dataclasses import replace

from fusion.hosts.family import Family, Norm
from fusion.hosts.site import At


def _causal(
    model_class: str,
    layers: str,
    embeddings: str,
    *,
    attention: str = "self_attn",
    feed_forward: str = "mlp",
    norm: Norm = "pre",
) -> Family:
    base = layers.rpartition(".")[0]
    layer = f"{layers}.{{i}}"
    return Family(
        model_class=model_class,
        sites={
            "decoder.{i}.self_attention": f"{layer}.{attention}",
            "decoder.{i}.feed_forward": At(f"{layer}.{feed_forward}"),
            "decoder.embeddings": At(embeddings, x="output"),
            "decoder.{i}.output": At(layer, x="output"),
            "decoder.output": At(base, x="output"),
        },
        encoder_heads="num_attention_heads",
        decoder_heads="num_attention_heads",
        eps=("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
        norm=norm,
        causal=True,
        rest=(None,),
    )


def _llama_like(model_class: str, norm: Norm = "pre") -> Family:
    return _causal(model_class, "model.layers", "model.embed_tokens", norm=norm)


LLAMA = _llama_like("LlamaForCausalLM")
MISTRAL = _llama_like("MistralForCausalLM")
QWEN2 = _llama_like("Qwen2ForCausalLM")
QWEN3 = _llama_like("Qwen3ForCausalLM")
GEMMA = _llama_like("GemmaForCausalLM")
GEMMA2 = _llama_like("Gemma2ForCausalLM", "both")
GEMMA3_TEXT = _llama_like("Gemma3ForCausalLM", "both")
PHI3 = _llama_like("Phi3ForCausalLM")
OLMO2 = _llama_like("Olmo2ForCausalLM", "post")
SMOLLM3 = _llama_like("SmolLM3ForCausalLM")
GRANITE = _llama_like("GraniteForCausalLM")
GPT2 = _causal("GPT2LMHeadModel", "transformer.h", "transformer.wte", attention="attn")
GPT_NEOX = _causal(
    "GPTNeoXForCausalLM", "gpt_neox.layers", "gpt_neox.embed_in", attention="attention"
)
_opt = _causal("OPTForCausalLM", "model.decoder.layers", "model.decoder.embed_tokens")
# its feed-forward is given [B * T, D], which no glue reads
OPT = replace(_opt, sites={k: v for k, v in _opt.sites.items() if "feed_forward" not in k})
