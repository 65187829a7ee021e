"""Checkpoints of the BERT-fused model's own code, against its equations in plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.fairseq_layout import exact_table, options, pack, reference, save, state
from checkpoints.foreign_models import Shape, State, batch, random_weights
from torch import Tensor
from transformers import BertConfig, BertModel

import fusion
from fusion.backwards import backwards
from fusion.checkpoints.bert_nmt import describe_bert_nmt, open_bert_nmt
from fusion.checkpoints.foreign import Foreign, load
from fusion.errors import SourceError
from fusion.keymap import Pattern
from fusion.ledger import Ledger
from fusion.model import FusedConfig, FusedModel
from fusion.warmstart import parameters_on_meta

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
    assert describe_bert_nmt(path).glue[0]["options"] == {"start": "paper", "drop_net": 0.8}


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
