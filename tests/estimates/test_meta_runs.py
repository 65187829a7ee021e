"""A pass on meta counts what a real one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from fusion.composition import compose
from fusion.estimates.memory import planned_model
from fusion.estimates.meta import Functions, MetaRun
from fusion.estimates.step import BACKWARD, Batch, How, run_encoder, run_step
from fusion.model import FusedModel
from fusion.recipe import Recipe

BATCH = Batch(6, 11, 9, {"bert": 13})


def on_meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", requires_grad=True)


def test_matrix_products_and_bytes_are_those_of_a_count_by_hand() -> None:
    weight, x = on_meta(16, 8), on_meta(4, 8)
    run = MetaRun([weight, x])
    with run:
        loss = F.linear(x, weight).sum()
        run.part = BACKWARD
        loss.backward()
    assert run.work["host"].flops == 2 * 4 * 8 * 16
    assert run.work[BACKWARD].flops == 2 * (2 * 4 * 8 * 16)
    of_output, of_input, of_weight = 4 * 4 * 16, 4 * 4 * 8, 4 * 16 * 8
    loss_and_its_gradient = 2 * 4  # a sum needs no output for its backward pass
    assert run.peak == loss_and_its_gradient + of_input + of_weight
    assert run.live[BACKWARD] == of_input + of_weight  # the gradients
    linear = max(run.work["host"].ops, key=lambda op: op.flops)
    assert linear.moved == of_input + of_weight + of_output


def test_masks_are_real_and_a_question_to_values_that_are_not_there_is_no() -> None:
    x, mask = on_meta(2, 3), torch.tensor([[True, True, False], [True, False, False]])
    with MetaRun():
        assert not bool((x > 0).all())
        assert mask.to(x.device).sum().item() == 3
        assert x.masked_fill(mask, 0.0).is_meta


def test_autocast_computes_in_half_and_gives_gradients_in_full() -> None:
    weight, x = on_meta(16, 8), on_meta(4, 8)
    run = MetaRun([weight, x])
    with run:
        with Functions(torch.bfloat16, gpu=True):
            y = F.linear(x, weight)
            assert y.dtype == torch.bfloat16
            assert y.softmax(-1).dtype == torch.float32
        y.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert all(op.half for op in run.work["host"].ops if op.flops)


def forward_count(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def backward_count(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# A CPU's kernel, which torch's own counter does not know.
KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
KERNELS: dict[Any, Any] = {
    KERNEL: forward_count,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward_count,
}


def batch_of(model: FusedModel, memory: bool) -> dict[str, Tensor]:
    ids = torch.ones(6, 11, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["decoder_input_ids"] = torch.ones(6, 9, dtype=torch.long)
    inputs["bert_attention_mask"] = torch.ones(6, 13, dtype=torch.long)
    for name, tensor in inputs.items():
        if name.endswith("mask"):
            tensor[0, -1] = 0
    if memory:
        inputs["bert_memory"] = torch.randn(6, 13, model.encoder_parts["bert"].width)
    else:
        inputs["bert_input_ids"] = torch.ones(6, 13, dtype=torch.long)
    return inputs


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
def test_a_step_has_as_many_operations_as_torch_counts_in_a_real_one(
    make_recipe: Callable[..., Recipe], host: str, cached: bool
) -> None:
    recipe = make_recipe(host)
    model = compose(recipe).model.train()
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        logits = model(**batch_of(model, cached), use_cache=False).logits
        logits.sum().backward()
    how = How(cached=frozenset({"bert"} if cached else ()), gpu=False)
    step = run_step(planned_model(recipe), BATCH, how)
    assert step.total.flops == counter.get_total_flops()


def test_a_frozen_encoder_runs_forward_only(make_recipe: Callable[..., Recipe]) -> None:
    model = planned_model(make_recipe())
    ways = [How(gpu=False), How(cached=frozenset({"bert"}), gpu=False)]
    computed, cached = (run_step(model, BATCH, way) for way in ways)
    assert computed.work[BACKWARD].flops == cached.work[BACKWARD].flops
    encoder = run_encoder(model.encoder_parts["bert"], 6, 13, None, gpu=False)
    assert computed.work["encoders.bert"].flops == encoder.flops > 0
    assert computed.work["glue"].flops == cached.work["glue"].flops > 0
    trained = planned_model(make_recipe(encoder={"freeze": False}))
    more = run_step(trained, BATCH, How(gpu=False)).work[BACKWARD].flops
    assert more - computed.work[BACKWARD].flops > encoder.flops


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("gpu", [False, True])
def test_checkpointing_computes_twice_and_keeps_less(
    make_recipe: Callable[..., Recipe], half: torch.dtype | None, gpu: bool
) -> None:
    model = planned_model(make_recipe(encoder={"freeze": False}))
    batch = Batch(64, 32, 32, {"bert": 32})
    once = run_step(model, batch, How(half, gpu=gpu))
    twice = run_step(model, batch, How(half, checkpointing=True, gpu=gpu))
    assert twice.total.flops > once.total.flops
    assert twice.peak < once.peak


def test_the_model_is_as_it_was_after_a_step(make_recipe: Callable[..., Recipe]) -> None:
    model = planned_model(make_recipe())
    run_step(model, BATCH, How(checkpointing=True, accumulates=True))
    assert all(p.grad is None and p.is_meta for p in model.parameters())
    assert not model.placement.board and not model.is_activation_checkpointing
    hooks: list[Any] = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_glue_that_holds_the_host_inside_is_told_apart() -> None:
    from fusion.estimates.step import _own

    glue = nn.Module()
    glue.attention = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    glue.wrapped = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    assert _own(glue.attention, glue)
    assert not _own(glue.wrapped, glue)
    assert _own(glue.wrapped[0], glue)
