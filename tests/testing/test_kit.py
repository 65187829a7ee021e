"""The conformance kit: every registered part passes it, and a part that is wrong does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ElectraConfig, RobertaConfig

from fusion.errors import FusionError
from fusion.glue.base import Glue, Place
from fusion.memory import Memory
from fusion.registry import GLUE, HOSTS
from fusion.testing import CheckFailure, EncoderChoice, check_encoder, check_glue, check_host
from fusion.testing.hosts import TINY_HOSTS
from fusion.testing.tiny import tiny_config

METHODS = GLUE.names()
CAUSAL = ["llama", "gpt2"]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("number", range(len(METHODS)), ids=METHODS)
def test_every_method_passes_in_one_host(number: int) -> None:
    """Hosts take turns, so that both norm placements are seen."""
    hosts = (("marian", "t5")[number % 2],)
    (report,) = check_glue(METHODS[number], hosts=hosts, skip=["compile"])
    assert len(report.passed) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_passes_in_both_hosts_and_is_compiled(method: str) -> None:
    assert len(check_glue(method)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bert-fused", {"start": "neutral"}),
        ("stacked", {"start": "neutral"}),
        ("joint-attention", {"start": "neutral"}),
        ("dynamic-switch", {"start": "neutral"}),
        ("embedding", {"start": "neutral"}),
        ("embedding", {"mode": "replace", "last": 2}),
        ("soft-prefix", {"projector": "mlp"}),
    ],
)
def test_other_starts_pass_too(method: str, options: dict[str, Any]) -> None:
    check_glue(method, **options)


def test_lora_sits_at_gpt2s_transposed_linears() -> None:
    check_glue("lora", hosts=("gpt2",), skip=["compile"])


@pytest.mark.parametrize("name", ["pegasus", *CAUSAL])
def test_some_hosts_pass(name: str) -> None:
    check_host(name, skip=["compile"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TINY_HOSTS) | (set(HOSTS.names()) - set(TINY_HOSTS))))
def test_every_host_passes(name: str) -> None:
    if name in ("encoder-decoder", "fusion_transformer"):
        pytest.skip("rows of its own, or tests of its own")
    check_host(name, skip=["compile"])


@pytest.mark.parametrize("config", [RobertaConfig, ElectraConfig])
def test_some_encoders_pass(config: Any) -> None:
    check_encoder(EncoderChoice(tiny_config(config)), skip=["compile", "dtype"])


@pytest.fixture
def wrong_glue() -> Iterator[Callable[[type[Glue]], str]]:
    """Register a method for one test."""
    names: list[str] = []

    def register(kind: type[Glue]) -> str:
        name = f"wrong-{kind.__name__}"
        GLUE.register(name)(kind)
        names.append(name)
        return name

    yield register
    for name in names:
        GLUE._loaded.pop(name)


class _Wrong(Glue):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.read = nn.Linear(place.memory_width, place.width)

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        return host() + self.read(memory.states).mean(dim=1, keepdim=True)


class ReadsPadding(_Wrong):
    pass


class SaysNeutral(_Wrong):
    @property
    def neutral(self) -> bool:
        return True


class IgnoresMemory(_Wrong):
    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        return host() + self.read.weight.mean()


class ForgetsState(_Wrong):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.scale = torch.rand(1).item()

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        return self.scale * super().forward(x, host, memory)


@pytest.mark.parametrize(
    ("kind", "check", "said"),
    [
        (ReadsPadding, "batch", "use `memory.mask`"),
        (SaysNeutral, "neutral", "logits differ from the host's"),
        (IgnoresMemory, "effect", "other memory gives the same logits"),
        (ForgetsState, "save", "nothing else is saved"),
    ],
)
def test_a_wrong_method_is_named_with_the_check_and_the_remedy(
    wrong_glue: Callable[[type[Glue]], str], kind: type[Glue], check: str, said: str
) -> None:
    name = wrong_glue(kind)
    sites = ["encoder.*.self_attention"]
    with pytest.raises(CheckFailure) as caught:
        check_glue(name, hosts=["marian"], sites=sites, skip=["compile", "dtype", "generate"])
    lines = [line for line in str(caught.value).split("\n") if f": {check}: " in line]
    assert len(lines) == 1 and said in lines[0], str(caught.value)
    assert lines[0].startswith(f"{name} in marian: ")


def test_a_check_that_does_not_exist_cannot_be_skipped() -> None:
    with pytest.raises(FusionError, match=r'skip: no check "compiles".*compile'):
        check_glue("gated", skip=["compiles"])
