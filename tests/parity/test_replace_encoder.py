"""An encoder in place of the host's, against its equation in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import glue_at
from outputs import check_decoder
from reference import linear

from fusion.composition import compose
from fusion.errors import RecipeError


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize(("width", "projector"), [(24, "linear"), (32, "linear"), (32, "none")])
def test_the_decoder_attends_to_the_memory_alone(
    make_bench: Any, norm: str, width: int, projector: str
) -> None:
    bench = make_bench(norm=norm, memory_width=width, method="replace-encoder", projector=projector)
    p = dict(glue_at(bench, "encoder.output").state_dict())
    memory = bench.memory
    encoded = linear(p, "project", memory) if projector == "linear" else memory
    assert projector == "linear" or not p
    check_decoder(bench, encoded, bench.memory_mask)


@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
def test_the_hosts_encoder_is_neither_run_nor_trained(
    make_recipe: Any, sentences: list[str], host: str
) -> None:
    composition = compose(make_recipe(host, method="replace-encoder"))
    model, batch = composition.model, composition.processor(sentences, sentences[::-1])
    calls: list[int] = []
    model.host.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    model.train()
    model(**batch).loss.backward()
    model.eval()
    model.generate(**batch, num_beams=2)
    assert calls == []
    decoder = {id(parameter) for parameter in model.host.get_decoder().parameters()}
    own = [p for p in model.host.get_encoder().parameters() if id(p) not in decoder]
    assert own
    assert not any(p.requires_grad or p.grad is not None for p in own)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert {id(p) for p in model.glue.parameters()} <= {id(p) for p in trained}


def test_the_source_text_of_the_host_has_no_influence(
    make_recipe: Any, sentences: list[str]
) -> None:
    composition = compose(make_recipe(method="replace-encoder"))
    batch = composition.processor(sentences, sentences)
    other = batch | {"input_ids": batch["input_ids"].flip(0), "attention_mask": None}
    with torch.no_grad():
        assert torch.equal(composition.model(**batch).logits, composition.model(**other).logits)


def test_no_projector_needs_memory_of_the_hosts_width(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match="needs memory of the host's width 32; it is 24"):
        compose(make_recipe(method="replace-encoder", projector="none"))
    with pytest.raises(RecipeError, match="found 'mlp'; should be 'linear' or 'none'"):
        compose(make_recipe(method="replace-encoder", projector="mlp"))
