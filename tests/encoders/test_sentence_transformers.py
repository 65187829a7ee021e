"""A sentence-transformers directory is an encoder: its transformer's folder and its prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fusion.composition import compose
from fusion.encoders.sentence_transformers import default_prompt, transformer_directory
from fusion.errors import SourceError
from fusion.processor import FusionProcessor
from fusion.saved import save_model

TRANSFORMER = "sentence_transformers.models.Transformer"
POOLING = "sentence_transformers.models.Pooling"


def modules(folder: str, kind: str = TRANSFORMER) -> list[dict[str, Any]]:
    return [
        {"idx": 0, "name": "0", "path": folder, "type": kind},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": POOLING},
    ]


def sentence_model(bert: Path, root: Path, folder: str, prompts: Any = None) -> Path:
    shutil.copytree(bert, root / folder if folder else root)
    (root / "1_Pooling").mkdir()
    (root / "modules.json").write_text(json.dumps(modules(folder)))
    if prompts is not None:
        (root / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return root


@pytest.mark.parametrize("folder", ["", "0_Transformer"])
def test_the_transformer_is_found_in_the_root_or_in_its_folder_and_the_prompt_is_read(
    make_recipe: Any, bert_dir: Path, tmp_path: Path, folder: str
) -> None:
    prompts = {"prompts": {"query": "the old ", "passage": "x"}, "default_prompt_name": "query"}
    root = sentence_model(bert_dir, tmp_path / "model", folder, prompts)
    assert transformer_directory(root) == root / folder
    composition = compose(make_recipe(encoders={"bert": {"source": str(root)}}))
    tokenizer = AutoTokenizer.from_pretrained(bert_dir)
    expected = tokenizer("the old cat sleeps")["input_ids"]
    batch = composition.processor(["cat sleeps"])
    assert batch["bert_input_ids"].tolist() == [expected]
    model = AutoModel.from_pretrained(bert_dir).eval()
    with torch.no_grad():
        states = composition.model.memories(batch)["bert"].states
        plain = model(input_ids=torch.tensor([expected])).last_hidden_state
    assert torch.allclose(states, plain, atol=1e-6)
    save_model(composition.model, tmp_path / "saved", composition.processor)
    again = FusionProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(["cat sleeps"])["bert_input_ids"], batch["bert_input_ids"])


def test_a_plain_directory_is_its_own_transformer_and_has_no_prompt(bert_dir: Path) -> None:
    assert transformer_directory(bert_dir) == bert_dir
    assert default_prompt(bert_dir) == ""


def test_prompts_without_a_default_are_not_put_before_a_text(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert default_prompt(tmp_path) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("{}", "no Transformer among its modules: none"),
        ('[{"idx": 0}]', "not a list of modules"),
        (json.dumps(modules("", POOLING)), "no Transformer among its modules: .*Pooling"),
        (json.dumps(modules("0_Transformer")), "folder '0_Transformer' is not there"),
        (json.dumps(modules("../outside")), "folder '../outside' is not there"),
    ],
)
def test_modules_that_lead_nowhere_are_one_clear_error(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "model" / "modules.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        transformer_directory(tmp_path / "model")


def test_a_default_prompt_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    settings = {"prompts": {"passage": "passage: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(SourceError, match='default_prompt_name "query"; the prompts are: passage'):
        default_prompt(tmp_path)
