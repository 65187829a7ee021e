"""The dynamic switch against its equation in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layers import glue_at
from outputs import encoder_of_host_tokens, output_of, pooled, token_embeddings
from reference import linear
from torch import Tensor

from fusion.composition import compose
from fusion.errors import RecipeError, ShapeError
from fusion.glue.base import Place
from fusion.glue.dynamic_switch import DynamicSwitch
from fusion.memory import Memory


def expected(bench: Any, align: str) -> Tensor:
    p = dict(glue_at(bench, "encoder.embeddings").state_dict())
    own, memory = token_embeddings(bench), bench.memory
    read = pooled(p, own, memory, bench.memory_mask) if align == "attention" else memory
    if "project.weight" in p:
        read = linear(p, "project", read)
    scores = read @ p["of_memory.weight"].T + own @ p["of_host.weight"].T + p["of_host.bias"]
    g = 1 / (1 + torch.exp(-scores))
    if "gate" in p:
        assert p["gate"].abs() > 1e-3
        return own + torch.tanh(p["gate"]) * g * (read - own)
    return g * read + (1 - g) * own


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("width", [24, 32])
@pytest.mark.parametrize("align", ["attention", "tokens"])
@pytest.mark.parametrize("start", ["paper", "neutral"])
def test_the_hosts_encoder_reads_what_the_equation_says(
    make_bench: Any,
    tokenizer_dir: Path,
    tmp_path: Path,
    norm: str,
    width: int,
    align: str,
    start: str,
) -> None:
    options: dict[str, Any] = {"memory_width": width}
    if align == "tokens":
        source = encoder_of_host_tokens(tokenizer_dir, width, tmp_path / "bert")
        options = {"encoders": {"bert": {"source": str(source)}}}
    bench = make_bench(norm=norm, method="dynamic-switch", align=align, start=start, **options)
    assert not bench.memory_mask.all()
    module = glue_at(bench, "encoder.embeddings")
    assert (module.project is None) == (width == 32)
    found = output_of(bench.model.host.model.encoder.embed_tokens, bench.model, bench.batch)
    assert found.dtype == torch.float64
    assert (found - expected(bench, align)).abs().max() < 1e-10


def test_beams_read_as_if_the_memory_were_repeated() -> None:
    torch.manual_seed(0)
    module = DynamicSwitch(Place("decoder.embeddings", 8, 2, 6)).double()
    x = torch.randn(8, 3, 8, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    read = Memory(torch.randn(2, 3, 6, dtype=torch.float64), mask)
    repeated = Memory(read.states.repeat_interleave(4, 0), mask.repeat_interleave(4, 0))
    one, two = (module(x, lambda: x, memory) for memory in (read, repeated))
    assert torch.allclose(one, two, atol=1e-12)
    kept = Memory(read.states, mask, reusable=True)
    steps = [module(x[:, t : t + 1], lambda t=t: x[:, t : t + 1], kept) for t in range(3)]
    assert torch.allclose(torch.cat(steps, 1), one, atol=1e-12)


def test_an_encoder_of_other_tokens_is_refused_by_name(make_recipe: Any) -> None:
    composition = compose(make_recipe(method="dynamic-switch", align="tokens"))
    batch = composition.processor(["the cat sleeps .", "a dog ."])
    with pytest.raises(ShapeError, match=r"host has \[\d+, \d+\] tokens, the memory \[\d+, \d+\]"):
        composition.model(**batch, labels=batch["input_ids"])


@pytest.mark.parametrize(
    ("mine", "theirs"), [([3, 2], [3, 3]), ([3, 3], [3, 2]), ([2, 3], [3, 2]), ([3, 2], None)]
)
def test_equal_lengths_with_other_padding_are_not_taken_for_the_same_tokens(
    mine: list[int], theirs: list[int] | None
) -> None:
    def mask(lengths: list[int] | None) -> Tensor | None:
        return lengths and torch.arange(3) < torch.tensor(lengths)[:, None]

    module = DynamicSwitch(Place("encoder.embeddings", 4, 2, 4), align="tokens")
    x = torch.randn(2, 3, 4)
    memory = Memory(torch.randn(2, 3, 4), mask(mine), source_mask=mask(theirs))
    with pytest.raises(ShapeError, match="the host's own tokenizer"):
        module(x, lambda: x, memory)
    module(x, lambda: x, Memory(memory.states, None, source_mask=mask([3, 3])))


def test_other_options_and_places_are_refused() -> None:
    place = Place("encoder.embeddings", 4, 2, 4)
    with pytest.raises(RecipeError, match="start: "):
        DynamicSwitch(place, start="zero")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="align: "):
        DynamicSwitch(place, align="words")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"sites of the host's encoder; at decoder.embeddings"):
        DynamicSwitch(Place("decoder.embeddings", 4, 2, 4), align="tokens")
    with pytest.raises(ShapeError, match="width 4 and memory width 4; got 4 and 5"):
        x = torch.randn(1, 2, 4)
        DynamicSwitch(place)(x, lambda: x, Memory(torch.randn(1, 2, 5), None))
