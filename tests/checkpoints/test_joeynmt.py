"""Joey NMT's checkpoints, from files written by its layout, against plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints.foreign_models import (
    Reference,
    Shape,
    batch,
    float32,
    float64,
    host_of,
    interleaved,
    random_weights,
    renamed,
)

from fusion.checkpoints.joeynmt import describe_joeynmt, open_joeynmt
from fusion.errors import SourceError

SHAPE = Shape()
NAMES = {
    **{"encoder.embed": "src_embed.lut.weight", "decoder.embed": "trg_embed.lut.weight"},
    **{f"{side}.norm": f"{side}.layer_norm.{{p}}" for side in ("encoder", "decoder")},
    "output": "decoder.output_layer.{p}",
}
KINDS = {
    "encoder": {"self": ("src_src_att", "layer_norm")},
    "decoder": {
        "self": ("trg_trg_att", "x_layer_norm"),
        "cross": ("src_trg_att", "dec_layer_norm"),
    },
}
CASES: dict[str, dict[str, Any]] = {
    "post-norm": {"norm": "post"},
    "pre-norm": {"norm": "pre"},
    "before 2.0": {"norm": None, "pre": True},
    "tied output": {"norm": "pre", "told": {"tied_softmax": True}},
    "tied sides": {"norm": "post", "told": {"tied_embeddings": True}},
    "tied everywhere": {"norm": "pre", "told": {"tied_softmax": True, "tied_embeddings": True}},
    "unscaled": {"norm": "post", "scale": False},
}


def side_names(side: str) -> dict[str, str]:
    names: dict[str, str] = {}
    layer = f"{side}.layers.{{n}}"
    for kind, (called, norm) in KINDS[side].items():
        for letter in "qkvo":
            linear = "output_layer" if letter == "o" else f"{letter}_layer"
            names[f"{kind}.{letter}"] = f"{layer}.{called}.{linear}.{{p}}"
        names[f"norm.{kind}"] = f"{layer}.{norm}.{{p}}"
    feed = f"{layer}.feed_forward"
    names |= {"fc1": f"{feed}.pwff_layer.0.{{p}}", "fc2": f"{feed}.pwff_layer.3.{{p}}"}
    return names | {"norm.ffn": f"{feed}.layer_norm.{{p}}"}


def write(folder: Path, case: dict[str, Any], **changed: Any) -> tuple[Path, Reference]:
    pre = bool(case.get("pre")) or case.get("norm") == "pre"
    told = case.get("told", {})
    weights = random_weights(SHAPE, final_norm=pre)
    if told.get("tied_embeddings"):
        weights["encoder.embed"] = weights["decoder.embed"]
    if told.get("tied_softmax"):
        weights["output.weight"] = weights["decoder.embed"]
    tensors = renamed(weights, NAMES, {side: side_names(side) for side in ("encoder", "decoder")})
    table = interleaved(SHAPE.width, 30).float()
    scale = case.get("scale", True)
    model: dict[str, Any] = dict(told)
    for side, layers in (("encoder", SHAPE.encoder_layers), ("decoder", SHAPE.decoder_layers)):
        tensors[f"{side}.pe.pe"] = table[None]
        sizes = {"num_layers": layers, "num_heads": SHAPE.heads, "ff_size": SHAPE.inner}
        embeddings = {"embedding_dim": SHAPE.width, "scale": scale}
        model[side] = {"type": "transformer", **sizes, "embeddings": embeddings, "dropout": 0.1}
        if case.get("norm"):
            model[side]["layer_norm"] = case["norm"]
        model[side] |= changed
    torch.save({"model_state": float32(tensors), "steps": 3, "best_ckpt_score": 1.0},
               folder / "best.ckpt")  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
    tables = dict.fromkeys(("encoder", "decoder"), table.double())
    reference = Reference(
        float64(weights), SHAPE, tables, pre=pre, eps=1e-6, scale=scale, counts_padding=True
    )
    return folder / "best.ckpt", reference


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_computes_what_plain_arithmetic_does(tmp_path: Path, case: dict[str, Any]) -> None:
    path, model = write(tmp_path, case)
    host = host_of(describe_joeynmt(path), open_joeynmt(path))
    model.check(host, *batch(SHAPE, 1, 4, left=False))


def test_vocabularies_beside_the_file_give_the_ids_of_special_tokens(tmp_path: Path) -> None:
    path, _ = write(tmp_path, CASES["pre-norm"])
    words = ["<unk>", "<pad>", "</s>", "<s>", *(f"w{i}" for i in range(SHAPE.target_words - 4))]
    (tmp_path / "trg_vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    described = describe_joeynmt(path)
    assert described.target_vocabulary == words
    assert described.config["eos_token_id"] == 2
    assert described.notes == ("no src_vocab.txt beside the file",)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"type": "recurrent"}, "type: 'recurrent'"), ({"alpha": 0.8}, r"alpha: 0\.8")],
)
def test_an_option_that_the_host_has_no_counterpart_of_is_named(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    path, _ = write(tmp_path, CASES["pre-norm"], **changed)
    with pytest.raises(SourceError, match=f"not supported: {named}"):
        describe_joeynmt(path)


def test_a_file_without_its_config_is_one_clear_error(tmp_path: Path) -> None:
    path, _ = write(tmp_path, CASES["pre-norm"])
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(SourceError, match=r"config\.yaml: no such file; it holds the model's"):
        describe_joeynmt(path)
