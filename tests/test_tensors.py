"""What a module's tensors lie in: whether each can be given values that are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fusion.errors import WarmStartError
from fusion.tensors import every_tensor, extra_state, in_place_of, overlaps_itself, unfillable
from fusion.warmstart import warm_start


def two(one: nn.Parameter, other: nn.Parameter | Tensor) -> nn.Module:
    module = nn.Module()
    module.a = one
    if isinstance(other, nn.Parameter):
        module.b = other
    else:
        module.register_buffer("b", other)
    return module


def sharing() -> dict[str, nn.Module]:
    table = torch.zeros(6, 4)
    whole = nn.Parameter(torch.zeros(3))
    return {
        "the same data": two(whole, nn.Parameter(whole.data)),
        "rows of one table": two(nn.Parameter(table[:4]), nn.Parameter(table[3:])),
        "columns of one table": two(nn.Parameter(table[:, :2]), nn.Parameter(table[:, 1:])),
        "a buffer of a parameter": two(whole, whole.data),
        "other types": two(nn.Parameter(table), nn.Parameter(table.view(torch.float64))),
        "transposed": two(nn.Parameter(table), nn.Parameter(table.T)),
    }


@pytest.mark.parametrize("kind", list(sharing()))
def test_two_tensors_that_share_memory_are_refused_and_stay_as_they_are(
    tmp_path: Path, kind: str
) -> None:
    module = sharing()[kind]
    state = {
        name: torch.full_like(t, n + 1) for n, (name, t) in enumerate(module.named_parameters())
    }
    state |= {name: torch.full_like(t, 9) for name, t in module.named_buffers()}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(WarmStartError, match=r"^x\.b: shares memory with a, but is another"):
        warm_start(module, tmp_path / "net.pt", prefix="x.")
    assert all(not tensor.any() for _, tensor, _ in every_tensor(module))


def test_tensors_that_lie_in_one_storage_side_by_side_are_filled(tmp_path: Path) -> None:
    table = torch.zeros(4, 6)
    columns = two(nn.Parameter(table[:, :3]), nn.Parameter(table[:, 3:]))
    interleaved = two(nn.Parameter(table.flatten()[::2]), nn.Parameter(table.flatten()[1::2]))
    state = {"a": torch.ones(4, 3), "b": torch.full((4, 3), 2.0)}
    torch.save(state, tmp_path / "net.pt")
    warm_start(columns, tmp_path / "net.pt")
    assert torch.equal(table, torch.cat([state["a"], state["b"]], 1))
    assert unfillable(interleaved, ["a", "b"]) == {}
    lstm = nn.LSTM(3, 4, num_layers=2)  # on a GPU, one flat storage holds all of its weights
    flat = torch.zeros(sum(p.numel() for p in lstm.parameters()))
    at = 0
    for parameter in lstm.parameters():
        parameter.data = flat[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    assert unfillable(lstm, [name for name, _ in lstm.named_parameters()]) == {}


def test_tensors_that_nobody_fills_may_share_memory() -> None:
    module = two(nn.Parameter(torch.zeros(3)), torch.zeros(3))
    module.register_buffer("c", module.b[1:])
    assert unfillable(module, ["a"]) == {}
    assert list(unfillable(module, ["a", "c"])) == ["c"]


def test_a_parameter_that_torch_does_not_let_us_change_is_named_and_nothing_is_changed(
    tmp_path: Path,
) -> None:
    module = two(nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1).expand(3)))
    with torch.inference_mode():
        module.c = nn.Parameter(torch.zeros(3))
    module.register_buffer("d", torch.zeros(3).to_sparse())
    torch.save({name: torch.ones(3) for name in "abcd"}, tmp_path / "net.pt")
    with pytest.raises(WarmStartError) as error:
        warm_start(module, tmp_path / "net.pt")
    assert [line.split(",")[0].split("(")[0] for line in str(error.value).split("\n")] == [
        "b: its elements share memory ",
        "c: was made in inference mode",
        "d: is sparse_coo: only dense tensors are filled",
    ]
    assert not module.a.any()


@pytest.mark.parametrize(
    ("tensor", "overlaps"),
    [
        (torch.zeros(3, 4), False),
        (torch.zeros(3, 4).T, False),
        (torch.zeros(6, 4)[::2, 1:3], False),
        (torch.zeros(1).expand(1), False),
        (torch.zeros(1, 4).expand(1, 4), False),
        (torch.zeros(0, 4), False),
        (torch.zeros(()), False),
        (torch.zeros(1).expand(2), True),
        (torch.zeros(4).expand(3, 4), True),
        (torch.zeros(9).as_strided((4, 3), (2, 1)), True),
    ],
)
def test_elements_in_one_cell_are_found(tensor: Tensor, overlaps: bool) -> None:
    assert overlaps_itself(tensor) == overlaps


class Marked(nn.Parameter):
    """A parameter of a library's own class."""


def test_what_takes_a_parameter_s_place_has_its_class_and_attributes() -> None:
    old = Marked(torch.empty(2, device="meta"), requires_grad=False)
    old.no_weight_decay = True
    new = in_place_of(old, torch.ones(2), requires_grad=True)
    assert type(new) is Marked and new.requires_grad and new.is_leaf and not new._is_view()
    assert new.no_weight_decay and torch.equal(new, torch.ones(2))
    assert type(in_place_of(torch.empty(2, device="meta"), torch.ones(2), False)) is Tensor


class Meter(nn.Module):
    """A module that saves a number beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.seen = 0

    def get_extra_state(self) -> int:
        return self.seen

    def set_extra_state(self, state: int) -> None:
        self.seen = state


def test_what_a_module_saves_besides_tensors_must_be_left_out_by_a_rule(tmp_path: Path) -> None:
    module = nn.Sequential(Meter())
    assert extra_state(module) == {"0._extra_state": "Meter"}
    assert extra_state(module[0]) == {"_extra_state": "Meter"}
    torch.save(module.state_dict(), tmp_path / "net.pt")
    with pytest.raises(WarmStartError, match=r"^0\._extra_state: Meter saves more than tensors"):
        warm_start(module, tmp_path / "net.pt")
    ignored = {"{name*}._extra_state": "counts from 0 again"}
    ledger = warm_start(module, tmp_path / "net.pt", ignore=ignored)
    assert ledger.ignored == {"0._extra_state": "counts from 0 again"}
