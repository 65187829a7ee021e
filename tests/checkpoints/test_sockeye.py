"""Sockeye 3's models, from files written by its layout, against plain arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints.foreign_models import (
    Reference,
    Shape,
    State,
    batch,
    float32,
    float64,
    host_of,
    random_weights,
    renamed,
)
from torch import Tensor

from fusion.checkpoints.sockeye import describe_sockeye, open_sockeye
from fusion.errors import SourceError

SHAPE = Shape()
CASES: dict[str, dict[str, Any]] = {
    "norms before": {},
    "norms after": {"pre": False},
    "all tied": {"tying": "src_trg_softmax"},
    "output tied": {"tying": "trg_softmax"},
    "sides tied": {"tying": "src_trg"},
    "trained positions": {"learned": True},
}
KINDS = {
    "encoder": {"self": ("self_attention", "self_attention")},
    "decoder": {
        "self": ("autoregr_layer", "autoregr_layer"),
        "cross": ("enc_attention", "enc_attention"),
    },
}


def halves(width: int, rows: int) -> Tensor:
    """sin | cos with 10000^(-2i / D), by scalar arithmetic."""
    rates = [1 / 10000 ** (2 * i / width) for i in range(width // 2)]
    table = [
        [math.sin(p * r) for r in rates] + [math.cos(p * r) for r in rates] for p in range(rows)
    ]
    return torch.tensor(table, dtype=torch.float64)


def interleaved(keys: Tensor, values: Tensor) -> Tensor:
    """Rows of keys and values, head by head."""
    size = SHAPE.width // SHAPE.heads
    rows = []
    for head in range(SHAPE.heads):
        rows += [keys[head * size : (head + 1) * size], values[head * size : (head + 1) * size]]
    return torch.cat(rows)


def state(weights: State, pre: bool) -> State:
    """Sockeye's names for the reference's weights."""
    when = "pre" if pre else "post"
    names = {
        "encoder.embed": "embedding_source.embedding.weight",
        "decoder.embed": "embedding_target.embedding.weight",
        "output": "output_layer.{p}",
        **{f"{s}.norm": f"{s}.final_process.layer_norm.{{p}}" for s in ("encoder", "decoder")},
    }
    sides: dict[str, dict[str, str]] = {}
    for side, kinds in KINDS.items():
        layer = f"{side}.layers.{{n}}"
        sides[side] = {"fc1": f"{layer}.ff.ff1.{{p}}", "fc2": f"{layer}.ff.ff2.{{p}}"}
        sides[side]["norm.ffn"] = f"{layer}.{when}_ff.layer_norm.{{p}}"
        for kind, (module, block) in kinds.items():
            sides[side][f"norm.{kind}"] = f"{layer}.{when}_{block}.layer_norm.{{p}}"
            sides[side][f"{kind}.o"] = f"{layer}.{module}.ff_out.{{p}}"
    made = renamed(weights, names, sides)
    for name, query in weights.items():
        if not name.endswith(".q.weight"):
            continue
        side, number, kind = name.split(".")[:3]
        there = f"{side}.layers.{number}.{KINDS[side][kind][0]}"
        pair = [weights[name.replace(".q.", f".{letter}.")] for letter in "kv"]
        if kind == "self":
            made[f"{there}.ff_in.weight"] = torch.cat([query, interleaved(*pair)])
        else:
            made[f"{there}.ff_q.weight"] = query
            made[f"{there}.ff_kv.weight"] = interleaved(*pair)
    return made


def write(folder: Path, case: dict[str, Any], **changed: Any) -> Reference:
    pre, tying = case.get("pre", True), case.get("tying", "none")
    weights = random_weights(SHAPE, bias=False, final_norm=pre)
    weights["output.bias"] = torch.randn(SHAPE.target_words, dtype=torch.float64)
    if tying.startswith("src_trg"):
        weights["encoder.embed"] = weights["decoder.embed"]
    if tying.endswith("softmax"):
        weights["output.weight"] = weights["decoder.embed"]
    tensors = state(weights, pre)
    table = halves(SHAPE.width, 30)
    if case.get("learned"):
        table = torch.randn(30, SHAPE.width, dtype=torch.float64)
    table = table.float()
    norms = {"preprocess_sequence": "n", "postprocess_sequence": "dr"}
    if not pre:
        norms = {"preprocess_sequence": "", "postprocess_sequence": "drn"}
    tags = []
    for side, layers in (("encoder", SHAPE.encoder_layers), ("decoder", SHAPE.decoder_layers)):
        tensors[f"{side}.pos_embedding.weight"] = table
        stack = {
            **{"num_layers": layers, "attention_heads": SHAPE.heads, "act_type": "relu"},
            **{"feed_forward_num_hidden": SHAPE.inner, "decoder_type": "transformer"},
            "positional_embedding_type": "learned" if case.get("learned") else "fixed",
            **norms,
            **changed,
        }
        text = yaml.safe_dump(stack).replace("\n", "\n  ")
        tags.append(f"config_{side}: !TransformerConfig\n  {text}")
    body = "\n".join([*tags, f"weight_tying_type: {tying}", "dtype: float32", "lhuc: false", ""])
    (folder / "config").write_text("!ModelConfig\n" + body, encoding="utf-8")
    torch.save(float32(tensors), folder / "params.best")
    return Reference(
        float64(weights),
        SHAPE,
        dict.fromkeys(("encoder", "decoder"), table.double()),
        pre=pre,
        eps=1e-6,
        pad=0,
        counts_padding=True,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_computes_what_plain_arithmetic_does(tmp_path: Path, case: dict[str, Any]) -> None:
    model = write(tmp_path, case)
    host = host_of(describe_sockeye(tmp_path), open_sockeye(tmp_path))
    model.check(host, *batch(SHAPE, 0, 4, left=False))


def test_positions_in_the_file_are_those_that_the_host_would_compute(tmp_path: Path) -> None:
    write(tmp_path, {})
    stack = host_of(describe_sockeye(tmp_path), open_sockeye(tmp_path)).model.decoder
    computed = stack.embed_positions.create_weight()
    assert (computed - stack.embed_positions.weight).abs().max() <= 1e-5


def test_a_vocabulary_is_read_in_the_order_of_its_ids(tmp_path: Path) -> None:
    write(tmp_path, {})
    ids = {f"w{i}": SHAPE.source_words - 1 - i for i in range(SHAPE.source_words)}
    (tmp_path / "vocab.src.0.json").write_text(json.dumps(ids), encoding="utf-8")
    described = describe_sockeye(tmp_path)
    assert described.source_vocabulary == [f"w{i}" for i in reversed(range(24))]
    assert described.notes == ("no vocab.trg.0.json beside the parameters",)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"decoder_type": "ssru_transformer"}, "decoder_type: 'ssru_transformer'"),
        ({"use_glu": True}, "use_glu: True"),
        ({"postprocess_sequence": "drn"}, "preprocess_sequence 'n' with"),
    ],
)
def test_an_option_that_the_host_has_no_counterpart_of_is_named(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    write(tmp_path, {}, **changed)
    with pytest.raises(SourceError, match=f"not supported: {named}"):
        describe_sockeye(tmp_path)


def test_a_config_that_names_python_objects_runs_nothing(tmp_path: Path) -> None:
    write(tmp_path, {})
    trap = tmp_path / "trap"
    hostile = f'!!python/object/apply:os.mkdir ["{trap}"]\n'
    (tmp_path / "config").write_text(hostile, encoding="utf-8")
    with pytest.raises(SourceError, match="no config of Sockeye"):
        describe_sockeye(tmp_path)
    assert not trap.exists()
