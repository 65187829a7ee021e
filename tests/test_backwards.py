"""A checkpoint that went in by rules comes out again, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion.backwards import backwards
from fusion.checkpoints.directory import open_source
from fusion.errors import WarmStartError
from fusion.ledger import Ledger
from fusion.warmstart import warm_start


class Attention(nn.Module):
    """Separate projections, where the checkpoint has them packed and turned."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 6)


RULES = {
    name + ".{p}": {"from": "in_{p}", "ops": [{"split": {"parts": 3, "index": index}}]}
    for index, name in enumerate("qkv")
} | {"out.weight": {"from": "proj.w", "ops": ["transpose", {"scale": 0.5}]}, "out.bias": "proj.b"}


def checkpoint() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"in_weight": (12, 4), "in_bias": (12,), "proj.w": (4, 6), "proj.b": (6,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def load(module: nn.Module, state: dict[str, Tensor], folder: Path, rules: Any = None) -> Ledger:
    torch.save(state, folder / "old.pt")
    return warm_start(module, open_source(folder / "old.pt"), rules=rules)


def test_packed_turned_and_scaled_tensors_come_out_as_they_were(tmp_path: Path) -> None:
    state, net = checkpoint(), Attention()
    ledger = load(net, state, tmp_path, RULES)
    back = backwards(ledger, net.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_tied_name_of_the_source_comes_out_too(tmp_path: Path) -> None:
    net = nn.Module()
    net.embed, net.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    net.head.weight = net.embed.weight
    table = torch.randn(5, 3)
    state = {"embed.weight": table, "decoder.out": table.clone()}
    ledger = load(net, state, tmp_path, {"head.weight": "decoder.out"})
    back = backwards(ledger, net.state_dict())
    assert back.keys() == state.keys() and torch.equal(back["decoder.out"], table)


def test_what_cannot_come_out_is_listed_whole(tmp_path: Path) -> None:
    net = nn.Module()
    net.a, net.b = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
    state = {"long": torch.randn(5, 3), "packed": torch.randn(4)}
    rules = {
        "a": {"from": "long", "ops": [{"slice": {"start": 1, "stop": 3}}]},
        "b": {"from": "packed", "ops": [{"split": {"parts": 2, "index": 0}}]},
    }
    ledger = load(net, state, tmp_path, rules)
    with pytest.raises(WarmStartError) as error:
        backwards(ledger, net.state_dict())
    lines = str(error.value).split("\n")
    assert lines[0] == "a: slice cannot be run backwards"
    assert lines[1] == "packed: only a part of it is in the model: b"


def test_pieces_that_were_trained_apart_from_their_twin_are_refused(tmp_path: Path) -> None:
    net = nn.Module()
    net.one, net.two = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    rules = {"one": "same", "two": "same"}
    ledger = load(net, {"same": torch.randn(3)}, tmp_path, rules)
    assert net.one.data_ptr() != net.two.data_ptr()
    backwards(ledger, net.state_dict())
    with torch.no_grad():
        net.two += 1
    with pytest.raises(WarmStartError, match="two: same has other values in another tensor"):
        backwards(ledger, net.state_dict())
