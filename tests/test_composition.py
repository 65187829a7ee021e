"""A recipe composes with every tensor accounted for, or one error lists all that are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig

from fusion.composition import compose, plan
from fusion.errors import RecipeError, WarmStartError
from fusion.ledger import Origin
from fusion.recipe import Recipe

RecipeMaker = Callable[..., Recipe]
EncoderMaker = Callable[..., Path]
Edit = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def edited(directory: Path, copy: Path, edit: Edit) -> Path:
    """A copy of a transformers directory with other tensors."""
    shutil.copytree(directory, copy)
    state = edit(load_file(copy / "model.safetensors"))
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def recipe_file(recipe: Recipe, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    return path


def fusion(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fusion", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def break_three(state: dict[str, Tensor]) -> dict[str, Tensor]:
    del state["model.decoder.layers.0.fc1.weight"]
    renamed = state.pop("model.encoder.layers.1.fc2.weight")
    state["model.encoder.layers.1.fc_2.weight"] = renamed
    turned = state["model.encoder.layers.0.fc1.weight"].T
    state["model.encoder.layers.0.fc1.weight"] = turned
    return state


def test_build_lists_missing_renamed_and_transposed_tensors_at_once_and_writes_nothing(
    make_recipe: RecipeMaker, host_dirs: dict[str, Path], tmp_path: Path
) -> None:
    host = edited(host_dirs["marian"], tmp_path / "host", break_three)
    recipe = recipe_file(make_recipe(host_settings={"source": str(host)}), tmp_path)
    done = fusion("build", str(recipe), "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    lines = done.stderr.strip().removeprefix("fusion: ").split("\n")

    def line(start: str, text: str = "") -> str:
        return next(found for found in lines if found.startswith(start) and text in found)

    missing = line("host.model.decoder.layers.0.fc1.weight: would start from nothing")
    transposed = line("host.model.encoder.layers.0.fc1.weight: shape")
    renamed = line("host.model.encoder.layers.1.fc2.weight: would start from nothing")
    left_over = line("host.(nothing)", "fc_2.weight, which no tensor takes")
    assert lines.pop(0) == f"{recipe}:"
    assert len(lines) == 4
    assert 'nearest: "model.encoder.layers.0.fc1.weight"' in missing
    assert "transposed?" in transposed
    assert 'nearest: "model.encoder.layers.1.fc_2.weight"' in renamed
    assert 'nearest: "model.encoder.layers.1.fc2.weight"' in left_over
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "recipe.yaml"]


def test_problems_of_two_parts_are_reported_together(
    make_recipe: RecipeMaker, host_dirs: dict[str, Path], bert_dir: Path, tmp_path: Path
) -> None:
    def drop(name: str) -> Edit:
        return lambda state: {key: value for key, value in state.items() if key != name}

    host = edited(host_dirs["marian"], tmp_path / "host", drop("model.encoder.layers.0.fc1.weight"))
    bert = edited(bert_dir, tmp_path / "bert", drop("embeddings.LayerNorm.weight"))
    recipe = make_recipe(
        host_settings={"source": str(host)}, encoders={"bert": {"source": str(bert)}}
    )
    with pytest.raises(WarmStartError) as error:
        compose(recipe)
    assert "host.model.encoder.layers.0.fc1.weight: would start" in str(error.value)
    assert "encoders.bert.model.embeddings.LayerNorm.weight: would start" in str(error.value)
    assert plan(recipe).problems == str(error.value).split("\n")[1:]
    assert str(error.value).startswith(f"{recipe.file}:\n")


@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
@pytest.mark.parametrize("method", ["gated", "bert-fused"])
def test_a_plan_counts_what_compose_does(make_recipe: RecipeMaker, host: str, method: str) -> None:
    recipe = make_recipe(host, method=method)
    planned, composed = plan(recipe), compose(recipe)
    assert planned.problems == []
    ledger = composed.ledger
    for part in planned.parts:
        own = ledger.part(part.name + ".")
        counts = dict(part.tensors)
        counts.pop("ignored")
        assert counts == dict(own.counts()), part.name
        assert (part.trainable, part.frozen) == own.parameters()
    assert sum(sum(p.tensors.values()) - p.tensors["ignored"] for p in planned.parts) == len(ledger)


def test_only_glue_starts_from_nothing(make_recipe: RecipeMaker) -> None:
    ledger = compose(make_recipe()).ledger
    fresh = [entry.name for entry in ledger if entry.origin is Origin.INITIALISED]
    assert fresh and all(name.startswith("glue.") for name in fresh)


def test_plan_exits_0_and_prints_json(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    done = fusion("plan", str(recipe_file(make_recipe(), tmp_path)), "--json")
    assert done.returncode == 0, done.stderr
    parts = {part["name"]: part for part in json.loads(done.stdout)["parts"]}
    assert set(parts) == {"host", "encoders.bert.model", "glue"}
    assert parts["encoders.bert.model"]["trainable"] == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_head_in_the_encoders_file_asks_for_an_ignore_rule_and_then_loads(
    make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path
) -> None:
    def add_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return state | {"classifier.weight": torch.ones(2, 24), "pooler.dense.bias": torch.ones(24)}

    bert = str(edited(bert_dir, tmp_path / "bert", add_head))
    with pytest.raises(WarmStartError) as error:
        compose(make_recipe(encoders={"bert": {"source": bert}}))
    assert "\n" not in str(error.value)
    assert 'ignore: {"classifier.{rest*}": "the reason"}' in str(error.value)

    ignore = {"classifier.{rest*}": "a head of another task"}
    ledger = compose(make_recipe(encoders={"bert": {"source": bert, "ignore": ignore}})).ledger
    assert ledger.ignored["encoders.bert.model.classifier.weight"] == "a head of another task"
    assert "encoders.bert.model.pooler.dense.bias" in ledger.ignored


def old_name(name: str) -> str:
    new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return "bert." + new.replace("LayerNorm.bias", "LayerNorm.beta")


def test_the_bert_prefix_and_gamma_and_beta_load(
    make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path
) -> None:
    bert = edited(
        bert_dir, tmp_path / "bert", lambda state: {old_name(n): t for n, t in state.items()}
    )
    model = compose(make_recipe(encoders={"bert": {"source": str(bert)}})).model
    plain = load_file(bert_dir / "model.safetensors")
    loaded = model.encoders["bert"].model.state_dict()
    for name, tensor in plain.items():
        if "pooler" not in name:
            assert torch.equal(loaded[name], tensor), name
    entry = model.ledger["encoders.bert.model.embeddings.LayerNorm.weight"]
    assert entry.key == "bert.embeddings.LayerNorm.gamma" and entry.operations == ("rename",)


def test_a_file_with_a_task_head_needs_a_reason_to_leave_it_out_and_then_is_an_encoder(
    make_recipe: RecipeMaker, make_encoder: EncoderMaker
) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    tagger = make_encoder("BertForTokenClassification", intermediate_size=32, **sizes)
    encoder: dict[str, Any] = {"source": str(tagger)}
    with pytest.raises(WarmStartError) as error:
        compose(make_recipe(encoders={"bert": encoder}))
    _, *lines = str(error.value).split("\n")
    assert len(lines) == 2
    for line in lines:
        assert "has classifier." in line
        assert line.endswith('to leave it out: ignore: {"classifier.{rest*}": "the reason"}')
    encoder["ignore"] = {"classifier.{rest*}": "a head for another task"}
    ledger = compose(make_recipe(encoders={"bert": encoder})).ledger
    name = "encoders.bert.model.encoder.layer.0.output.dense.weight"
    assert ledger[name].key == "bert.encoder.layer.0.output.dense.weight"
    left_out = {n: why for n, why in ledger.ignored.items() if "classifier" in n}
    assert set(left_out.values()) == {"a head for another task"} and len(left_out) == 2


def test_rules_rename_and_an_unused_rule_is_refused(
    make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path
) -> None:
    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("encoder.layer.", "blocks."): t for name, t in state.items()}

    bert = str(edited(bert_dir, tmp_path / "bert", rename))
    rules = {"encoder.layer.{i}.{p*}": "blocks.{i}.{p*}"}
    encoder = {"source": bert, "rules": rules}
    ledger = compose(make_recipe(encoders={"bert": encoder})).ledger
    name = "encoder.layer.1.output.dense.weight"
    assert ledger[f"encoders.bert.model.{name}"].key == "blocks.1.output.dense.weight"
    unused = {"source": bert, "rules": rules | {"nothing.{p}": "blocks.{p}"}}
    with pytest.raises(WarmStartError, match="matches no tensor"):
        compose(make_recipe(encoders={"bert": unused}))


def test_a_dtype_that_would_lose_precision_is_refused(
    make_recipe: RecipeMaker, host_dirs: dict[str, Path], tmp_path: Path
) -> None:
    name = "model.encoder.layers.0.fc1.bias"
    host = edited(
        host_dirs["marian"], tmp_path / "host", lambda state: state | {name: state[name].double()}
    )
    with pytest.raises(WarmStartError, match=f"host.{name}: dtype .* would lose precision"):
        compose(make_recipe(host_settings={"source": str(host)}))


@pytest.mark.parametrize("name", ["keys", "training", "pop"])
def test_a_name_that_torch_has_taken_is_refused(make_recipe: RecipeMaker, name: str) -> None:
    recipe = make_recipe()
    glue = recipe.glue[0].model_copy(update={"name": name})
    with pytest.raises(RecipeError, match=rf'glue\[0\]\.name: "{name}" cannot name glue'):
        compose(recipe.model_copy(update={"glue": [glue]}))
    encoders = {name: recipe.encoders["bert"]}
    with pytest.raises(RecipeError, match=f'encoders.{name}: "{name}" cannot name an encoder'):
        compose(recipe.model_copy(update={"encoders": encoders, "glue": []}))


def test_an_unknown_generation_setting_is_refused_with_the_nearest(
    make_recipe: RecipeMaker,
) -> None:
    with pytest.raises(RecipeError, match=r'generate\.num_beam: .*nearest: "num_beams"'):
        compose(make_recipe(generate={"num_beam": 2}))


MEASURE = """
import resource, sys
from fusion.composition import plan
from fusion.recipe import load_recipe
small, big = (load_recipe(path) for path in sys.argv[1:])
assert not plan(small).problems
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert not plan(big).problems
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_plan_reads_no_weights(make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert_dir, folder)
    config = BertConfig.from_pretrained(
        bert_dir, hidden_size=512, num_hidden_layers=16, intermediate_size=2048
    )
    config.save_pretrained(folder)
    model = make_recipe(encoders={"bert": {"source": str(folder)}})
    from fusion.encoders.auto import build_auto_encoder

    with torch.device("meta"):
        shapes = {name: t.shape for name, t in build_auto_encoder(config).state_dict().items()}
    weights = folder / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, weights)
    size = weights.stat().st_size
    assert size > 190e6
    big = recipe_file(model, folder)
    small = recipe_file(make_recipe(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(big)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    weights.unlink()
    assert done.returncode == 0, done.stderr
    grown: Any = int(done.stdout)
    assert grown < size / 4
