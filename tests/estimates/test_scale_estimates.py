"""Caches, updates and checkpoints as estimated are those that come about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.composition import compose
from fusion.data import read_corpus, tokenise
from fusion.estimates.hardware import TABLE
from fusion.estimates.memory import planned_model
from fusion.estimates.scale import (
    CACHED,
    HOST,
    ON_THE_FLY,
    Scale,
    checkpoint_bytes,
    scale_of,
    updates,
)
from fusion.memory_cache.formats import FORMATS
from fusion.memory_cache.prepare import Hardware, prepare
from fusion.recipe import CorpusSpec, MemoryCacheSpec, Recipe, StageSpec, load_recipe
from fusion.saved import save_model

RecipeMaker = Callable[..., Recipe]
CPU, GPU = TABLE["cpu2"], TABLE["h100"]


@pytest.fixture
def cached(make_recipe: RecipeMaker, sentences: list[str], tmp_path: Path) -> Recipe:
    path = tmp_path / "text"
    path.write_text("\n".join(sentences * 2) + "\n", encoding="utf-8")
    spec = CorpusSpec(source=str(path), target=str(path))
    recipe = make_recipe()
    data = recipe.data.model_copy(update={"train": spec, "batch_tokens": 64})
    cache = MemoryCacheSpec(dir=str(tmp_path / "memory"), format="bf16")
    return recipe.model_copy(update={"data": data, "memory_cache": cache})


@pytest.mark.parametrize("format", list(FORMATS))
def test_cache_bytes_are_those_of_a_cache_that_is_written(
    cached: Recipe, format: Any, tmp_path: Path
) -> None:
    spec = MemoryCacheSpec(dir=str(tmp_path / "memory"), format=format)
    recipe = cached.model_copy(update={"memory_cache": spec})
    planned = scale_of(recipe, planned_model(recipe), "recipe", CPU).caches["bert"]
    composition = compose(recipe)
    rows, _ = tokenise(
        read_corpus(recipe.data.train, recipe.data, "data.train"), composition.processor
    )
    hardware = Hardware(torch.device("cpu"), bf16=False)
    report = prepare(recipe, composition, rows, hardware, lambda text: None).reports["bert"]
    (block,) = (tmp_path / "memory").rglob("*.block")
    head = 64  # magic, counts and checksum
    assert planned.bytes[format] + head == block.stat().st_size
    assert report.sentences == 3  # each stands there twice


@pytest.mark.parametrize("trained", [False, True])
def test_checkpoint_bytes_are_those_of_a_saved_model(
    make_recipe: RecipeMaker, tmp_path: Path, trained: bool
) -> None:
    recipe = make_recipe(encoder={"freeze": not trained})
    planned = checkpoint_bytes(planned_model(recipe), 8)
    composition = compose(recipe)
    with torch.no_grad():
        for parameter in composition.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    for name in ("model", "full"):
        place = tmp_path / name
        save_model(composition.model, place, full=name == "full")
        files = [path.stat().st_size for path in place.rglob("*.safetensors")]
        heads = sum(files) - planned[name]
        assert 0 < heads < 250 * len(composition.ledger)
    parameters = sum(p.numel() for p in composition.model.parameters() if p.requires_grad)
    assert planned["training"] == planned["model"] + 8 * parameters


def test_updates_follow_passes_steps_accumulation_and_stages(make_recipe: RecipeMaker) -> None:
    def with_train(**arguments: Any) -> Recipe:
        recipe = make_recipe()
        train = type(recipe.train).model_validate(arguments)
        return recipe.model_copy(update={"train": train})

    assert updates(with_train(), 100) == 300  # transformers' three passes
    assert updates(with_train(num_train_epochs=2), 100) == 200
    assert updates(with_train(num_train_epochs=2, gradient_accumulation_steps=4), 100) == 50
    assert updates(with_train(max_steps=7), 100) == 7
    stages = [StageSpec(train=["glue"], updates=5), StageSpec(train="all", passes=0.5)]
    assert updates(make_recipe().model_copy(update={"stages": stages}), 100) == 55


def test_a_larger_corpus_costs_in_proportion(cached: Recipe) -> None:
    model = planned_model(cached)
    one, ten = (scale_of(cached, model, size, CPU) for size in ("1M", "10M"))
    assert one.caches["bert"].bytes["q3"] * 10 == pytest.approx(ten.caches["bert"].bytes["q3"])
    assert one.encode_seconds * 10 == pytest.approx(ten.encode_seconds, rel=1e-3)
    assert one.training_seconds * 10 == pytest.approx(ten.training_seconds, rel=1e-3)
    assert one.steps == ten.steps


def test_a_step_is_estimated_for_every_way_to_compute_it(
    cached: Recipe, make_recipe: RecipeMaker
) -> None:
    found = scale_of(cached, planned_model(cached), "recipe", CPU)
    assert list(found.steps) == [HOST, ON_THE_FLY, CACHED] and found.recipe_step == CACHED
    seconds = {way: step.seconds for way, step in found.steps.items()}
    assert seconds[HOST] < seconds[CACHED] < seconds[ON_THE_FLY]
    assert "encoders.bert" not in found.steps[CACHED].flops
    trained = make_recipe(encoder={"freeze": False})
    found = scale_of(trained, planned_model(trained), "29k", CPU)
    assert list(found.steps) == [HOST, ON_THE_FLY] and found.caches == {}
    alone = make_recipe(encoders={}, glue=[])
    found = scale_of(alone, planned_model(alone), "29k", CPU)
    assert list(found.steps) == [HOST] and found.recipe_step == HOST
    assert found.encode_seconds == 0


def frozen_base(base_recipe: Path, format: str, *more: str, disk: float = GPU.disk) -> Scale:
    """A frozen encoder of 768 wide states on WMT14, on a GPU."""
    cache = f"memory_cache={{format: {format}}}"
    recipe = load_recipe(base_recipe, ["encoders.bert.freeze=true", cache, *more])
    return scale_of(recipe, planned_model(recipe), "wmt14", replace(GPU, disk=disk))


def test_a_gpus_cache_is_coded_on_a_cpu_and_that_takes_time_by_format(base_recipe: Path) -> None:
    found = {format: frozen_base(base_recipe, format) for format in ("bf16", "int8", "q3")}
    caches = {format: scale.caches["bert"] for format, scale in found.items()}
    without_disk = {f: one.seconds - one.bytes[f] / GPU.disk for f, one in caches.items()}
    assert without_disk["bf16"] < without_disk["int8"] < without_disk["q3"]
    values = caches["q3"].tokens * 768
    added = without_disk["q3"] - without_disk["bf16"]
    assert 40e-9 < added / values < 90e-9  # two cores: 41,000 tokens a second of 384 values
    assert added > 1800  # half an hour and more
    steps = {format: scale.steps[CACHED].seconds for format, scale in found.items()}
    assert steps["q3"] > steps["int8"]
    assert any("coded on the CPU" in note for note in found["q3"].notes)


@pytest.mark.parametrize("format", ["bf16", "fp32"])
def test_memory_is_encoded_in_bf16_only_where_training_is(base_recipe: Path, format: str) -> None:
    full = frozen_base(base_recipe, format).caches["bert"].seconds
    half = frozen_base(base_recipe, format, "train.bf16=true").caches["bert"].seconds
    assert half < full / 1.5


def test_what_does_not_stay_in_ram_is_read_from_disk_in_every_pass(base_recipe: Path) -> None:
    fast, slow = (frozen_base(base_recipe, "fp32", disk=disk) for disk in (1e9, 5e8))
    on_disk = fast.caches["bert"].bytes["fp32"]
    assert on_disk > 2 * GPU.kept_files
    batch = fast.batch.sentences * fast.batch.encoders["bert"] * 4 * 768
    added = batch * (1 - GPU.kept_files / on_disk) / 1e9
    assert slow.steps[CACHED].seconds - fast.steps[CACHED].seconds == pytest.approx(added)
    assert any("is read from disk in every pass" in note for note in fast.notes)
    capped = frozen_base(base_recipe, "fp32", "memory_cache.max_bytes=10GB")
    assert capped.cached == pytest.approx(10e9 / on_disk)
    assert not any("from disk" in note for note in capped.notes)
