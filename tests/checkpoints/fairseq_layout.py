"""Files by fairseq's layout, and what their models compute."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from checkpoints.foreign_models import (
    Reference,
    Shape,
    State,
    float32,
    float64,
    random_weights,
)
from torch import Tensor

SHAPE = Shape()
LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {"packed": True, "output": "decoder.embed_out"},
    "split": {"output": "decoder.output_projection.weight"},
    "options in cfg": {"output": "decoder.output_projection.weight", "cfg": True},
    "pre-norm": {"output": "decoder.embed_out", "pre": True, "packed": True},
    "shared decoder": {"tied": True},
    "all shared": {"tied": True, "shared": True},
    "learned positions": {"output": "decoder.embed_out", "learned": True},
    "norm of embeddings": {"output": "decoder.embed_out", "embed_norm": True},
    "norms before 0.6": {"output": "decoder.embed_out", "old": True, "packed": True},
}


def positions(width: int, first: int, count: int = 40) -> Tensor:
    """tensor2tensor's, by scalar arithmetic."""
    half = width // 2
    rates = [math.exp(-math.log(10000) * i / (half - 1)) for i in range(half)]
    rows = [
        [math.sin(p * r) for r in rates] + [math.cos(p * r) for r in rates]
        for p in range(first, first + count)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def options(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"arch": "transformer", "source_lang": "de", "target_lang": "en"}
    for side, layers in (("encoder", SHAPE.encoder_layers), ("decoder", SHAPE.decoder_layers)):
        made |= {f"{side}_layers": layers, f"{side}_attention_heads": SHAPE.heads}
        made |= {f"{side}_embed_dim": SHAPE.width, f"{side}_ffn_embed_dim": SHAPE.inner}
    return made | {"max_source_positions": 40, "max_target_positions": 60, "dropout": 0.1} | changed


def state(weights: State, *, packed: bool = False, output: str | None = None) -> State:
    """fairseq's names for the reference's weights."""
    made: State = {}
    names = {"self": "self_attn", "cross": "encoder_attn"}
    for name, tensor in weights.items():
        side, *rest = name.split(".")
        if side == "output":
            if output is not None:
                made[output] = tensor
        elif rest == ["embed"]:
            made[f"{side}.embed_tokens.weight"] = tensor
        elif rest[0] in ("norm", "embed_norm"):
            known = {"norm": "layer_norm", "embed_norm": "layernorm_embedding"}
            made[f"{side}.{known[rest[0]]}.{rest[1]}"] = tensor
        elif rest[1] == "norm":
            kind = f"{names.get(rest[2], 'final')}_layer_norm"
            made[f"{side}.layers.{rest[0]}.{kind}.{rest[3]}"] = tensor
        elif rest[1] in names:
            letter = "out" if rest[2] == "o" else rest[2]
            there = f"{side}.layers.{rest[0]}.{names[rest[1]]}"
            made[f"{there}.{letter}_proj.{rest[3]}"] = tensor
        else:
            made[f"{side}.layers.{'.'.join(rest)}"] = tensor
    return pack(made) if packed else made


def pack(split: State) -> State:
    made = dict(split)
    for name in split:
        if name.endswith("q_proj.weight") or name.endswith("q_proj.bias"):
            pieces = [made.pop(name.replace("q_proj", f"{c}_proj")) for c in "qkv"]
            made[name.replace("q_proj.", "in_proj_")] = torch.cat(pieces)
    return made


def save(path: Path, tensors: State, arguments: dict[str, Any], cfg: bool = False) -> Path:
    tensors = float32(tensors)
    for side in ("encoder", "decoder"):
        tensors[f"{side}.version"] = torch.tensor([3.0])
        if f"{side}.embed_positions.weight" not in tensors:
            tensors[f"{side}.embed_positions._float_tensor"] = torch.full((1,), math.nan)
    if cfg:
        told = {"args": None, "cfg": {"model": arguments, "task": {"source_lang": "de"}}}
    else:
        told = {"args": argparse.Namespace(**arguments)}
    torch.save({**told, "model": tensors, "extra_state": {}}, path)
    return path


def reference(weights: State, **changed: Any) -> Reference:
    table = positions(SHAPE.width, 2)
    return Reference(float64(weights), SHAPE, {"encoder": table, "decoder": table}, **changed)


def write(path: Path, layout: dict[str, Any]) -> tuple[Path, Reference]:
    """A file and what its model computes."""
    weights = random_weights(SHAPE, final_norm=bool(layout.get("pre")))
    if layout.get("shared"):
        weights["encoder.embed"] = weights["decoder.embed"]
    if layout.get("tied"):
        weights["output.weight"] = weights["decoder.embed"]
    if layout.get("embed_norm"):
        for side in ("encoder", "decoder"):
            for kind in ("weight", "bias"):
                weights[f"{side}.embed_norm.{kind}"] = weights[f"{side}.0.norm.self.{kind}"] * 0.7
    tensors = state(weights, packed=bool(layout.get("packed")), output=layout.get("output"))
    told: dict[str, Any] = {}
    model = reference(weights, pre=bool(layout.get("pre")))
    if layout.get("learned"):
        for side, rows in (("encoder", 42), ("decoder", 62)):
            table = torch.randn(rows, SHAPE.width, dtype=torch.float64)
            table[1] = 0
            tensors[f"{side}.embed_positions.weight"] = table
            model.positions[side] = table.float().double()[2:]
            told[f"{side}_learned_pos"] = True
    for side in ("encoder", "decoder"):
        told[f"{side}_normalize_before"] = bool(layout.get("pre"))
    told["share_all_embeddings"] = bool(layout.get("shared"))
    told["share_decoder_input_output_embed"] = bool(layout.get("tied"))
    if layout.get("old"):
        tensors = {old_norm(name): tensor for name, tensor in tensors.items()}
    return save(path, tensors, options(**told), bool(layout.get("cfg"))), model


def old_norm(name: str) -> str:
    order = {"self_attn": 0, "encoder_attn": 1, "final": 1 if name.startswith("encoder") else 2}
    for kind, index in order.items():
        name = name.replace(f".{kind}_layer_norm.", f".layer_norms.{index}.")
    return name


def exact_table(rows: int) -> Tensor:
    """The table in float64; the file's models compute theirs in float32."""
    table = positions(SHAPE.width, 0, rows)
    table[1] = 0
    return table
