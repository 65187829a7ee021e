"""Hardware by its name; this machine by rates of single operations and of one whole step."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MarianConfig

from fusion.configuration import FusedConfig
from fusion.errors import FusionError, nearest
from fusion.estimates.hardware import TABLE, Hardware
from fusion.estimates.meta import MetaRun
from fusion.estimates.step import Batch, How, run_step
from fusion.estimates.work import Work
from fusion.model import FusedModel

_SECONDS = 0.25  # of each measurement
_DISK_BYTES = 64 * 2**20
_LAYERS = {"layers": 3, "attention_heads": 4, "ffn_dim": 1024}


def hardware(name: str) -> Hardware:
    """From the table, or `here`: this machine, measured in some seconds.

    Raises:
        FusionError: there is none of this name.
    """
    if name == "here":
        return measure()
    if name not in TABLE:
        known = [*TABLE, "here"]
        raise FusionError(
            f'--hardware: no "{name}"{nearest(name, known)}; there are: {", ".join(known)}'
        )
    return TABLE[name]


def measure(gpu: bool | None = None) -> Hardware:
    """Peaks as single operations reach them, and the share of these that a training step does.

    Matrix products are [1024, 512] x [512, 512], traffic is a sum of tensors of 2 MiB: the sizes of
    small Transformers. A step's calls are those of a network too small for anything else to count.
    The share is that of a step of a small Transformer, 1,024 tokens in and 1,024 out, in fp32.

    Args:
        gpu: measure that and not the processor; None: where there is one
    """
    gpu = torch.cuda.is_available() if gpu is None else gpu
    device = "cuda" if gpu else "cpu"
    memory: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if gpu:
        memory = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as folder:
        disk = _disk(Path(folder) / "read")
    peaks = Hardware(
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
    share = _share(peaks, device)
    return replace(peaks, matmul_share=share, bandwidth_share=share)


def _share(peaks: Hardware, device: str) -> float:
    """Of both peaks, what a step gets: the seconds it should take beside calls and draws, of its.

    The host has the sizes of a small NMT model: width 256, 3+3 layers, 4,000 pieces.
    """
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _LAYERS.items()}
    ids = {"pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    host = MarianConfig(vocab_size=4000, d_model=256, dropout=0.1, **sizes, **ids)
    config = FusedConfig(host=host.to_dict(), attention="eager")
    batch = Batch(1024 if peaks.gpu else 64, 16, 16)
    with torch.device("meta"):
        planned = FusedModel(config)
    work = run_step(planned, batch, How(gpu=peaks.gpu)).total
    model = FusedModel(config).train().to(device)
    words = torch.ones(batch.sentences, batch.source, dtype=torch.long, device=device)
    inputs = dict.fromkeys(("input_ids", "attention_mask", "decoder_input_ids"), words)

    def step() -> None:
        logits = model(**inputs, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), words.flatten(), label_smoothing=0.1).backward()
        model.zero_grad()

    taken = _timed(step, device, median)
    kernels = replace(peaks, call=0.0, draws=math.inf).seconds(work)
    rest = 0.0 if peaks.gpu else peaks.seconds(work) - kernels
    return kernels / max(taken - rest, kernels)


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _timed(
    work: Callable[[], object], device: str, of: Callable[[list[float]], float] = min
) -> float:
    """Seconds of one call, `of` all: the fastest, as other work on the machine only adds to it."""
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
    return of(times)


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
