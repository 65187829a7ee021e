"""The families: one row each."""

from __future__ import annotations

from fusion.hosts.family import Family


def _bart_like(model_class: str) -> Family:
    return Family(
        model_class=model_class,
        sites={
            "encoder.{i}.self_attention": "model.encoder.layers.{i}.self_attn",
            "decoder.{i}.self_attention": "model.decoder.layers.{i}.self_attn",
            "decoder.{i}.cross_attention": "model.decoder.layers.{i}.encoder_attn",
        },
        rest=(None,),
    )


def _t5_like(model_class: str) -> Family:
    return Family(
        model_class=model_class,
        sites={
            "encoder.{i}.self_attention": "encoder.block.{i}.layer.0.SelfAttention",
            "decoder.{i}.self_attention": "decoder.block.{i}.layer.0.SelfAttention",
            "decoder.{i}.cross_attention": "decoder.block.{i}.layer.1.EncDecAttention",
        },
        encoder_heads="num_heads",
        decoder_heads="num_heads",
        rest=None,  # the first layer's attention also makes the position bias of all layers
    )


MARIAN = _bart_like("MarianMTModel")
BART = _bart_like("BartForConditionalGeneration")
MBART = _bart_like("MBartForConditionalGeneration")
PEGASUS = _bart_like("PegasusForConditionalGeneration")
PLBART = _bart_like("PLBartForConditionalGeneration")
M2M_100 = _bart_like("M2M100ForConditionalGeneration")
BLENDERBOT = _bart_like("BlenderbotForConditionalGeneration")
T5 = _t5_like("T5ForConditionalGeneration")
MT5 = _t5_like("MT5ForConditionalGeneration")
