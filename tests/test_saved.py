"""A saved model comes back bit for bit; a changed byte is found by tensor name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion.composition import compose
from fusion.errors import FusionError, LedgerError, ModelError, SourceError, WarmStartError
from fusion.export import export
from fusion.recipe import Recipe
from fusion.saved import find_model, load_model, read_ledger, save_model
from fusion.verify import verify_model

RecipeMaker = Callable[..., Recipe]
TENSOR = "encoder.layer.0.output.dense.weight"


@pytest.fixture
def saved(make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path) -> Path:
    """A model saved in full, whose encoder's source lies in `bert` beside it."""
    return save(make_recipe, bert_dir, tmp_path, full=True)


@pytest.fixture
def delta(make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path) -> Path:
    """The same, saved without what its sources have."""
    return save(make_recipe, bert_dir, tmp_path, full=False)


def save(make_recipe: RecipeMaker, bert_dir: Path, folder: Path, *, full: bool) -> Path:
    shutil.copytree(bert_dir, folder / "bert")
    composed = compose(make_recipe(encoders={"bert": {"source": str(folder / "bert")}}))
    save_model(composed.model, folder / "model", composed.processor, full=full)
    return folder / "model"


def flip_a_byte(file: Path, name: str) -> None:
    """Change the lowest bit of one tensor's first byte, in place."""
    raw = bytearray(file.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    start = json.loads(raw[8 : 8 + size])[name]["data_offsets"][0]
    raw[8 + size + start] ^= 1
    file.write_bytes(raw)


def test_a_saved_model_loads_bit_for_bit_and_verifies(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    composed = compose(make_recipe(method="bert-fused"))
    save_model(composed.model, tmp_path / "model", composed.processor)
    loaded = load_model(tmp_path / "model")
    before, after = composed.model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.ledger.entries == composed.model.ledger.entries
    assert verify_model(tmp_path / "model") == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_composed_or_loaded_in_inference_mode_can_be_trained(
    make_recipe: RecipeMaker, sentences: list[str], tmp_path: Path
) -> None:
    with torch.inference_mode():
        composed = compose(make_recipe())
        save_model(composed.model, tmp_path / "model", composed.processor)
        loaded = load_model(tmp_path / "model")
    for model in (composed.model, loaded):
        batch = composed.processor(sentences, sentences)
        model.train()(**batch).loss.backward()
        assert any(p.grad is not None for p in model.host.parameters())
        assert not any(t.is_inference() for t in model.state_dict().values())


def test_a_flipped_byte_in_the_saved_encoder_is_found(saved: Path) -> None:
    flip_a_byte(saved / "encoders" / "bert" / "model.safetensors", TENSOR)
    (problem,) = verify_model(saved)
    assert problem.startswith(f"encoders.bert.model.{TENSOR}: bytes differ from what was saved")


def test_a_flipped_byte_in_the_encoders_source_is_found(saved: Path) -> None:
    flip_a_byte(saved.parent / "bert" / "model.safetensors", TENSOR)
    (problem,) = verify_model(saved)
    assert problem.startswith(f"encoders.bert.model.{TENSOR}: ")
    assert problem.endswith("is no longer what was loaded")


def test_a_flipped_byte_in_host_and_glue_is_found(saved: Path) -> None:
    flip_a_byte(saved / "host" / "model.safetensors", "model.encoder.layers.0.fc1.weight")
    glue = saved / "glue.safetensors"
    name = sorted(load_file(glue))[0]
    flip_a_byte(glue, name)
    found = {problem.split(":")[0] for problem in verify_model(saved)}
    assert found == {"host.model.encoder.layers.0.fc1.weight", name}


def test_a_source_that_is_gone_does_not_matter(saved: Path) -> None:
    shutil.rmtree(saved.parent / "bert")
    assert verify_model(saved) == []


def test_a_missing_and_an_extra_tensor_are_found_and_the_model_does_not_load(saved: Path) -> None:
    glue = saved / "glue.safetensors"
    state = load_file(glue)
    gone = sorted(state)[0]
    state["glue.gated.extra"] = state.pop(gone)
    save_file(state, glue)
    problems = "\n".join(verify_model(saved))
    assert f"{gone}: was saved, but is not in" in problems
    assert "glue.gated.extra: in " in problems
    with pytest.raises(WarmStartError) as error:
        load_model(saved)
    assert gone in str(error.value) and "extra" in str(error.value)


@pytest.mark.parametrize("part", ["glue", "host/model", "encoders/bert/model"])
def test_a_truncated_file_of_a_saved_model_is_refused_by_name(saved: Path, part: str) -> None:
    file = saved / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(SourceError, match="not a whole safetensors file"):
        load_model(saved)
    with pytest.raises(SourceError, match="not a whole safetensors file"):
        verify_model(saved)


def test_saving_over_something_else_is_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("years of work")
    with pytest.raises(ModelError, match="exists and is not a saved model"):
        save_model(load_model(saved), other)
    assert [path.name for path in other.iterdir()] == ["chapter1.txt"]


def test_saving_over_a_saved_model_replaces_it_whole(saved: Path) -> None:
    (saved / "stale.txt").touch()
    save_model(load_model(saved), saved, full=True)
    assert not (saved / "stale.txt").exists()
    assert verify_model(saved) == []
    assert sorted(p.name for p in saved.parent.iterdir()) == ["bert", "model"]


def test_a_place_without_a_model_is_refused(tmp_path: Path, bert_dir: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="is not a saved model"):
        find_model(tmp_path)
    with pytest.raises(LedgerError, match=r"no ledger\.json"):
        verify_model(bert_dir)
    with pytest.raises(LedgerError, match="no such file"):
        read_ledger(bert_dir)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_a_broken_ledger_is_refused_by_file(saved: Path, text: str) -> None:
    (saved / "ledger.json").write_text(text)
    with pytest.raises(FusionError, match=r"ledger\.json"):
        verify_model(saved)


# Without what the sources have


def weights(model: Path) -> list[str]:
    return sorted(str(path.relative_to(model)) for path in model.rglob("*.safetensors"))


def test_parts_that_are_bit_for_bit_their_source_are_saved_without_weights(
    delta: Path,
) -> None:
    assert weights(delta) == ["glue.safetensors"]


def test_a_model_saved_without_weights_comes_back_bit_for_bit(
    make_recipe: RecipeMaker, bert_dir: Path, tmp_path: Path
) -> None:
    composed = compose(make_recipe())
    save_model(composed.model, tmp_path / "model", composed.processor)
    loaded = load_model(tmp_path / "model")
    before, after = composed.model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert verify_model(tmp_path / "model") == []
    save_model(loaded, tmp_path / "again", composed.processor)
    assert weights(tmp_path / "again") == ["glue.safetensors"]


def test_a_model_saved_in_full_and_then_without_weights_still_loads(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    composed = compose(make_recipe())
    save_model(composed.model, tmp_path / "model", composed.processor, full=True)
    save_model(composed.model, tmp_path / "model", composed.processor)
    assert weights(tmp_path / "model") == ["glue.safetensors"]
    before, after = composed.model.state_dict(), load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert verify_model(tmp_path / "model") == []


def test_a_part_that_was_trained_is_saved_whole_and_the_frozen_one_is_not(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    composed = compose(make_recipe())
    with torch.no_grad():
        composed.model.host.model.encoder.layers[0].fc1.weight[0, 0] += 1
    save_model(composed.model, tmp_path / "model", composed.processor)
    assert weights(tmp_path / "model") == ["glue.safetensors", "host/model.safetensors"]
    loaded = load_model(tmp_path / "model")
    assert torch.equal(
        loaded.host.model.encoder.layers[0].fc1.weight,
        composed.model.host.model.encoder.layers[0].fc1.weight,
    )
    assert verify_model(tmp_path / "model") == []


def test_a_source_that_moved_is_found_where_the_user_says(delta: Path) -> None:
    (delta.parent / "bert").rename(delta.parent / "elsewhere")
    with pytest.raises(ModelError, match=r"^bert: was saved without.*--source bert=DIR"):
        load_model(delta)
    moved = {"bert": str(delta.parent / "elsewhere")}
    assert verify_model(delta, moved) == []
    assert (export(delta, "hf", delta.parent / "host alone", moved) / "config.json").is_file()
    model = load_model(delta, moved)
    assert model.encoders["bert"] is not None
    with pytest.raises(ModelError, match=r'no part "brt"; nearest: "bert"'):
        load_model(delta, {"brt": str(delta.parent / "elsewhere")})
    flip_a_byte(delta.parent / "elsewhere" / "model.safetensors", TENSOR)
    with pytest.raises(ModelError, match=rf"{TENSOR}: .*/elsewhere: .*no longer what was"):
        load_model(delta, moved)


def test_a_source_that_changed_is_refused_by_tensor(delta: Path) -> None:
    flip_a_byte(delta.parent / "bert" / "model.safetensors", TENSOR)
    with pytest.raises(ModelError, match=rf"encoders\.bert\.model\.{TENSOR}: .*no longer what was"):
        load_model(delta)
    (problem,) = verify_model(delta)
    assert problem.startswith(f"encoders.bert.model.{TENSOR}: ")
