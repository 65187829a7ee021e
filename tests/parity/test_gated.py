"""Gated cross-attention against its equations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import Mix, attention, gelu, linear, norm


@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("memory_width", [24, 32])
@pytest.mark.parametrize("feed_forward", [0.0, 1.5])
def test_an_open_gate_adds_what_the_equation_says(
    make_bench: Any, norm_place: str, memory_width: int, feed_forward: float
) -> None:
    bench = make_bench(norm=norm_place, memory_width=memory_width, feed_forward=feed_forward)

    def equation(glue: Any) -> Mix:
        p = dict(glue.state_dict())
        assert p["gate"].abs() > 1e-3

        def mix(x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            allowed = bench.memory_mask[:, None, :].expand(-1, x.shape[1], -1)
            query = norm(p, "norm", x)
            read = attention(p, "attention", query, bench.memory, allowed, 4)
            y = own + torch.tanh(p["gate"]) * read
            if feed_forward:
                inner = linear(p, "inner.fc1", norm(p, "inner.norm", y))
                y = y + torch.tanh(p["inner_gate"]) * linear(p, "inner.fc2", gelu(inner))
            return y

        return mix

    bench.check(equation)
