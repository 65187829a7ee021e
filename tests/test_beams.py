"""Beams of a sentence share what depends on the sentence, and come out as the host's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fusion.beams import once_per_sentence
from fusion.composition import compose

LINES = [
    "the cat sleeps .",
    "a very old dog sees the small cat near the house .",
    "the teacher reads .",
    "the house , the house , the house !",
]


@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
@pytest.mark.parametrize("returned", [1, 3])
def test_beam_search_gives_what_the_hosts_own_class_gives(
    make_recipe: Any, host: str, returned: int
) -> None:
    composition = compose(make_recipe(host, encoders={}, glue=[]))
    model = composition.model.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # large weights, so that what is said depends on what is read
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1 and "position" not in name:
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise)
    inputs = composition.processor(LINES)
    settings = {"num_beams": 4, "num_return_sequences": returned, "max_new_tokens": 10}
    with torch.inference_mode():
        found = model.generate(**inputs, **settings)
        expected = model.host.generate(**inputs, **settings)
    assert torch.equal(found, expected)
    assert len(set(map(tuple, found.tolist()))) > returned


class Decoder(nn.Module):
    """Projects what it is given, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.other = nn.Linear(3, 4), nn.Linear(3, 3)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.keys(states) + self.keys(self.other(states))  # type: ignore[no-any-return]


@pytest.mark.parametrize("equal", [True, False])
def test_rows_are_left_out_only_where_all_beams_have_the_same_states(equal: bool) -> None:
    torch.manual_seed(0)
    decoder, states = Decoder().double(), torch.randn(2, 5, 3, dtype=torch.float64)
    states = states.repeat_interleave(3, dim=0)
    if not equal:
        states[4, 2, 1] += 1e-9
    expected = decoder(states)
    rows: list[int] = []
    with once_per_sentence(decoder, states, 3):
        decoder.keys.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        found = decoder(states)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert rows == ([2, 6] if equal else [6, 6])
    assert torch.equal(decoder(states), expected)
