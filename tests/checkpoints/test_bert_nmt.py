"""Checkpoints of the BERT-fused model's own code, against its equations in plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.bert_nmt_layout import CASES, SHAPE, write
from checkpoints.fairseq_layout import exact_table, options, save, state
from checkpoints.foreign_models import batch, random_weights
from torch import Tensor

import fusion
from fusion.backwards import backwards
from fusion.checkpoints.bert_nmt import describe_bert_nmt, open_bert_nmt
from fusion.checkpoints.foreign import Foreign, load
from fusion.configuration import FusedConfig
from fusion.errors import SourceError
from fusion.keymap import Pattern
from fusion.ledger import Ledger
from fusion.model import FusedModel
from fusion.warmstart import parameters_on_meta


def fused_of(path: Path) -> tuple[FusedModel, Ledger, Foreign]:
    described = describe_bert_nmt(path, bert_heads=2)
    assert described.encoder is not None
    spec = {"builder": "auto", "layer": -1, "freeze": True, "dropout": False, "limit": 16}
    config = FusedConfig(
        host={"model_type": described.family, **described.config},
        encoders={"bert": {**spec, "config": {"model_type": "bert", **described.encoder}}},
        glue=described.glue,
    )
    with parameters_on_meta():
        model = FusedModel(config)
    patterns = [Pattern(text) for text in described.computed]
    ledger = fusion.warm_start(
        model,
        open_bert_nmt(path),
        rules=described.rules,
        ignore=described.ignore,
        compute=model.host._init_weights,
        computed=lambda name: any(p.match(name) is not None for p in patterns),
    )
    return model.eval(), ledger, described


def texts() -> tuple[Tensor, Tensor]:
    """BERT's ids and mask `[3, 5]`."""
    torch.manual_seed(9)
    ids, mask = torch.randint(1, 30, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    ids[1, 3:], mask[1, 3:] = 0, 0
    return ids, mask


@pytest.mark.parametrize("left", [True, False], ids=["left-padded", "right-padded"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fused_file_computes_its_equations(
    tmp_path: Path, case: dict[str, Any], left: bool
) -> None:
    path, model, bert = write(tmp_path / "fused.pt", case)
    fused, _, _ = fused_of(path)
    fused = fused.double()
    for stack in (fused.host.model.encoder, fused.host.model.decoder):
        stack.embed_positions.weight.copy_(exact_table(len(stack.embed_positions.weight)))
    source, target = batch(SHAPE, 1, 4, left)
    ids, mask = texts()
    with torch.no_grad():
        model.memory = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        model.memory_mask = mask
        mine = fused(
            input_ids=source,
            attention_mask=(source != 1).long(),
            decoder_input_ids=target,
            use_cache=False,
            bert_input_ids=ids,
            bert_attention_mask=mask,
        ).logits
    assert (mine - model(source, target))[target != 1].abs().max() <= 1e-10


@pytest.mark.parametrize("name", [name for name in CASES if name != "gates"])
def test_rules_run_backwards_give_the_fused_file_bit_for_bit(tmp_path: Path, name: str) -> None:
    path, _, _ = write(tmp_path / "fused.pt", CASES[name])
    fused, ledger, described = fused_of(path)
    made = backwards(ledger, fused.state_dict())
    stored = load(path)["model"]
    left = [Pattern(text) for text in described.ignore]
    for key, tensor in stored.items():
        if not any(p.match(key) is not None for p in left):
            assert torch.equal(made[key], tensor), key
    assert set(made) <= set(stored)


def test_the_codes_drop_net_rate_is_half_of_the_papers(tmp_path: Path) -> None:
    case = {"bert": 24, "told": {"encoder_bert_dropout": True, "encoder_bert_dropout_ratio": 0.4}}
    path, _, _ = write(tmp_path / "fused.pt", case)
    assert describe_bert_nmt(path).glue[0]["options"] == {
        **{"start": "paper", "drop_net": 0.8},
        "weights": [0.5, 0.5],
    }


def test_without_drop_net_the_weights_are_the_codes_own(tmp_path: Path) -> None:
    path, _, _ = write(tmp_path / "fused.pt", {"bert": 24})
    assert describe_bert_nmt(path).glue[0]["options"]["weights"] == [1.0, 1.0]
    told = {"encoder_ratio": 0.5, "bert_ratio": 0.25}
    path, _, _ = write(tmp_path / "ratios.pt", {"bert": 24, "told": told})
    assert describe_bert_nmt(path).glue[0]["options"] == {
        **{"start": "paper", "drop_net": 0.0},
        "weights": [0.5, 0.25],
    }


@pytest.mark.parametrize("told", [{"bert_gates": [0, 0, 0]}, {"bert_ratio": 0.0}])
def test_a_file_in_which_bert_has_no_part_says_so(tmp_path: Path, told: dict[str, Any]) -> None:
    path, _, _ = write(tmp_path / "fused.pt", {"bert": 24, "told": told})
    with pytest.raises(SourceError, match="BERT has no part in it"):
        describe_bert_nmt(path)


def test_a_shut_gate_places_no_glue_and_says_why_its_tensors_are_left_out(tmp_path: Path) -> None:
    path, _, _ = write(tmp_path / "fused.pt", CASES["gates"])
    described = describe_bert_nmt(path)
    assert described.glue[0]["sites"] == [
        "encoder.{1}.self_attention",
        "decoder.{1,2}.cross_attention",
    ]
    assert "gate" in described.ignore["encoder.layers.0.bert_attn.{p*}"]


@pytest.mark.parametrize(
    ("extra", "told", "named"),
    [
        ("encoder.layers.0.fc_d.weight", {}, "fc_d"),
        ("decoder.layers.0.bert_attn_layer_norm.weight", {}, "bert_attn_layer_norm"),
        (None, {"mask_cls_sep": True}, "mask_cls_sep: True"),
    ],
)
def test_variants_that_the_glue_does_not_compute_are_refused_by_name(
    tmp_path: Path, extra: str | None, told: dict[str, Any], named: str
) -> None:
    path, _, _ = write(tmp_path / "fused.pt", {"bert": 16, "told": told})
    if extra is not None:
        content = load(path)
        content["model"][extra] = torch.zeros(1)
        path = path.with_name("more.pt")
        torch.save(content, path)
    with pytest.raises(SourceError, match=f"not supported: {named}"):
        describe_bert_nmt(path)


def test_a_plain_fairseq_file_is_no_fused_one(tmp_path: Path) -> None:
    tensors = state(random_weights(SHAPE), output="decoder.embed_out")
    path = save(tmp_path / "plain.pt", tensors, options())
    with pytest.raises(SourceError, match="no bert_attn: no fused checkpoint"):
        describe_bert_nmt(path)
