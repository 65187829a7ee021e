"""A lock names what changed: a tensor, a rule, a version, a host that was trained meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fusion.errors import RecipeError
from fusion.lock import check_lock, differences, lock_path, write_lock
from fusion.recipe import Recipe
from fusion.vocabulary import read_vocabulary

RecipeMaker = Callable[..., Recipe]


@pytest.fixture
def locked(
    make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path
) -> tuple[Recipe, Path, RecipeMaker]:
    """A recipe with its encoder in `bert` beside it, its file, and its lock."""
    shutil.copytree(bert_dir, tmp_path / "bert")
    recipe = make_recipe(encoders={"bert": {"source": str(tmp_path / "bert")}})
    write_lock(recipe, tmp_path / "recipe.yaml")
    return recipe, tmp_path / "recipe.yaml", make_recipe


def refused(recipe: Recipe, file: Path) -> list[str]:
    with pytest.raises(RecipeError) as error:
        check_lock(recipe, file)
    place = f"{lock_path(file)}: "
    lines = str(error.value).split("\n")
    assert all(line.startswith(place) for line in lines)
    return [line.removeprefix(place) for line in lines]


def test_what_has_not_changed_is_let_through(locked: tuple[Recipe, Path, RecipeMaker]) -> None:
    recipe, file, _ = locked
    check_lock(recipe, file)
    assert lock_path(file).name == "recipe.yaml.lock"


def test_two_layers_of_equal_shape_that_were_swapped_are_named(
    locked: tuple[Recipe, Path, RecipeMaker],
) -> None:
    recipe, file, _ = locked
    weights = file.parent / "bert" / "model.safetensors"
    state = load_file(weights)
    one, two = (f"encoder.layer.{i}.output.dense.weight" for i in (0, 1))
    state[one], state[two] = state[two], state[one]
    save_file(state, weights, metadata={"format": "pt"})
    lines = refused(recipe, file)
    assert [line.split(": ")[0] for line in lines] == [
        f"parts.encoders.bert.model..tensors.{name}" for name in (one, two)
    ]


def test_another_setting_is_named(locked: tuple[Recipe, Path, RecipeMaker]) -> None:
    recipe, file, _ = locked
    other = recipe.model_copy(update={"seed": 5})
    assert [line.split(":")[0] for line in refused(other, file)] == ["recipe"]


def test_another_library_version_is_named(locked: tuple[Recipe, Path, RecipeMaker]) -> None:
    recipe, file, _ = locked
    content = json.loads(lock_path(file).read_text())
    content["versions"]["torch"] = "1.0"
    lock_path(file).write_text(json.dumps(content))
    (line,) = refused(recipe, file)
    assert line.startswith('versions.torch: was "1.0", is "')


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 99}'])
def test_a_file_that_is_no_lock_is_one_message(
    locked: tuple[Recipe, Path, RecipeMaker], text: str
) -> None:
    recipe, file, _ = locked
    lock_path(file).write_text(text)
    (line,) = refused(recipe, file)
    assert line.startswith("not a lock: ")


def test_a_recipe_without_a_lock_says_how_to_write_one(
    locked: tuple[Recipe, Path, RecipeMaker],
) -> None:
    recipe, file, _ = locked
    lock_path(file).unlink()
    (line,) = refused(recipe, file)
    assert "no such file; fusion plan" in line and "--lock" in line


def test_differences_go_down_to_the_value() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "gone": 0}
    new = {"a": {"b": 2, "c": [1, 3]}, "new": [0]}
    assert differences(old, new) == [
        "a.b: was 1, is 2",
        "a.c[1]: was 2, is 3",
        "gone: is gone; it was 0",
        "new: is new: [0]",
    ]
    assert differences(old, old) == []


RULE = {"from": "embeddings.word_embeddings.weight"}


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_config_or_tokenizer_that_changed_is_named(
    locked: tuple[Recipe, Path, RecipeMaker], file: str
) -> None:
    recipe, place, _ = locked
    changed = place.parent / "bert" / file
    changed.write_text(changed.read_text() + "\n")
    (line,) = refused(recipe, place)
    assert line.startswith(f"parts.encoders.bert.model..beside.{changed}: was ")


def test_a_vocabulary_and_the_code_of_a_function_in_a_rule_are_locked(
    make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bert_dir, tmp_path / "bert")
    old, code = tmp_path / "old.txt", tmp_path / "users_of_a_lock.py"
    old.write_text("\n".join(read_vocabulary(str(bert_dir))) + "\n")
    code.write_text("def same(tensor):\n    return tensor\n")
    monkeypatch.syspath_prepend(tmp_path)
    ops = [
        {"vocabulary": {"old": str(old), "new": str(tmp_path / "bert")}},
        {"function": "users_of_a_lock:same"},
    ]
    rules = {RULE["from"]: RULE | {"ops": ops}}
    recipe = make_recipe(encoders={"bert": {"source": str(tmp_path / "bert"), "rules": rules}})
    write_lock(recipe, tmp_path / "recipe.yaml")
    check_lock(recipe, tmp_path / "recipe.yaml")
    for changed in (old, code):
        before = changed.read_text()
        changed.write_text(before + "# new\n")
        (line,) = refused(recipe, tmp_path / "recipe.yaml")
        assert line.startswith(f"parts.encoders.bert.model..beside.{changed}: was ")
        changed.write_text(before)


def test_the_tokenizer_of_a_host_is_locked_beside_its_config(
    make_recipe: RecipeMaker, host_dirs: dict[str, Path], tokenizer_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(host_dirs["bart"], tmp_path / "bart")
    shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    host = {"source": str(tmp_path / "bart"), "tokenizer": str(tmp_path / "tokenizer")}
    recipe = make_recipe(host_settings=host)
    write_lock(recipe, tmp_path / "recipe.yaml")
    for changed in (tmp_path / "tokenizer" / "vocab.json", tmp_path / "bart" / "config.json"):
        before = changed.read_bytes()
        changed.write_bytes(before + b"\n")
        (line,) = refused(recipe, tmp_path / "recipe.yaml")
        assert line.startswith(f"parts.host..beside.{changed}: was ")
        changed.write_bytes(before)
