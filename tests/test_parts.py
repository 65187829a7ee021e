"""Recipes whose host, glue and encoder lie in one file of bert-nmt."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints.bert_nmt_layout import CASES, SHAPE, write
from checkpoints.fairseq_layout import exact_table
from checkpoints.foreign_models import Reference, batch
from transformers import BertModel, BertTokenizerFast

from fusion.checkpoints.foreign import load
from fusion.checkpoints.toolkits import _described
from fusion.composition import compose, plan
from fusion.errors import RecipeError, WarmStartError
from fusion.ledger import Origin
from fusion.model import FusedModel
from fusion.recipe import Recipe, validate_recipe
from fusion.saved import load_model, save_model
from fusion.verify import verify_model

Files = Callable[[dict[str, Any]], "Fused"]


class Fused:
    """A fused file, a folder with its BERT's config and tokenizer, and what it computes."""

    def __init__(self, folder: Path, case: dict[str, Any], tokenizer: Path) -> None:
        self.path, self.reference, self.bert = write(folder / "fused.pt", case)
        self.config, self.tokenizer = folder / "bert", tokenizer
        self.bert.config.save_pretrained(self.config)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]
        (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(self.config)

    def raw(self) -> dict[str, Any]:
        """A recipe in which all three parts are the file's."""
        place = {"source": str(self.path), "format": "bert-nmt"}
        return {
            "name": "fused",
            "output": str(self.path.parent / "out"),
            "host": place | {"tokenizer": str(self.tokenizer)},
            "encoders": {"bert": place | {"config": str(self.config)}},
            "glue": [{"method": "bert-fused", "encoder": "bert"} | place],
            "data": {"train": {"synthetic": "train"}, "dev": {"synthetic": "dev"}},
        }

    def recipe(self, **changed: Any) -> Recipe:
        return validate_recipe(self.raw() | changed, self.path.with_name("fused.yaml"))


@pytest.fixture
def fused(tmp_path: Path, tokenizer_dir: Path) -> Files:
    return lambda case: Fused(tmp_path, case, tokenizer_dir)


def difference(model: FusedModel, reference: Reference, bert: BertModel) -> float:
    """The largest one between a model's logits and the reference's, in float64."""
    model = model.double()
    for stack in (model.host.model.encoder, model.host.model.decoder):
        stack.embed_positions.weight.copy_(exact_table(len(stack.embed_positions.weight)))
    source, target = batch(SHAPE, 1, 4, left=False)
    ids = torch.tensor([[2, 7, 9, 11, 3], [2, 29, 3, 0, 0], [2, 3, 0, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        reference.memory = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        reference.memory_mask = mask
        mine = model(
            input_ids=source,
            attention_mask=(source != 1).long(),
            decoder_input_ids=target,
            use_cache=False,
            bert_input_ids=ids,
            bert_attention_mask=mask,
        ).logits
    return float((mine - reference(source, target))[target != 1].abs().max())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_recipe_of_one_bert_nmt_file_computes_what_the_file_did(
    fused: Files, case: dict[str, Any], tmp_path: Path
) -> None:
    made = fused(case)
    composition = compose(made.recipe())
    save_model(composition.model, tmp_path / "model", composition.processor)
    assert difference(composition.model, made.reference, made.bert) <= 1e-10
    assert verify_model(tmp_path / "model") == []
    assert difference(load_model(tmp_path / "model"), made.reference, made.bert) <= 1e-10


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_tensor_of_the_file_is_loaded_by_one_part_or_left_out_with_a_reason(
    fused: Files, case: dict[str, Any]
) -> None:
    made = fused(case)
    ledger = compose(made.recipe()).ledger
    loaded = {key for e in ledger if e.origin is Origin.LOADED for key in e.keys}
    stored = set(load(made.path)["model"])
    left = {name for name in stored if any(other.endswith(name) for other in ledger.ignored)}
    assert loaded | left == stored
    assert not loaded & left
    assert {e.source for e in ledger if e.keys} == {f"bert-nmt:{made.path}"}
    assert not any(e.origin is Origin.INITIALISED for e in ledger)


def test_a_plan_shows_host_encoder_and_glue_of_the_file(fused: Files) -> None:
    planned = plan(fused(CASES["BERT wider"]).recipe())
    assert planned.problems == []
    rows = {row.name: row for row in planned.parts}
    assert list(rows) == ["host", "encoders.bert.model", "glue.bert_fused"]
    assert rows["glue.bert_fused"].module_class == "Glue"
    assert rows["glue.bert_fused"].tensors["loaded"] == 5 * 8
    assert rows["encoders.bert.model"].ignored.keys() == {
        "bert_encoder.pooler.dense.bias",
        "bert_encoder.pooler.dense.weight",
    }
    assert any("padded on the left" in note for note in planned.notes)


def test_weights_sites_and_drop_net_are_the_files_unless_the_recipe_says_otherwise(
    fused: Files,
) -> None:
    made = fused(CASES["gates"])
    (told,) = compose(made.recipe()).model.config.glue
    assert told["sites"] == ["encoder.{1}.self_attention", "decoder.{1,2}.cross_attention"]
    assert told["options"] == {"start": "paper", "drop_net": 0.0, "weights": [1.0, 1.0]}
    glue = [made.raw()["glue"][0] | {"drop_net": 0.5}]
    (told,) = compose(made.recipe(glue=glue)).model.config.glue
    assert told["options"] == {"start": "paper", "drop_net": 0.5, "weights": [1.0, 1.0]}


def test_the_name_of_encoder_and_glue_is_the_recipes(fused: Files) -> None:
    made = fused(CASES["BERT wider"])
    raw = made.raw()
    glue = [raw["glue"][0] | {"encoder": "english", "name": "mix"}]
    ledger = compose(made.recipe(encoders={"english": raw["encoders"]["bert"]}, glue=glue)).ledger
    name = "glue.mix.encoder_0_self_attention.attention.q_proj.weight"
    assert ledger[name].keys == ("encoder.layers.0.bert_attn.q_proj_weight",)
    assert any(entry.name.startswith("encoders.english.model.") for entry in ledger)


def test_an_encoder_with_weights_of_its_own_leaves_the_files_to_be_accounted_for(
    fused: Files,
) -> None:
    made = fused(CASES["BERT wider"])
    made.bert.float().save_pretrained(made.config)
    encoders = {"bert": {"source": str(made.config)}}
    with pytest.raises(WarmStartError, match=r'ignore: {"bert_encoder.{rest\*}": "the reason"}'):
        compose(made.recipe(encoders=encoders))
    host = made.raw()["host"] | {"ignore": {"bert_encoder.{rest*}": "the encoder has its own"}}
    composed = compose(made.recipe(encoders=encoders, host=host))
    assert difference(composed.model, made.reference, made.bert.double()) <= 1e-10


def test_new_glue_on_a_fused_files_host_leaves_the_files_to_be_accounted_for(fused: Files) -> None:
    made = fused(CASES["BERT wider"])
    glue = [{"method": "gated", "encoder": "bert"}]
    with pytest.raises(WarmStartError, match=r"has encoder\.layers\.0\.bert_attn\..*no tensor"):
        compose(made.recipe(glue=glue))
    reason = "gated glue starts anew"
    host = made.raw()["host"] | {
        "ignore": {
            f"{side}.layers.{{i}}.bert_attn.{{p*}}": reason for side in ("encoder", "decoder")
        }
    }
    ledger = compose(made.recipe(glue=glue, host=host)).ledger
    assert {e.origin for e in ledger.part("glue.")} == {Origin.INITIALISED}
    assert list(ledger.ignored.values()).count(reason) == 5 * 6


def test_glue_is_loaded_from_any_checkpoint_and_new_glue_may_stand_beside_it(
    fused: Files, tmp_path: Path
) -> None:
    made = fused(CASES["BERT wider"])
    first = compose(made.recipe())
    save_model(first.model, tmp_path / "model", first.processor)
    kept = {
        **{"method": "bert-fused", "encoder": "bert", "weights": [1, 1], "drop_net": 0.0},
        "source": str(tmp_path / "model" / "glue.safetensors"),
        "rules": {"{name*}": "glue.bert_fused.{name*}"},
    }
    added = {"method": "gated", "encoder": "bert", "sites": ["decoder.0.cross_attention"]}
    host = made.raw()["host"] | {
        "ignore": {f"{s}.layers.{{i}}.bert_attn.{{p*}}": "loaded" for s in ("encoder", "decoder")}
    }
    alone = compose(made.recipe(glue=[kept], host=host))
    assert difference(alone.model, made.reference, made.bert) <= 1e-10
    kept["sites"] = ["encoder.*.self_attention", "decoder.{1,2}.cross_attention"]
    kept["ignore"] = {"glue.bert_fused.decoder_0_cross_attention.{p*}": "gated there"}
    ledger = compose(made.recipe(glue=[kept, added], host=host)).ledger
    assert {e.origin for e in ledger.part("glue.bert_fused.")} == {Origin.LOADED}
    assert {e.origin for e in ledger.part("glue.gated.")} == {Origin.INITIALISED}


@pytest.mark.parametrize(
    ("part", "changed", "message"),
    [
        ("glue", {"source": None}, "glue[0]: format, rules, new_tensors and ignore are about"),
        ("glue", {"method": "gated"}, "glue[0]: the glue of a bert-nmt file is bert-fused"),
        ("glue", {"format": "marian"}, "glue[0]: a file of marian has no glue"),
        ("glue", {"format": "bert-nmtt"}, 'glue[0].format: no source "bert-nmtt"'),
        ("glue", {"source": "recipe:x.yaml"}, "glue[0].source: recipe: is for hosts only"),
        ("encoder", {"config": None}, "encoders.bert: an encoder of bert-nmt needs config"),
    ],
)
def test_a_recipe_that_cannot_mean_a_fused_file_says_why(
    fused: Files, part: str, changed: dict[str, Any], message: str
) -> None:
    made = fused(CASES["BERT wider"])
    raw = made.raw()
    (raw["glue"][0] if part == "glue" else raw["encoders"]["bert"]).update(changed)
    with pytest.raises(RecipeError) as raised:
        made.recipe(glue=raw["glue"], encoders=raw["encoders"])
    assert message in str(raised.value)


def test_a_fused_file_is_described_once_until_it_changes(fused: Files) -> None:
    made = fused(CASES["BERT wider"])
    before = _described.cache_info().misses
    compose(made.recipe())
    compose(made.recipe())
    assert _described.cache_info().misses == before + 1
    write(made.path, CASES["drop-net"])
    (told,) = compose(made.recipe()).model.config.glue
    assert told["options"]["drop_net"] == 0.5
    assert _described.cache_info().misses == before + 2


def test_the_plan_command_reads_a_recipe_whose_places_are_relative_to_it(fused: Files) -> None:
    made = fused(CASES["BERT wider"])
    raw = made.raw()
    for part in (raw["host"], raw["encoders"]["bert"], raw["glue"][0]):
        part["source"] = "fused.pt"
    raw["encoders"]["bert"]["config"] = "bert"
    path = made.path.with_name("fused.yaml")
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    command = [sys.executable, "-m", "fusion", "plan", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    parts = {part["name"]: part["tensors"] for part in json.loads(done.stdout)["parts"]}
    assert parts["glue.bert_fused"] == {"loaded": 40, "ignored": 0}
    assert parts["encoders.bert.model"]["ignored"] == 2
