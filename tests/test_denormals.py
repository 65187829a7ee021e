"""Denormal numbers are 0 while training, and are what they were afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fusion.denormals import flushed_denormals
from fusion.warmstart import warm_start

IN_BOTH_THREADS = """
import torch
from fusion.denormals import denormals_kept, flushed_denormals

SIZE = 1 << 20

def kept():
    return int((torch.full((SIZE,), 1e-20) * 1e-19).count_nonzero())

torch.set_num_threads(2)
with flushed_denormals():
    assert kept() == 0
    assert denormals_kept(kept)() == SIZE
    assert kept() == 0
"""


def product() -> float:
    return (torch.tensor(1.0e-20) * torch.tensor(1.0e-19)).item()


@pytest.fixture(autouse=True)
def has_the_mode() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")


def test_denormal_numbers_are_0_inside_and_themselves_afterwards() -> None:
    assert product() > 0
    with flushed_denormals():
        assert product() == 0
    assert product() > 0


def test_a_rule_that_scales_below_normal_numbers_gives_the_same_bits_while_training(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source.pt"
    torch.save({"weight": torch.linspace(-1, 1, 1 << 18).reshape(512, 512)}, source)
    rules = {"weight": {"from": "weight", "ops": [{"scale": 2.0**-130}]}}
    before, inside = (nn.Linear(512, 512, bias=False) for _ in range(2))
    warm_start(before, source, rules=rules)
    with flushed_denormals():
        warm_start(inside, source, rules=rules)
    assert 0 < float(before.weight.detach().abs().max()) < 1.2e-38
    assert torch.equal(inside.weight.view(torch.int32), before.weight.view(torch.int32))


def test_who_had_flushed_them_before_still_does() -> None:
    torch.set_flush_denormal(True)
    try:
        with flushed_denormals():
            pass
        assert product() == 0
    finally:
        torch.set_flush_denormal(False)


def test_the_threads_that_torch_starts_flush_them_too_but_for_those_that_keep_them() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", IN_BOTH_THREADS], env=environment, check=True)
