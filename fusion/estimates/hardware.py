"""Hardware that a run is planned for, and a table of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusion.estimates.work import Op, Work

_HOST_FILES = 32e9  # bytes of files that the machine around a GPU keeps in memory: a guess


@dataclass(frozen=True)
class Hardware:
    """What bounds a step.

    An operation takes the longer of its arithmetic and its traffic. On a CPU the call's own cost
    is added; a GPU computes while the next operations are being called, so that a step takes the
    longer of all kernels and all calls.

    Attributes:
        flops: fp32 FLOP/s at the peak
        half_flops: likewise in bf16 (fp16 where `half` says so)
        bandwidth: of its memory, bytes/s at the peak
        memory: bytes
        disk: bytes/s read in sequence; writing counts as much
        call: seconds of one operation's call, Python included
        draws: random numbers/s
        matmul_share, bandwidth_share: of the peaks that a training step reaches
        half: the 16-bit type that autocast has there
    """

    name: str
    gpu: bool
    flops: float
    half_flops: float
    bandwidth: float
    memory: float
    disk: float = 1e9
    call: float = 1e-5
    draws: float = 1e12
    matmul_share: float = 0.5
    bandwidth_share: float = 0.75
    half: str = "bf16"

    @property
    def kept_files(self) -> float:
        """Bytes of files that stay in memory once they were read."""
        return _HOST_FILES if self.gpu else self.memory / 2

    def seconds(self, work: Work) -> float:
        """How long some work takes."""
        kernels = sum(count * self._kernel(op) for op, count in work.ops.items())
        calls = work.count * self.call
        return max(kernels, calls) if self.gpu else kernels + calls

    def _kernel(self, op: Op) -> float:
        rate = (self.half_flops if op.half else self.flops) * self.matmul_share
        traffic = op.moved / (self.bandwidth * self.bandwidth_share)
        return max(op.flops / rate, traffic) + op.drawn / self.draws


def _gpu(name: str, flops: float, half: float, bandwidth: float, memory: float) -> Hardware:
    return Hardware(name, True, flops * 1e12, half * 1e12, bandwidth * 1e9, memory * 2**30)


def _cpu(name: str, cores: int, memory: float) -> Hardware:
    """AVX-512 cores: 2 units x 16 lanes x 2 operations at 2.5 GHz in fp32, bf16 twice that."""
    rate = cores * 160e9
    return Hardware(
        name,
        gpu=False,
        flops=rate,
        half_flops=2 * rate,
        bandwidth=cores * 8e9 + 8e9,
        memory=memory * 2**30,
        disk=5e8,
        call=1e-5,
        draws=cores * 4e8,
    )


# Data sheets: fp32 without tensor cores (torch's default), dense 16-bit tensor cores, no sparsity;
# memory as sold, in GiB. What training reaches of the peaks (`*_share`) is a usual figure, not
# measured on each card.
TABLE: dict[str, Hardware] = {
    one.name: one
    for one in (
        _cpu("cpu2", 2, 8),
        _cpu("cpu16", 16, 64),
        replace(_gpu("t4", 8.1, 65, 320, 15), half="fp16"),
        replace(_gpu("v100", 15.7, 125, 900, 16), half="fp16"),
        _gpu("l4", 30.3, 121, 300, 24),
        _gpu("a10", 31.2, 125, 600, 24),
        _gpu("rtx4090", 82.6, 165, 1008, 24),
        _gpu("a100", 19.5, 312, 2039, 80),
        _gpu("h100", 67, 989, 3350, 80),
        _gpu("h200", 67, 989, 4800, 141),
    )
}
