"""This machine as hardware: rates of small representative operations, in some seconds."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion.estimates.hardware import Hardware
from fusion.estimates.meta import MetaRun
from fusion.estimates.work import Work

_SECONDS = 0.25  # of each measurement
_DISK_BYTES = 64 * 2**20


def measure() -> Hardware:
    """Rates as they are reached, so that the shares of the peak are 1.

    Matrix products are [1024, 512] x [512, 512], traffic is a sum of tensors of 2 MiB: the sizes of
    small Transformers. A step's calls are those of a network too small for anything else to count.
    """
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    memory: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if gpu:
        memory = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as folder:
        disk = _disk(Path(folder) / "read")
    return Hardware(
        name=f"here ({torch.cuda.get_device_name(0) if gpu else f'cpu, {_threads()}'})",
        gpu=gpu,
        flops=_matmul(device, torch.float32),
        half_flops=_matmul(device, torch.bfloat16),
        bandwidth=_traffic(device),
        memory=memory,
        disk=disk,
        call=_call(device),
        draws=1e12 if gpu else _draws(),
        matmul_share=1.0,
        bandwidth_share=1.0,
    )


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _timed(work: Callable[[], object], device: str) -> float:
    """Seconds of one call: the fastest, as other work on the machine only adds to it."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - began < _SECONDS:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def _matmul(device: str, dtype: torch.dtype) -> float:
    layer = nn.Linear(512, 512, device=device, dtype=dtype)
    x = torch.randn(1024, 512, device=device, dtype=dtype)
    with torch.no_grad():
        return 2 * 1024 * 512 * 512 / _timed(lambda: layer(x), device)


def _traffic(device: str) -> float:
    one, other = (torch.ones(2**19, device=device) for _ in range(2))
    return 3 * 4 * 2**19 / _timed(lambda: one + other, device)


def _draws() -> float:
    into = torch.empty(2**19)
    return 2**19 / _timed(lambda: into.bernoulli_(0.1), "cpu")


def _call(device: str) -> float:
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)]
    net = nn.Sequential(*layers)

    def step(where: str) -> None:
        x = torch.ones(4, 8, device=where)
        loss: Tensor = net(x).sum()
        loss.backward()

    run = MetaRun()
    net.to("meta")
    with run:
        step("meta")
    net.to_empty(device=device)
    calls = sum(run.work.values(), Work()).count
    return _timed(lambda: step(device), device) / calls


def _disk(path: Path) -> float:
    """Bytes/s read of a file that is not in the page cache any more."""
    path.write_bytes(os.urandom(_DISK_BYTES))
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(2**20)
        start = time.perf_counter()
        while file.readinto(buffer):
            pass
        return _DISK_BYTES / (time.perf_counter() - start)
