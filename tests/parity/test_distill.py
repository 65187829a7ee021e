"""Distillation against its equation in float64: the penalty, and both losses that it is part of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from layers import glue_at
from outputs import encoder_of_host_tokens, output_of, pooled
from reference import linear
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainingArguments

from fusion.composition import compose
from fusion.data import tokenise
from fusion.errors import RecipeError, ShapeError
from fusion.glue.base import Place
from fusion.glue.distill import Distill
from fusion.memory import Memory
from fusion.recipe import LearningRates
from fusion.trainer import FusionTrainer

TARGETS = ["ein Hund .", "die Katze schläft", "er liest"]  # those of the bench


def penalty(
    bench: Any, x: Tensor, site: str = "encoder.output", align: str = "attention"
) -> Tensor:
    """The mean over real source tokens of || x_t - P H_t ||^2."""
    p = dict(glue_at(bench, site).state_dict())
    memory, read, source = bench.memory, bench.memory_mask, bench.batch["attention_mask"].bool()
    terms = []
    target = pooled(p, x.detach(), memory, read) if align == "attention" else memory
    for b in range(len(x)):
        for t in source[b].nonzero().squeeze(1):
            of_host, of_memory = x[b, t], target[b, min(int(t), target.shape[1] - 1)]
            if align == "mean":
                of_host, of_memory = x[b][source[b]].mean(0), memory[b][read[b]].mean(0)
            if "project.bias" in p:
                of_memory = linear(p, "project", of_memory)
            elif "project.weight" in p:
                of_memory = p["project.weight"] @ of_memory
            terms.append(((of_host - of_memory) ** 2).sum())
    assert 0 < len(terms) < source.numel()
    return torch.stack(terms).mean()


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("width", [24, 32])
@pytest.mark.parametrize("align", ["attention", "tokens", "mean"])
@pytest.mark.parametrize("projection", ["fixed", "trained"])
def test_the_loss_of_the_model_is_the_equations(
    make_bench: Any,
    tokenizer_dir: Path,
    tmp_path: Path,
    norm: str,
    width: int,
    align: str,
    projection: str,
) -> None:
    options: dict[str, Any] = {"memory_width": width}
    if align == "tokens":
        source = encoder_of_host_tokens(tokenizer_dir, width, tmp_path / "bert")
        options = {"encoders": {"bert": {"source": str(source)}}}
    bench = make_bench(
        norm=norm, method="distill", align=align, projection=projection, weight=0.3, **options
    )
    model = bench.model
    nll = model(**bench.batch).loss
    with model.without_glue():
        assert torch.equal(model(**bench.batch).loss, nll)  # evaluation knows no penalty
    x = output_of(model.host.model.encoder, model, bench.batch)
    for glue in model.glue_modules.values():
        glue.train()  # the host stays as it is: no dropout
    found = model(**bench.batch).loss
    assert found.dtype == torch.float64
    assert abs(found - (0.7 * nll + 0.3 * penalty(bench, x, align=align))) < 1e-10


@pytest.mark.parametrize("align", ["attention", "mean"])
def test_the_host_is_drawn_to_its_target_and_not_by_way_of_what_points_at_it(
    make_bench: Any, align: str
) -> None:
    bench = make_bench(method="distill", align=align, weight=0.3)
    x = output_of(bench.model.host.model.encoder, bench.model, bench.batch)
    source = bench.batch["attention_mask"].bool()
    memory = Memory(bench.memory, bench.memory_mask, source_mask=source)
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    glue = glue_at(bench, "encoder.output").train()
    glue(found, lambda: found, memory)
    glue.penalty.backward()
    penalty(bench, expected, align=align).backward()
    assert torch.allclose(found.grad, expected.grad, rtol=0, atol=1e-10)


def test_several_sites_share_the_weight(make_bench: Any) -> None:
    sites = ["encoder.0.output", "encoder.1.output", "encoder.output"]
    bench = make_bench(method="distill", sites=sites, weight=0.3)
    model, encoder = bench.model, bench.model.host.model.encoder
    nll = model(**bench.batch).loss
    modules = [*encoder.layers, encoder]
    terms = [
        penalty(bench, output_of(module, model, bench.batch), site)
        for module, site in zip(modules, sites, strict=True)
    ]
    for glue in model.glue_modules.values():
        glue.train()
    assert abs(model(**bench.batch).loss - (0.7 * nll + 0.1 * sum(terms))) < 1e-10


@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
def test_the_host_is_bitwise_what_it_was_and_runs_no_part_of_it_at_evaluation(
    make_recipe: Any, host_dirs: dict[str, Path], sentences: list[str], host: str
) -> None:
    composition = compose(make_recipe(host, method="distill"))
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    assert model.is_neutral
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dirs[host]).eval()
    own = {k: v for k, v in batch.items() if not k.startswith("bert_")}
    calls: list[int] = []
    model.glue_modules["glue.distill.encoder_output"].align.register_forward_hook(
        lambda *_: calls.append(1)
    )
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, plain(**own).logits)
    assert calls == []


def test_only_the_host_and_what_points_at_the_memory_are_trained(
    make_recipe: Any, sentences: list[str]
) -> None:
    composition = compose(make_recipe(method="distill", weight=0.5))
    model, batch = composition.model.train(), composition.processor(sentences, TARGETS)
    glue = model.glue_modules["glue.distill.encoder_output"]
    fixed = glue.project.weight
    rows = fixed @ fixed.T if fixed.shape[0] <= fixed.shape[1] else fixed.T @ fixed
    assert torch.allclose(rows, torch.eye(len(rows)), atol=1e-5)
    model(**batch).loss.backward()
    assert fixed.grad is None
    assert not fixed.requires_grad
    assert all(p.grad is not None and p.grad.any() for p in glue.align.parameters())


def test_a_pass_without_a_loss_leaves_nothing_for_the_next_one(
    make_recipe: Any, sentences: list[str]
) -> None:
    composition = compose(make_recipe(method="distill", weight=0.5))
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    before = model.eval()(**batch).loss
    with torch.no_grad():
        model.train()(
            **{k: v for k, v in batch.items() if k != "labels"},
            decoder_input_ids=batch["labels"].clamp(min=0),
        )
    assert torch.equal(model.eval()(**batch).loss, before)


# --- in the trainer ------------------------------------------------------------------------------


def trainer_of(composition: Any, sentences: list[str], folder: Path, **options: Any) -> Any:
    pairs = Dataset.from_dict({"source": sentences, "target": TARGETS})
    tokens, _ = tokenise(pairs, composition.processor)
    trainer = FusionTrainer(
        composition.model,
        composition.processor,
        Seq2SeqTrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
            **options,
        ),
        train=tokens,
        dev=tokens,
        batch_tokens=256,
        learning_rates=LearningRates(),
        label_smoothing=0.1,
        compute_metrics=lambda prediction: {},
    )
    trainer.model_accepts_loss_kwargs = True
    return trainer


def quiet(model: Any) -> Any:
    """In training mode without dropout."""
    model.train()
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("align", ["attention", "mean"])
def test_the_trainers_loss_is_the_equations_however_the_update_is_cut(
    make_bench: Any, sentences: list[str], tmp_path: Path, align: str
) -> None:
    bench = make_bench(method="distill", align=align, weight=0.3)
    model, processor = quiet(bench.model), bench.composition.processor
    trainer = trainer_of(bench.composition, sentences, tmp_path)
    x = output_of(model.host.model.encoder, model, bench.batch)
    with model.without_glue():
        nll = trainer.compute_loss(model, bench.batch)
    loss = 0.7 * nll + 0.3 * penalty(bench, x, align=align)
    expected = pytest.approx(loss.item(), rel=1e-6)  # the trainer's logits are in float32
    assert trainer.compute_loss(model, bench.batch).item() == expected

    cut = [processor(sentences[:1], TARGETS[:1]), processor(sentences[1:], TARGETS[1:])]
    sums = []
    for batches in ([bench.batch], cut):
        model.zero_grad()
        given, items = trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
        losses = [trainer.compute_loss(model, b, num_items_in_batch=items) for b in given]
        for one in losses:
            one.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        sums.append((sum(loss.item() for loss in losses), grads))
    (whole, grads), (in_two, grads_in_two) = sums
    assert whole == expected
    assert in_two == expected
    assert grads.keys() == grads_in_two.keys()
    assert any(name.startswith("glue.") for name in grads) == (align == "attention")
    for name, grad in grads.items():
        assert torch.allclose(grads_in_two[name], grad, rtol=1e-5, atol=1e-5), name


def test_accumulating_micro_batches_trains_as_one_batch_does(
    make_recipe: Any, sentences: list[str], tmp_path: Path
) -> None:
    after = []
    for accumulated in (1, 3):
        composition = compose(make_recipe(method="distill", weight=0.5))
        quiet(composition.model.double())
        trainer = trainer_of(
            composition,
            sentences,
            tmp_path / str(accumulated),
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            save_strategy="no",
            lr_scheduler_type="constant",
        )
        whole = [[0, 1, 2]] if accumulated == 1 else [[0], [1], [2]]
        trainer.sampler = FixedBatches(whole)
        trainer.train()
        after.append({n: p.detach().clone() for n, p in composition.model.named_parameters()})
    start = dict(compose(make_recipe(method="distill")).model.double().named_parameters())
    moved = [n for n, p in after[0].items() if not torch.allclose(p, start[n], atol=1e-7)]
    assert any(n.startswith("glue.") for n in moved)
    assert any(n.startswith("host.") for n in moved)
    for name, value in after[0].items():
        assert torch.allclose(after[1][name], value, atol=1e-6), name


def test_glue_that_may_be_left_out_beside_it_trains_on_ranks(
    make_recipe: Any, sentences: list[str], tmp_path: Path
) -> None:
    """With `find_unused_parameters`, as on several ranks beside drop-net."""
    glue = [{"method": method, "encoder": "bert"} for method in ("bert-fused", "distill")]
    composition = compose(make_recipe(glue=glue))
    model, batch = composition.model.train(), composition.processor(sentences, TARGETS)
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch.pop("labels"))
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        ranked = DistributedDataParallel(model, find_unused_parameters=True)
        for _ in range(3):
            model.zero_grad()
            logits = ranked(**batch, use_cache=False).logits
            model.with_penalties(logits.pow(2).mean()).backward()
            (module,) = (m for m in model.glue_modules.values() if isinstance(m, Distill))
            assert all(p.grad is not None and p.grad.any() for p in module.align.parameters())
    finally:
        distributed.destroy_process_group()


class FixedBatches:
    """A batch sampler of given batches."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """The same in every epoch."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.0}, "between 0 and 1; found 0.0"),
        ({"weight": 1.0}, "between 0 and 1; found 1.0"),
        ({"align": "words"}, r"align: found 'words'; should be 'attention', 'tokens' or 'mean'"),
        ({"projection": "none"}, r"projection: found 'none'; should be 'fixed' or 'trained'"),
        ({"sites": ["decoder.output"]}, "outputs of the host's encoder.* found decoder.output"),
        ({"sites": ["encoder.0.self_attention"]}, "found encoder.0.self_attention"),
    ],
)
def test_options_that_cannot_be_are_refused(
    make_recipe: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        compose(make_recipe(method="distill", **options))


def test_a_mask_of_another_length_is_named() -> None:
    module = Distill(Place("encoder.output", 4, 2, 4)).train()
    memory = Memory(torch.randn(1, 3, 4), None, source_mask=torch.ones(1, 3).bool())
    x = torch.randn(1, 2, 4)
    with pytest.raises(ShapeError, match=r"a source of \[1, 3\] tokens, host states \[1, 2, 4\]"):
        module(x, lambda: x, memory)
