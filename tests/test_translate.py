"""`translate` against the straightforward way: one sentence at a time, nothing kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fusion.composition import Composition, compose
from fusion.errors import DataError
from fusion.translate import translate

LINES = [
    "the cat sleeps .",
    "",
    "a very old dog sees the small cat near the house .",
    "the teacher reads .",
    "a dog reads near the old teacher and the small cat sleeps .",
    "the cat sees the dog .",
]
Opener = Callable[[Any], Any]


@pytest.fixture(params=["marian", "bart", "t5"])
def composed(request: Any, make_recipe: Any, open_glue: Opener) -> Composition:
    """A composition whose glue is open, so that the memory decides what comes out; in float64, so
    that the order in which numbers are added decides nothing."""
    composition = compose(make_recipe(request.param, generate={"max_new_tokens": 12}))
    open_glue(stirred(composition.model.double()))
    return composition


def stirred(model: Any) -> Any:
    """Give a host large weights, so that what it says depends on what it reads."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.host.named_parameters():
            if tensor.dim() > 1 and "position" not in name:
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise * 0.5)
    return model


@contextmanager
def nothing_kept(composition: Composition) -> Iterator[None]:
    """Every decoder step projects every memory anew, once per beam."""
    model = composition.model

    def forget(decoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
        for memory in model.placement.board.values():
            memory.reusable = False
            beams = kwargs["encoder_hidden_states"].shape[0] // memory.states.shape[0]
            memory.states = memory.states.repeat_interleave(beams, dim=0)
            if memory.mask is not None:
                memory.mask = memory.mask.repeat_interleave(beams, dim=0)

    hook = model.get_decoder().register_forward_pre_hook(forget, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("beams", [1, 3])
def test_output_is_that_of_one_sentence_at_a_time_without_caches(
    composed: Composition, beams: int
) -> None:
    found = translate(composed.model, composed.processor, LINES, batch_tokens=40, num_beams=beams)
    limit = composed.processor.max_length
    with nothing_kept(composed), torch.inference_mode():
        for line, text in zip(LINES, found, strict=True):
            if not line:
                assert text == ""
                continue
            inputs = composed.processor([line])
            settings = {"num_beams": beams, "use_cache": False, "max_length": limit or 512}
            ids = composed.model.generate(**inputs, **settings)
            assert composed.processor.decode(ids) == [text]
    assert len(set(found)) > 2


def test_keys_and_values_are_projected_once_per_sentence(make_recipe: Any) -> None:
    """Of the memory, and of the host encoder's states."""
    composition = compose(make_recipe("marian", generate={"max_new_tokens": 6}))
    rows: dict[str, list[int]] = {}
    for name, module in composition.model.named_modules():
        if name.endswith("k_proj") and ("glue" in name or "encoder_attn" in name):
            rows[name] = []
            module.register_forward_hook(
                lambda module, inputs, output, name=name: rows[name].append(inputs[0].shape[0])
            )
    lines = [line for line in LINES if line]
    translate(composition.model, composition.processor, lines, batch_tokens=10_000, num_beams=4)
    assert len(rows) == 6  # four sites of glue, two cross-attentions of the host
    assert all(counts == [len(lines)] for counts in rows.values()), rows


def test_a_line_that_is_too_long_is_named_by_its_number(make_recipe: Any) -> None:
    composition = compose(make_recipe("marian"))
    lines = ["the cat sleeps .", "", "the cat " * 200]
    with pytest.raises(DataError, match=r"^line 13: \d+ tokens, and the host has 128 positions"):
        translate(composition.model, composition.processor, lines, first_line=11)
