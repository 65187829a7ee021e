"""Files of bert-nmt by their documented layout, with a plain reference of their model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints.fairseq_layout import options, pack, reference, save, state
from checkpoints.foreign_models import Shape, State, random_weights
from transformers import BertConfig, BertModel

SHAPE = Shape()
CASES: dict[str, dict[str, Any]] = {
    "BERT as wide as the host": {"bert": 16},
    "BERT wider": {"bert": 24},
    "BERT narrower": {"bert": 8},
    "split, wide": {"bert": 16, "layout": "split"},
    "split, wider": {"bert": 24, "layout": "split"},
    "pre-norm": {"bert": 24, "pre": True},
    "drop-net": {"bert": 24, "told": {"encoder_bert_dropout": True}, "ratios": (0.5, 0.5)},
    "ratios": {
        **{"bert": 16, "ratios": (0.5, 0.25)},
        "told": {"encoder_ratio": 0.5, "bert_ratio": 0.25},
    },
    "gates": {"bert": 24, "told": {"bert_gates": [0, 1]}, "shut": ["encoder.0", "decoder.0"]},
    "no BERT in the decoder": {"bert": 24, "told": {"decoder_no_bert": True}, "sides": ["encoder"]},
}


def fused_weights(case: dict[str, Any], shape: Shape) -> tuple[State, State]:
    """The reference's weights, and fairseq's names for those of BERT's attention."""
    made: State = {}
    named: State = {}
    torch.manual_seed(11)
    width, bert = shape.width, case["bert"]
    for side in case.get("sides", ["encoder", "decoder"]):
        for i in range(shape.encoder_layers if side == "encoder" else shape.decoder_layers):
            for letter in "qkvo":
                columns = bert if letter in "kv" else width
                weight = torch.randn(width, columns, dtype=torch.float64) * columns**-0.5
                bias = torch.randn(width, dtype=torch.float64) * 0.3
                made |= {
                    f"{side}.{i}.bert.{letter}.weight": weight,
                    f"{side}.{i}.bert.{letter}.bias": bias,
                }
                there = f"{side}.layers.{i}.bert_attn.{'out' if letter == 'o' else letter}_proj"
                named |= {f"{there}.weight": weight, f"{there}.bias": bias}
    return made, named


def layout_of(split: State, case: dict[str, Any]) -> State:
    """BERT's attention as the code of that time stored it."""
    if case.get("layout") == "split":
        return split
    if case["bert"] == SHAPE.width:
        return pack(split)
    made = dict(split)
    for name in split:
        if name.endswith("q_proj.weight"):
            base = name.removesuffix("q_proj.weight")
            for letter in "qkv":
                made[f"{base}{letter}_proj_weight"] = made.pop(f"{base}{letter}_proj.weight")
            biases = [made.pop(f"{base}{letter}_proj.bias") for letter in "qkv"]
            made[f"{base}in_proj_bias"] = torch.cat(biases)
    return made


def bert_of(case: dict[str, Any]) -> BertModel:
    torch.manual_seed(5)
    sizes = {"hidden_size": case["bert"], "intermediate_size": 20, "num_hidden_layers": 2}
    more = {"num_attention_heads": 2, "vocab_size": 30, "max_position_embeddings": 16}
    bert: BertModel = BertModel(BertConfig(**sizes, **more)).eval()
    return bert


def write(path: Path, case: dict[str, Any]) -> tuple[Path, Any, BertModel]:
    """A fused file, the reference of its model, and its BERT."""
    weights = random_weights(SHAPE, final_norm=bool(case.get("pre")))
    extra, named = fused_weights(case, SHAPE)
    tensors = state(weights, packed=case.get("layout") != "split", output="decoder.embed_out")
    tensors |= layout_of(named, case)
    bert = bert_of(case)
    tensors |= {f"bert_encoder.{name}": tensor for name, tensor in bert.state_dict().items()}
    told = dict(case.get("told", {}))
    for side in ("encoder", "decoder"):
        told[f"{side}_normalize_before"] = bool(case.get("pre"))
    shut = tuple(f"{layer}." for layer in case.get("shut", ()))
    extra = {n: t for n, t in extra.items() if not n.startswith(shut or ("-",))}
    model = reference(weights | extra, pre=bool(case.get("pre")))
    model.ratios = case.get("ratios", (1.0, 1.0))
    return save(path, tensors, options(**told)), model, bert.double()
