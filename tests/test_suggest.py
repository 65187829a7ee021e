"""Rules proposed for a part of a recipe load what they are pasted for, and repeat nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_cli import run_all

from fusion.checkpoints.directory import open_source
from fusion.composition import compose
from fusion.errors import RecipeError, WarmStartError
from fusion.keymap import Pattern
from fusion.recipe import Recipe, load_recipe
from fusion.suggest import suggest_for

Rename = Callable[[str], str]


def renamed(directory: Path, place: Path, name: Rename) -> Path:
    """A copy of a model's directory with other tensor names."""
    shutil.copytree(directory, place)
    tensors = load_file(place / "model.safetensors")
    save_file({name(old): tensor for old, tensor in tensors.items()}, place / "model.safetensors")
    return place


def write(folder: Path, host: Any, bert: Any) -> Path:
    raw = {
        "name": "t",
        "output": "out",
        "host": {"source": str(host)} if isinstance(host, Path) else host,
        "encoders": {"bert": {"source": str(bert)} if isinstance(bert, Path) else bert},
        "glue": [{"method": "gated", "encoder": "bert"}],
        "data": {"train": {"synthetic": "train"}, "dev": {"synthetic": "dev"}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def pasted(path: Path, text: str) -> Recipe:
    """The recipe with a proposal merged into it."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in yaml.safe_load(text).items():
        if key == "host":
            raw["host"] |= value
        else:
            raw["encoders"]["bert"] |= value["bert"]
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_recipe(path)


@pytest.fixture
def torn(tmp_path: Path, host_dirs: dict[str, Path], bert_dir: Path) -> tuple[Path, Path]:
    """Host and encoder under names that nobody knows."""
    host = renamed(host_dirs["bart"], tmp_path / "host", lambda n: f"net.{n}".replace("fc1", "up"))
    bert = renamed(bert_dir, tmp_path / "bert", lambda n: n.replace("encoder.layer", "stack.block"))
    return host, bert


def test_pasted_rules_of_host_and_encoder_load_every_tensor_bit_for_bit(
    tmp_path: Path, torn: tuple[Path, Path], host_dirs: dict[str, Path], bert_dir: Path
) -> None:
    path = write(tmp_path, *torn)
    with pytest.raises(WarmStartError):
        compose(load_recipe(path))
    recipe = pasted(path, suggest_for(load_recipe(path)).to_yaml())
    recipe = pasted(path, suggest_for(recipe, "bert").to_yaml())
    model = compose(recipe).model
    straight = compose(load_recipe(write(tmp_path, host_dirs["bart"], bert_dir))).model
    for name, tensor in straight.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_what_the_recipe_says_already_is_not_said_again(
    tmp_path: Path, torn: tuple[Path, Path], bert_dir: Path
) -> None:
    rules = {
        "model.decoder.layers.{i}.{m}_attn.{rest*}": "net.model.decoder.layers.{i}.{m}_attn.{rest*}"
    }
    host = {"source": str(torn[0]), "rules": rules}
    path = write(tmp_path, host, bert_dir)
    proposal = suggest_for(load_recipe(path))
    said = [Pattern(target) for target in proposal.proposal.rules]
    (settled,) = map(Pattern, rules)
    names = load_file(torn[0] / "model.safetensors")
    for name in (name.removeprefix("net.").replace(".up.", ".fc1.") for name in names):
        hits = [pattern for pattern in said if pattern.match(name) is not None]
        assert len(hits) == (0 if settled.match(name) is not None else 1), name
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["host"]["rules"] |= yaml.safe_load(proposal.to_yaml())["host"]["rules"]
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert suggest_for(load_recipe(path)).proposal.rules == {}


def test_another_checkpoint_may_be_named(
    tmp_path: Path, torn: tuple[Path, Path], host_dirs: dict[str, Path], bert_dir: Path
) -> None:
    recipe = load_recipe(write(tmp_path, host_dirs["bart"], bert_dir))
    assert suggest_for(recipe).proposal.rules == {}
    proposal = suggest_for(recipe, "host", open_source(torn[0])).proposal
    assert proposal.rules["model.{s}.layers.{i}.fc1.{p}"] == "net.model.{s}.layers.{i}.up.{p}"
    assert proposal.unmatched_targets == {}


def test_a_part_that_is_not_there_names_those_that_are(
    tmp_path: Path, host_dirs: dict[str, Path], bert_dir: Path
) -> None:
    recipe = load_recipe(write(tmp_path, host_dirs["bart"], bert_dir))
    with pytest.raises(RecipeError, match=r'no part "brt".*bert.*; known: host, bert'):
        suggest_for(recipe, "brt")


def test_the_command_prints_rules_below_the_recipes_own_keys(
    tmp_path: Path, torn: tuple[Path, Path]
) -> None:
    path = write(tmp_path, *torn)
    commands = [
        ["keymap", "suggest", str(path)],
        ["keymap", "suggest", str(path), str(torn[1]), "--part", "bert"],
        ["keymap", "suggest", str(torn[0])],
        ["keymap", "suggest", str(path), "--part", "brt"],
    ]
    (host, bert, alone, wrong), _ = run_all(commands, tmp_path)
    assert host[0] in (0, None)
    assert yaml.safe_load(host[1])["host"]["rules"]
    assert yaml.safe_load(bert[1])["encoders"]["bert"]["rules"]
    assert (alone[0], wrong[0]) == (2, 2)
    assert "say the checkpoint too" in alone[2]
    assert 'no part "brt"' in wrong[2]
