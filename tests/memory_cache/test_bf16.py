"""bf16 training reads a bf16 cache as it is; the cache is computed so where that is faster."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from fusion.memory_cache.prepare import Hardware, prepare

if TYPE_CHECKING:
    from .conftest import Setup, SetupMaker

ABLE = Hardware(torch.device("cpu"), bf16=True)


def computed_in(setup: Setup, hardware: Hardware) -> str:
    prepare(setup.recipe, setup.composition, setup.train, hardware, setup.said.append)
    key = json.loads((setup.directory() / "cache.json").read_text(encoding="utf-8"))["key"]
    found: str = key["computed_in"]
    return found


@pytest.mark.parametrize(
    ("format", "bf16", "expected"),
    [
        ("bf16", True, "bf16"),
        ("int8", True, "bf16"),
        ("fp32", True, "bf16"),
        ("bf16", False, ""),
        ("fp32", False, ""),
    ],
)
def test_it_is_computed_in_bf16_where_hardware_and_training_do(
    setup: SetupMaker, format: str, bf16: bool, expected: str
) -> None:
    hardware = Hardware(torch.device("cpu"), bf16=bf16)
    if not hardware.has_bf16:
        expected = ""
    assert computed_in(setup(cache={"format": format}), hardware) == (expected or "own dtype")


@pytest.mark.parametrize("format", ["bf16", "fp32"])
def test_bf16_training_reads_a_bf16_cache_without_a_copy_and_learns(
    setup: SetupMaker, format: str
) -> None:
    made = setup(cache={"format": format})
    prepared = prepare(made.recipe, made.composition, made.train, ABLE, made.said.append)
    batch = prepared.collate([prepared.train[row] for row in range(12)])
    given = batch["bert_memory"]
    model = made.composition.model.train()
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, fused=True)
    losses = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
            states = model.placement.board["bert"].states
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert states.dtype == torch.bfloat16
    assert (states.data_ptr() == given.data_ptr()) is (format == "bf16")
    assert all(tensor.dtype == torch.float32 for tensor in trained)
    assert losses[-1] < 0.8 * losses[0]
