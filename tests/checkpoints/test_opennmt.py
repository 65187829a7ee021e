"""OpenNMT-py's checkpoints, from files written by its layout, against plain arithmetic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.foreign_models import (
    Reference,
    Shape,
    State,
    batch,
    float32,
    float64,
    host_of,
    interleaved,
    random_weights,
    renamed,
)
from torch.nn import functional as F

from fusion.checkpoints.opennmt import describe_opennmt, open_opennmt
from fusion.errors import SourceError

SHAPE = Shape()
EMBED = "embeddings.make_embedding"
NAMES = {f"{side}.embed": f"{side}.{EMBED}.emb_luts.0.weight" for side in ("encoder", "decoder")}
NAMES |= {f"{side}.norm": f"{side}.layer_norm.{{p}}" for side in ("encoder", "decoder")}
LETTERS = {"q": "linear_query", "k": "linear_keys", "v": "linear_values", "o": "final_linear"}
CASES: dict[str, dict[str, Any]] = {
    "1.x": {},
    "3.x": {"new": True},
    "without biases": {"new": True, "bias": False},
    "shared decoder": {"told": {"share_decoder_embeddings": True}},
    "shared sides": {"told": {"share_embeddings": True}},
    "all shared": {"told": {"share_embeddings": True, "share_decoder_embeddings": True}},
    "gelu": {"told": {"pos_ffn_activation_fn": "gelu"}},
}


def side_names(side: str) -> dict[str, str]:
    stack = "encoder.transformer.{n}" if side == "encoder" else "decoder.transformer_layers.{n}"
    kinds = {"self": "self_attn"}
    norms = {"self": "layer_norm" if side == "encoder" else "layer_norm_1"}
    if side == "decoder":
        kinds["cross"], norms["cross"] = "context_attn", "layer_norm_2"
    names = {
        f"{kind}.{letter}": f"{stack}.{called}.{linear}.{{p}}"
        for kind, called in kinds.items()
        for letter, linear in LETTERS.items()
    }
    names |= {f"norm.{kind}": f"{stack}.{norm}.{{p}}" for kind, norm in norms.items()}
    feed = f"{stack}.feed_forward"
    return names | {"fc1": f"{feed}.w_1.{{p}}", "fc2": f"{feed}.w_2.{{p}}",
                    "norm.ffn": f"{feed}.layer_norm.{{p}}"}  # fmt: skip


def write(path: Path, case: dict[str, Any], **told: Any) -> tuple[Path, Reference]:
    weights = random_weights(SHAPE, bias=case.get("bias", True), final_norm=True)
    own = dict(case.get("told", {})) | told
    if own.get("share_embeddings"):
        weights["encoder.embed"] = weights["decoder.embed"]
    if own.get("share_decoder_embeddings"):
        weights["output.weight"] = weights["decoder.embed"]
    weights["output.bias"] = torch.randn(SHAPE.target_words, dtype=torch.float64)
    inner = {n: t for n, t in weights.items() if not n.startswith("output")}
    tensors = renamed(inner, NAMES, {side: side_names(side) for side in ("encoder", "decoder")})
    table = interleaved(SHAPE.width, 30).float()
    for side in ("encoder", "decoder"):
        tensors[f"{side}.{EMBED}.pe.pe"] = table[:, None]
    layer = "" if case.get("new") else "0."
    generator: State = {f"{layer}{k}": weights[f"output.{k}"] for k in ("weight", "bias")}
    vocabulary: Any = None
    if case.get("new"):
        rest = [f"t{i}" for i in range(SHAPE.target_words - 4)]
        vocabulary = {
            "src": [f"s{i}" for i in range(len(tensors[NAMES["encoder.embed"]]))],
            "tgt": ["<unk>", "<blank>", "</s>", "<s>", *rest],
        }
    options = {"heads": SHAPE.heads, "encoder_type": "transformer", "position_encoding": True}
    options |= {"decoder_type": "transformer", "dropout": [0.1], "model_type": "text"} | own
    content = {
        "model": float32(tensors),
        "generator": float32(generator),
        "opt": argparse.Namespace(**options),
        "vocab": vocabulary,
        "optim": {"state": {}},
    }
    torch.save(content, path)
    model = Reference(
        float64(weights),
        SHAPE,
        dict.fromkeys(("encoder", "decoder"), table.double()),
        pre=True,
        eps=1e-6,
        activation=F.gelu if own.get("pos_ffn_activation_fn") == "gelu" else F.relu,
        counts_padding=True,
    )
    return path, model


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_computes_what_plain_arithmetic_does(tmp_path: Path, case: dict[str, Any]) -> None:
    path, model = write(tmp_path / "model.pt", case)
    host = host_of(describe_opennmt(path), open_opennmt(path))
    model.check(host, *batch(SHAPE, 1, 4, left=False))


def test_positions_in_the_file_are_those_that_the_host_would_compute(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.pt", {})
    stack = host_of(describe_opennmt(path), open_opennmt(path)).model.encoder
    computed = stack.embed_positions.create_weight()
    assert (computed - stack.embed_positions.weight).abs().max() <= 1e-5


def test_ids_of_special_tokens_come_from_the_files_vocabulary(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "new.pt", CASES["3.x"])
    config = describe_opennmt(path).config
    assert (config["eos_token_id"], config["decoder_start_token_id"]) == (2, 3)
    path, _ = write(tmp_path / "old.pt", {})
    described = describe_opennmt(path)
    assert (described.config["eos_token_id"], described.config["decoder_start_token_id"]) == (3, 2)
    assert described.target_vocabulary is None and len(described.notes) == 2


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"max_relative_positions": 20}, "max_relative_positions: 20"),
        ({"encoder_type": "brnn"}, "encoder_type: 'brnn'"),
        ({"self_attn_type": "average"}, "self_attn_type: 'average'"),
    ],
)
def test_an_option_that_the_host_has_no_counterpart_of_is_named(
    tmp_path: Path, told: dict[str, Any], named: str
) -> None:
    path, _ = write(tmp_path / "model.pt", {}, **told)
    with pytest.raises(SourceError, match=f"not supported: {named}"):
        describe_opennmt(path)
