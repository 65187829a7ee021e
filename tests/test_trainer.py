"""The trainer freezes, unfreezes and paces what the recipe says, and saves memory on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from fusion.arguments import training_arguments
from fusion.callbacks import Freezer
from fusion.check import check_model
from fusion.composition import Composition, compose
from fusion.data import tokenise
from fusion.errors import RecipeError
from fusion.recipe import Recipe, validate_recipe
from fusion.train import timetable_of
from fusion.trainer import FusionTrainer

RecipeMaker = Callable[..., Recipe]
TARGETS = ["die katze schläft .", "ein hund sieht die katze .", "der lehrer liest ."]
STAGES = [{"train": ["glue"], "updates": 2}, {"train": "all", "updates": 2}]


@dataclass
class Run:
    """A trainer on a few pairs, in a process of its own making."""

    composition: Composition
    trainer: FusionTrainer
    said: list[str]

    def tensors(self) -> dict[str, Tensor]:
        return {n: t.detach().clone() for n, t in self.composition.model.named_parameters()}

    def steps(self, name: str) -> int:
        """How often the optimizer has updated a tensor."""
        state = self.trainer.optimizer.state
        return int(state.get(self.composition.model.get_parameter(name), {}).get("step", 0))


@pytest.fixture
def start(make_recipe: RecipeMaker, tmp_path: Path, sentences: list[str]) -> Callable[..., Run]:
    """`start(train={...}, stages=[...], **recipe)` -> a Run that has not begun."""

    def make(
        train: dict[str, Any] | None = None,
        stages: list[dict[str, Any]] | None = None,
        **parts: Any,
    ) -> Run:
        raw = make_recipe(**parts).model_dump(mode="json")
        usual = {
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "logging_steps": 1,
            "save_total_limit": 10,
            "disable_tqdm": True,
        }
        raw |= {"train": usual | (train or {}), "stages": stages or [], "output": str(tmp_path)}
        recipe = validate_recipe(raw, Path("test.yaml"))
        composition = compose(recipe)
        pairs = Dataset.from_dict({"source": sentences, "target": TARGETS})
        rows, _ = tokenise(pairs, composition.processor)
        args, smoothing = training_arguments(recipe, composition.model)
        trainer = FusionTrainer(
            composition.model,
            composition.processor,
            args,
            train=rows,
            dev=rows,
            batch_tokens=64,
            learning_rates=recipe.train.learning_rates,
            label_smoothing=smoothing,
            compute_metrics=lambda prediction: {},
        )
        said: list[str] = []
        if (table := timetable_of(recipe, composition.model, trainer)) is not None:
            trainer.follow(Freezer(table, said.append))
        return Run(composition, trainer, said)

    return make


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_a_stage_of_glue_moves_glue_only_and_the_next_all_that_it_names(
    start: Callable[..., Run],
) -> None:
    seen: list[dict[str, Tensor]] = []
    run = start(stages=STAGES, encoder={"freeze": False}, method="bert-fused", drop_net=0.0)
    model, trainer = run.composition.model, run.trainer
    modes: list[tuple[bool, bool, bool]] = []
    real = trainer.compute_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(run.tensors())
        bert = model.encoder_parts["bert"].model
        modes.append((model.host.training, bert.training, model.glue.training))
        return real(*args, **kwargs)

    trainer.compute_loss = watched  # type: ignore[method-assign]
    trainer.train()
    assert {name.partition(".")[0] for name in changed(seen[0], seen[2])} == {"glue"}
    assert {name.partition(".")[0] for name in changed(seen[2], run.tensors())} == {
        *("host", "encoders", "glue")
    }
    assert modes == [(False, False, True)] * 2 + [(True, True, True)] * 2
    assert run.steps("host.model.shared.weight") == 2
    assert all(run.steps(n) == 4 for n, _ in model.named_parameters() if n.startswith("glue."))
    assert [line.partition(";")[0] for line in run.said] == [
        "from update 0 on (glue): trained: glue.bert_fused",
        "from update 2 on (all): trained: encoders.bert, glue.bert_fused, host",
    ]


def test_a_host_frozen_for_a_time_is_as_a_frozen_host(
    start: Callable[..., Run], host_dirs: dict[str, Path]
) -> None:
    frozen = {"source": str(host_dirs["marian"]), "freeze": True}
    staged = start(stages=STAGES[:1], method="bert-fused")
    always = start({"max_steps": 2}, host_settings=frozen, method="bert-fused")
    later = start({"policies": {"host": {"after": 2}}, "max_steps": 3}, method="bert-fused")
    for run in (staged, always):
        run.trainer.train()
    at_two: list[dict[str, Tensor]] = []
    real = later.trainer.compute_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        at_two.append(later.tensors())
        return real(*args, **kwargs)

    later.trainer.compute_loss = watched  # type: ignore[method-assign]
    later.trainer.train()
    assert changed(staged.tensors(), always.tensors()) == set()
    assert changed(at_two[2], always.tensors()) == set()
    assert changed(at_two[2], later.tensors()) >= {"host.model.shared.weight"}


def test_a_part_that_is_frozen_at_first_is_not_dead(
    start: Callable[..., Run], sentences: list[str]
) -> None:
    run = start(stages=STAGES, encoder={"freeze": False})
    batch = run.composition.processor(sentences, TARGETS)
    assert check_model(run.composition.model, batch).problems == []


def test_checkpoints_of_a_stage_hold_what_a_later_one_trains(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start({"save_strategy": "steps", "save_steps": 1}, STAGES, encoder={"freeze": False})
    run.trainer.train()
    end = run.tensors()
    for update in (1, 4):
        run.trainer.read_checkpoint(tmp_path / "checkpoints" / f"checkpoint-{update}")
        assert (changed(end, run.tensors()) == set()) is (update == 4)


def test_an_update_in_which_all_that_is_trained_was_dropped_changes_nothing(
    start: Callable[..., Run],
) -> None:
    glue = [
        {
            "method": "bert-fused",
            "encoder": "bert",
            "drop_net": 1.0,
            "sites": ["decoder.0.cross_attention"],
        }
    ]
    run = start(stages=[{"train": ["glue"], "updates": 8}], glue=glue)
    run.trainer.train()
    name = next(n for n, _ in run.composition.model.named_parameters() if n.startswith("glue."))
    assert 0 < run.steps(name) < 8


def test_learning_rates_by_name_give_each_its_rate(start: Callable[..., Run]) -> None:
    by_name = {
        "host": 0.02,
        "glue": 0.03,
        "mixes": 0.04,
        "glue.second": 0.05,
        "host.model.decoder.layers.{i}.fc1.{p}": 0.0,
    }
    glue = [
        {"method": "gated", "encoder": "bert"},
        {"method": "gated", "encoder": "bert", "name": "second"},
    ]
    run = start({"learning_rates": by_name}, glue=glue, encoder={"layer": "mix"})
    rates = {
        id(tensor): group["lr"]
        for group in run.trainer.create_optimizer().param_groups
        for tensor in group["params"]
    }
    model = run.composition.model
    expected = {
        "host.model.shared.weight": 0.02,
        "host.model.decoder.layers.1.fc1.weight": 0.0,
        "host.model.encoder.layers.1.fc1.weight": 0.02,
        "glue.gated.encoder_0_self_attention.gate": 0.03,
        "glue.second.encoder_0_self_attention.gate": 0.05,
        "mixes.bert.scores": 0.04,
    }
    assert {name: rates[id(model.get_parameter(name))] for name in expected} == expected


def test_the_log_has_every_parts_rate(start: Callable[..., Run]) -> None:
    run = start({"learning_rates": {"host": 0.5}}, STAGES)
    run.trainer.train()
    logs = [log for log in run.trainer.state.log_history if "loss" in log]
    assert [log["learning_rate/host"] for log in logs] == [0, 0, 0.5, 0.5]
    assert [log["learning_rate/glue.gated"] for log in logs] == [0.01] * 4


def test_an_update_that_fp16_skips_leaves_rates_and_freezing_at_the_same_update(
    start: Callable[..., Run],
) -> None:
    train = {"lr_scheduler_type": "linear", "policies": {"glue": {"after": 2}}, "max_steps": 4}
    run = start(train | {"optim": "adamw_torch"})  # not fused, which skips within its step
    trainer, used = run.trainer, []
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # accelerate has it on GPUs only
    run.composition.model.get_parameter("host.model.shared.weight").register_hook(
        lambda gradient: gradient * torch.inf if trainer.state.global_step == 0 else gradient
    )
    trainer.create_optimizer().register_step_pre_hook(
        lambda optimizer, *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    trainer.train()
    assert trainer.state.global_step == 4 and len(used) == 3
    assert [max(rates) for rates in used] == pytest.approx([0.0075, 0.005, 0.0025])
    assert [min(rates) for rates in used] == pytest.approx([0.0, 0.005, 0.0025])
    logged = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert logged == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
@pytest.mark.parametrize("method", ["gated", "bert-fused"])
def test_activation_checkpointing_gives_the_same_gradients(
    start: Callable[..., Run],
    sentences: list[str],
    open_glue: Callable[[Any], Any],
    host: str,
    method: str,
) -> None:
    found: list[dict[str, Tensor]] = []
    for saving in (False, True):
        run = start(
            {"gradient_checkpointing": saving},
            host=host,
            method=method,
            encoder={"freeze": False, "layer": "mix"},
        )
        model, trainer = open_glue(run.composition.model), run.trainer
        if trainer.args.activation_checkpointing:
            model.activation_checkpointing_enable()
        counted: Counter[str] = Counter()
        for place, module in model.glue_modules.items():
            module.register_forward_hook(lambda *_, place=place, c=counted: c.update([place]))
        model.train()
        torch.manual_seed(11)  # of dropout
        trainer.compute_loss(model, dict(run.composition.processor(sentences, TARGETS))).backward()
        assert counted == {place: 2 if saving else 1 for place in model.glue_modules}
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, saved = found
    assert plain.keys() == saved.keys()
    assert any(tensor.abs().max() > 0 for n, tensor in plain.items() if n.startswith("encoders."))
    for name, tensor in plain.items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=1e-6)


def test_bf16_trains_under_autocast_and_keeps_the_weights_in_fp32(
    start: Callable[..., Run],
) -> None:
    losses = {}
    for bf16 in (False, True):
        run = start({"bf16": bf16, "max_steps": 3}, method="bert-fused", drop_net=0.0)
        before = run.tensors()
        run.trainer.train()
        losses[bf16] = [x["loss"] for x in run.trainer.state.log_history if "loss" in x]
        assert {tensor.dtype for tensor in run.tensors().values()} == {torch.float32}
        assert any(name.startswith("glue.") for name in changed(before, run.tensors()))
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert losses[True] != losses[False]


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_an_8_bit_optimizer_without_its_package_is_one_clear_error(
    start: Callable[..., Run],
) -> None:
    with pytest.raises(RecipeError, match="adamw_bnb_8bit needs the package bitsandbytes, which"):
        start({"optim": "adamw_bnb_8bit"})


@pytest.mark.filterwarnings("default")  # those of bitsandbytes itself
def test_an_8_bit_optimizer_keeps_moments_in_8_bits_except_those_of_embeddings(
    start: Callable[..., Run], make_bert: Callable[[int], Path]
) -> None:
    pytest.importorskip("bitsandbytes")
    encoders = {"bert": {"source": str(make_bert(96)), "freeze": False}}
    run = start({"optim": "adamw_bnb_8bit", "max_steps": 3}, encoders=encoders)
    before = run.tensors()
    run.trainer.train()
    model, state = run.composition.model, run.trainer.optimizer.state
    query = "encoders.bert.model.encoder.layer.0.attention.self.query.weight"
    assert state[model.get_parameter(query)]["state1"].dtype == torch.uint8
    assert state[model.host.get_input_embeddings().weight]["state1"].dtype == torch.float32
    assert query in changed(before, run.tensors())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of the compiler
@pytest.mark.parametrize(("method", "options"), [("gated", {}), ("bert-fused", {"drop_net": 0.5})])
def test_a_compiled_run_with_stages_trains_as_a_plain_one(
    start: Callable[..., Run], method: str, options: dict[str, Any]
) -> None:
    losses = []
    for compiled in (False, True):
        run = start({"torch_compile": compiled}, STAGES, method=method, **options)
        for module in run.composition.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # a compiled dropout draws other numbers
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        before = run.tensors()
        run.trainer.train()
        losses.append([x["loss"] for x in run.trainer.state.log_history if "loss" in x])
        assert changed(before, run.tensors()) >= {"host.model.shared.weight"}
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
