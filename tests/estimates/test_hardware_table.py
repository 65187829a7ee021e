"""Hardware makes seconds of work."""

from __future__ import annotations

from collections import Counter

import pytest

from fusion.errors import FusionError
from fusion.estimates.calibration import hardware
from fusion.estimates.hardware import TABLE, Hardware
from fusion.estimates.work import Op, Work

GPU = Hardware("gpu", True, 10.0, 100.0, 8.0, 0, call=1.0, matmul_share=1.0, bandwidth_share=1.0)
CPU = Hardware(
    "cpu", False, 10.0, 100.0, 8.0, 0, call=1.0, draws=2.0, matmul_share=1.0, bandwidth_share=1.0
)


def work(*ops: Op) -> Work:
    return Work(Counter(ops))


def test_an_operation_takes_the_longer_of_arithmetic_and_traffic() -> None:
    assert CPU.seconds(work(Op(50, 8, 0, False))) == 5 + 1
    assert CPU.seconds(work(Op(50, 80, 0, False))) == 10 + 1
    assert CPU.seconds(work(Op(50, 8, 0, True))) == 1 + 1
    assert CPU.seconds(work(Op(0, 8, 6, False))) == 1 + 3 + 1


def test_a_gpu_computes_while_it_is_called() -> None:
    small, large = Op(1, 0, 0, False), Op(500, 0, 0, False)
    assert GPU.seconds(work(small, small)) == 2
    assert GPU.seconds(work(small, large)) == pytest.approx(50.1)


def test_the_issues_hardware_is_in_the_table_and_faster_cards_are_faster() -> None:
    step = work(Op(10**12, 10**9, 0, True))
    names = ["cpu2", "cpu16", "t4", "a100", "h100"]
    seconds = [hardware(name).seconds(step) for name in names]
    assert seconds == sorted(seconds, reverse=True)
    assert all(one.memory > 0 and one.disk > 0 for one in TABLE.values())


def test_unknown_hardware_is_refused_with_the_nearest() -> None:
    with pytest.raises(FusionError, match='--hardware: no "a1000"; nearest: "a100"'):
        hardware("a1000")


def test_this_machine_can_be_measured() -> None:
    here = hardware("here")
    assert here.name.startswith("here (")
    rates = (here.flops, here.half_flops, here.bandwidth, here.disk, here.draws, here.memory)
    assert all(rate > 1e6 for rate in rates)
    assert 0 < here.call < 0.1
    assert 0 < here.matmul_share <= 1
    assert 0 < here.bandwidth_share <= 1


def test_the_mean_of_runs_keeps_what_is_rare() -> None:
    common, rare = Op(1, 0, 0, False), Op(2, 0, 0, False)
    mean = Work(Counter({common: 6, rare: 1})).per(3)
    assert mean.ops == Counter({common: 2, rare: 1})
    assert (work(common) + work(rare)).flops == 3
