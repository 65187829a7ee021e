"""Denormal numbers are 0 while training, and are what they were afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fusion.denormals import flushed_denormals

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
