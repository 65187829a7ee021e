"""Marian's .npz models, from files written by its layout, against plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoints.fairseq_layout import positions
from checkpoints.foreign_models import (
    Reference,
    Shape,
    State,
    batch,
    float64,
    host_of,
    random_weights,
)
from torch.nn import functional as F

from fusion.checkpoints.marian import describe_marian, open_marian
from fusion.errors import SourceError

SHAPE = Shape()
PAD = SHAPE.target_words
CASES: dict[str, dict[str, Any]] = {
    "post-norm, untied": {},
    "pre-norm with a norm at the top": {"pre": True},
    "tied output": {"tied": True},
    "tied everywhere": {"tied": True, "shared": True},
    "output of before 1.9": {"old": True},
    "trained positions": {"learned": True},
    "swish": {"activation": "swish"},
}


def arrays(weights: State, case: dict[str, Any]) -> State:
    """Marian's names and shapes for the reference's weights."""
    suffix = "_pre" if case.get("pre") else ""
    made: State = {}
    for name, tensor in weights.items():
        side, *rest = name.split(".")
        matrix = tensor.T if tensor.dim() == 2 else tensor[None]
        if rest == ["embed"]:
            made["Wemb" if case.get("shared") else f"{side}_Wemb"] = tensor
        elif side == "output":
            made["decoder_ff_logit_out_W" if case.get("old") else "decoder_ff_logit_out_Wt"] = (
                tensor.T if case.get("old") else tensor
            )
        elif rest[0] == "norm":
            kind = "scale" if rest[1] == "weight" else "bias"
            made[f"{side}_top_ln_{kind}"] = matrix
        elif rest[1] == "norm":
            kind = "scale" if rest[3] == "weight" else "bias"
            part = {"self": "self_Wo", "cross": "context_Wo", "ffn": "ffn_ffn"}[rest[2]]
            made[f"{side}_l{int(rest[0]) + 1}_{part}_ln_{kind}{suffix}"] = matrix
        else:
            letter = "W" if rest[-1] == "weight" else "b"
            layer = f"{side}_l{int(rest[0]) + 1}"
            if rest[1] in ("fc1", "fc2"):
                made[f"{layer}_ffn_{letter}{rest[1][-1]}"] = matrix
            else:
                part = {"self": "self", "cross": "context"}[rest[1]]
                made[f"{layer}_{part}_{letter}{rest[2]}"] = matrix
    if case.get("tied"):
        made = {n: t for n, t in made.items() if "logit_out_W" not in n}
    return made


def options(case: dict[str, Any], **changed: Any) -> dict[str, Any]:
    norms = ("n", "da") if case.get("pre") else ("d", "dan")
    made = {
        **{"type": "transformer", "enc-depth": SHAPE.encoder_layers},
        **{"dec-depth": SHAPE.decoder_layers, "transformer-heads": SHAPE.heads},
        **{"transformer-dim-ffn": SHAPE.inner, "dim-emb": SHAPE.width},
        **{"transformer-preprocess": norms[0], "transformer-postprocess": norms[1]},
        **{"transformer-ffn-activation": case.get("activation", "relu")},
        **{"transformer-train-positions": bool(case.get("learned"))},
        **{"transformer-decoder-autoreg": "self-attention", "transformer-ffn-depth": 2},
    }
    return made | changed


def save(path: Path, tensors: State, told: dict[str, Any]) -> Path:
    text = np.frombuffer(yaml.safe_dump(told).encode() + b"\0", dtype=np.int8)
    stored = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    np.savez(path, **stored, **{"special:model.yml": text})
    return path


def write(path: Path, case: dict[str, Any], **changed: Any) -> tuple[Path, Reference]:
    weights = random_weights(SHAPE, final_norm=bool(case.get("pre")))
    if case.get("shared"):
        weights["encoder.embed"] = weights["decoder.embed"]
    if case.get("tied"):
        weights["output.weight"] = weights["decoder.embed"]
    tensors = arrays(weights, case)
    bias = torch.randn(1, SHAPE.target_words, dtype=torch.float64)
    tensors["decoder_ff_logit_out_b"] = bias
    table = positions(SHAPE.width, 0)
    if case.get("learned"):
        table = torch.randn(40, SHAPE.width, dtype=torch.float64).float().double()
        tensors["Wpos"] = table
    known = float64(weights) | {"output.bias": bias[0].float().double()}
    start = torch.zeros(1, SHAPE.width, dtype=torch.float64)
    for side in ("encoder", "decoder"):  # the decoder starts with a zero embedding
        known[f"{side}.embed"] = torch.cat([known[f"{side}.embed"], start])
    model = Reference(
        known,
        SHAPE,
        {"encoder": table, "decoder": table},
        pre=bool(case.get("pre")),
        eps=1e-6,
        scale=not case.get("learned"),
        activation=F.silu if case.get("activation") == "swish" else F.relu,
        pad=PAD,
        counts_padding=True,
    )
    return save(path, tensors, options(case, **changed)), model


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_computes_what_plain_arithmetic_does(tmp_path: Path, case: dict[str, Any]) -> None:
    path, model = write(tmp_path / "model.npz", case)
    host = host_of(describe_marian(path), open_marian(path)).double()
    if not case.get("learned"):
        for stack in (host.model.encoder, host.model.decoder):
            table = stack.embed_positions.weight
            table.copy_(positions(SHAPE.width, 0, len(table)))
    source, target = batch(SHAPE, 0, 1, left=False)
    model.pad = 0  # any id will do under the mask
    target = torch.cat([torch.full((3, 1), PAD), target], dim=1)
    model.check(host, source, target)


def test_the_added_padding_token_is_never_an_output(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.npz", CASES["tied everywhere"])
    host = host_of(describe_marian(path), open_marian(path))
    source, _ = batch(SHAPE, 0, 1, left=False)
    made = host.generate(
        input_ids=source, attention_mask=(source != 0).long(), num_beams=2, max_new_tokens=12
    )
    open_rows = (made[:, 1:] == 0).long().cumsum(1) == 0
    assert not (made[:, 1:][open_rows] == PAD).any()


def test_a_vocabulary_gets_the_padding_token_last_and_must_fit(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.npz", {})
    words = {f"w{i}": i for i in range(SHAPE.source_words)}
    (tmp_path / "vocab.yml").write_text(yaml.safe_dump(words), encoding="utf-8")
    described = describe_marian(path, tmp_path / "vocab.yml")
    assert described.source_vocabulary == [
        *(f"w{i}" for i in range(24)),
        *(f"<unused{i}>" for i in range(8)),
        "<pad>",
    ]
    with pytest.raises(SourceError, match=r"vocab\.yml: 24 tokens for 32 rows"):
        describe_marian(path, None, tmp_path / "vocab.yml")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"transformer-decoder-autoreg": "rnn"}, "transformer-decoder-autoreg: 'rnn'"),
        ({"type": "s2s"}, "type: 's2s'"),
        ({"transformer-postprocess": "dahn"}, "transformer-preprocess 'd' with"),
    ],
)
def test_an_option_that_the_host_has_no_counterpart_of_is_named(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    path, _ = write(tmp_path / "model.npz", {}, **changed)
    with pytest.raises(SourceError, match=f"not supported: {named}"):
        describe_marian(path)


def test_an_archive_without_options_is_no_model_of_marian(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3, np.float32))
    with pytest.raises(SourceError, match=r"no model of Marian: no special:model\.yml"):
        describe_marian(tmp_path / "other.npz")
