"""The story of the README: a small trained net, and a new one with two layers more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fusion
from fusion.errors import FusionError, KeyMapError, SourceError, WarmStartError
from fusion.ledger import Origin


class OldNet(nn.Module):
    """What was trained."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 3)
        self.fc2 = nn.Linear(3, 3)
        self.fc5 = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc5(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class NewNet(OldNet):
    """Two layers more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = nn.Linear(3, 3)
        self.fc4 = nn.Linear(3, 3)


class RenamedNet(nn.Module):
    """What the checkpoint of the second chapter was saved from."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_a = nn.Linear(10, 3)
        self.layer_b = nn.Linear(3, 3)
        self.out = nn.Linear(3, 1)


OLD = ("fc1", "fc2", "fc5")
NEW = {"fc3.{p}": "xavier", "fc4.{p}": "identity"}
RULES = {"fc1.{p}": "layer_a.{p}", "fc2.{p}": "layer_b.{p}", "fc5.{p}": "out.{p}"}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldNet:
    """`net.pt` in the working directory; the net that it was saved from."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = OldNet()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 10)).square().mean().backward()
        optimizer.step()
    torch.save(net.state_dict(), "net.pt")
    return net


@pytest.fixture
def renamed(trained: OldNet) -> RenamedNet:
    """`renamed.pt` beside it."""
    net = RenamedNet()
    torch.save(net.state_dict(), "renamed.pt")
    return net


def same(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, tensor by tensor in order."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# 1. A new net with two layers more


def test_strict_loading_raises(trained: OldNet) -> None:
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"fc3\.weight\""):
        NewNet().load_state_dict(torch.load("net.pt"))


def test_strict_false_loads_and_says_nothing_when_nothing_at_all_was_loaded(
    trained: OldNet,
) -> None:
    net = NewNet()
    wrong = {f"module.{key}": tensor for key, tensor in torch.load("net.pt").items()}
    before = [p.clone() for p in net.parameters()]
    net.load_state_dict(wrong, strict=False)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    torch.save(wrong, "wrong.pt")
    with pytest.raises(WarmStartError, match=r"fc1\.weight: would start from nothing"):
        fusion.warm_start(net, "wrong.pt", init=NEW)


def test_unsaid_layers_are_refused_by_name_and_nothing_is_changed(trained: OldNet) -> None:
    net = NewNet()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WarmStartError) as error:
        fusion.warm_start(net, "net.pt")
    assert str(error.value).split("\n") == [
        f'fc{n}.{p}: would start from nothing: net.pt has no fc{n}.{p}; nearest: "fc5.{p}"'
        for n in (3, 4)
        for p in ("weight", "bias")
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_ours_loads_bit_for_bit_initialises_what_is_named_and_prints_the_ledger(
    trained: OldNet, capsys: pytest.CaptureFixture[str]
) -> None:
    net = NewNet()
    ledger = fusion.warm_start(net, "net.pt", init=NEW, seed=1)
    for name in OLD:
        assert same(net.get_submodule(name), trained.get_submodule(name))
    assert torch.equal(net.fc4.weight, torch.eye(3))
    assert 0 < net.fc3.weight.abs().max() <= 1 and net.fc3.bias.tolist() == [0.0] * 3
    print(ledger)
    assert capsys.readouterr().out == (
        "fc1.weight  [3, 10]  loaded       net.pt: fc1.weight\n"
        "fc1.bias    [3]      loaded       net.pt: fc1.bias\n"
        "fc2.weight  [3, 3]   loaded       net.pt: fc2.weight\n"
        "fc2.bias    [3]      loaded       net.pt: fc2.bias\n"
        "fc5.weight  [1, 3]   loaded       net.pt: fc5.weight\n"
        "fc5.bias    [1]      loaded       net.pt: fc5.bias\n"
        "fc3.weight  [3, 3]   initialised  xavier, seed 1\n"
        "fc3.bias    [3]      initialised  xavier, seed 1\n"
        "fc4.weight  [3, 3]   initialised  identity, seed 1\n"
        "fc4.bias    [3]      initialised  identity, seed 1\n"
        "10 tensors: 6 loaded, 4 initialised\n"
    )


# 2. The checkpoint has other names


def test_other_names_are_mapped_by_rules(renamed: RenamedNet) -> None:
    net = NewNet()
    ledger = fusion.warm_start(net, "renamed.pt", rules=RULES, init=NEW)
    for ours, theirs in zip(OLD, ("layer_a", "layer_b", "out"), strict=True):
        assert same(net.get_submodule(ours), renamed.get_submodule(theirs))
        assert ledger[f"{ours}.weight"].key == f"{theirs}.weight"
    assert ledger["fc5.bias"].told == "renamed.pt: out.bias"


def test_without_rules_both_sides_of_every_name_are_listed(renamed: RenamedNet) -> None:
    with pytest.raises(WarmStartError) as error:
        fusion.warm_start(NewNet(), "renamed.pt", init=NEW)
    lines = str(error.value).split("\n")
    assert len(lines) == 12
    assert lines[0].startswith("fc1.weight: would start from nothing: renamed.pt has no fc1.weight")
    assert lines[-1].startswith("(nothing): renamed.pt has out.bias, which no tensor takes")
    assert lines[-1].endswith('to leave it out: ignore: {"out.{rest*}": "the reason"}')


def test_two_checkpoints_fill_one_net(trained: OldNet, renamed: RenamedNet) -> None:
    net = NewNet()
    ledger = fusion.warm_start(
        net,
        {"old": "net.pt", "other": "renamed.pt"},
        rules={**{f"{n}.{{p}}": f"old:{n}.{{p}}" for n in OLD}, "fc3.{p}": "other:layer_b.{p}"},
        init={"fc4.{p}": "zeros"},
        ignore={"other:layer_a.{p}": "fc1 is the old one's", "other:out.{p}": "so is fc5"},
    )
    assert same(net.fc1, trained.fc1) and same(net.fc3, renamed.layer_b)
    assert ledger["fc3.weight"].told == "renamed.pt: layer_b.weight"
    assert sorted(ledger.ignored) == [
        f"other:{name}.{p}" for name in ("layer_a", "out") for p in ("bias", "weight")
    ]


# 3. A parameter is edited on the way in


def edited(net: nn.Module, target: str, operations: list[object], key: str = "fc1.weight") -> str:
    """Load with one rule that has operations; what the ledger says of it."""
    rules = {target: {"from": key, "ops": operations}}
    return fusion.warm_start(net, "net.pt", rules=rules, init=NEW)[target].told


def test_rows_are_appended(trained: OldNet) -> None:
    net = NewNet()
    net.fc5 = nn.Linear(3, 2)
    ledger = fusion.warm_start(
        net, "net.pt", rules={"fc5.{p}": {"from": "fc5.{p}", "ops": [{"pad": 2}]}}, init=NEW
    )
    assert torch.equal(net.fc5.weight[:1], trained.fc5.weight)
    assert net.fc5.weight[1].tolist() == [0.0] * 3 and net.fc5.bias[1] == 0
    assert ledger["fc5.weight"].told == "net.pt: fc5.weight, pad"
    assert ledger["fc5.weight"].operations == (
        {"pad": {"size": 2, "dim": 0, "value": 0.0, "before": 1}},
    )


def test_columns_follow_their_token_to_a_new_vocabulary(trained: OldNet) -> None:
    old = [*"abcdefghij"]
    Path("old.txt").write_text("\n".join(old) + "\n", encoding="utf-8")
    Path("new.txt").write_text("\n".join(["new", *reversed(old)]) + "\n", encoding="utf-8")
    net = NewNet()
    net.fc1 = nn.Linear(11, 3)
    step = {"vocabulary": {"old": "old.txt", "new": "new.txt", "new_tokens": "copy:a", "dim": 1}}
    assert edited(net, "fc1.weight", [step]) == "net.pt: fc1.weight, vocabulary"
    assert torch.equal(net.fc1.weight[:, 1:], trained.fc1.weight.flip(1))
    assert torch.equal(net.fc1.weight[:, 0], trained.fc1.weight[:, 0])


def test_a_slice_is_taken(trained: OldNet) -> None:
    net = NewNet()
    net.fc1 = nn.Linear(4, 3)
    told = edited(net, "fc1.weight", [{"slice": {"start": 2, "stop": 6, "dim": 1}}])
    assert torch.equal(net.fc1.weight, trained.fc1.weight[:, 2:6])
    assert told == "net.pt: fc1.weight, slice"


def test_a_scale_is_applied(trained: OldNet) -> None:
    net = NewNet()
    told = edited(net, "fc1.weight", [{"scale": 0.5}])
    assert torch.equal(net.fc1.weight, trained.fc1.weight * 0.5)
    assert told == "net.pt: fc1.weight, scale"


# 4. A typo in any of these is an error that names the nearest right thing


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "./nett.pt"}, SourceError, 'no such file or directory; nearest: "net.pt"'),
        ({"init": {"fc33.{p}": "xavier"}}, WarmStartError, 'matches no tensor; nearest: "fc3.{p}"'),
        ({"init": {"fc3.{p}": "xaver"}}, WarmStartError, 'xaver"; nearest: "xavier"'),
        (
            {"init": {"fc3.{p}": "copy:fc2.wieght"}},
            WarmStartError,
            'init copy: no tensor "fc2.wieght"; nearest: "fc2.weight"',
        ),
        ({"init": {"fc3.{p}": "normal:0.1"}}, WarmStartError, 'init normal: takes nothing after a'),
        ({"rules": {"fc1.{p}": "layer_a.{q}"}}, KeyMapError, "hole on one side only: {p}, {q}"),
        (
            {"rules": RULES | {"fc1.{p}": "layer_aa.{p}"}},
            WarmStartError,
            'wants layer_aa.weight, which renamed.pt does not have; nearest: "layer_a.weight"',
        ),
        (
            {"rules": RULES | {"fc6.{p}": "out.{p}"}},
            WarmStartError,
            'fc6.{p}: the rule from out.{p} matches no tensor; nearest: "fc5.{p}"',
        ),
        (
            {"rules": RULES | {"fc1.{p}": {"form": "layer_a.{p}"}}},
            KeyMapError,
            'rule "fc1.{p}": a source pattern, or from: with ops: and where:',
        ),
        (
            {"rules": RULES | {"fc1.{p}": {"from": "layer_a.{p}", "opps": []}}},
            KeyMapError,
            'rule "fc1.{p}": no key "opps"; nearest: "ops"',
        ),
        (
            {"rules": RULES | {"fc1.{p}": {"from": "layer_a.{p}", "ops": ["sclae"]}}},
            WarmStartError,
            'no operation "sclae"; nearest: "scale"',
        ),
        (
            {"rules": RULES | {"fc1.{p}": {"from": "layer_a.{p}", "ops": [{"pad": {"sise": 3}}]}}},
            WarmStartError,
            'pad: no argument "sise"; nearest: "size"',
        ),
        (
            {"ignore": {"oout.{p}": "not needed"}},
            WarmStartError,
            'ignore: oout.{p} matches nothing in renamed.pt; nearest: "out.{p}"',
        ),
    ],
)  # fmt: skip
def test_a_typo_names_the_nearest_right_thing_and_changes_nothing(
    renamed: RenamedNet, arguments: dict[str, object], error: type[FusionError], message: str
) -> None:
    net = NewNet()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    told = {"source": "renamed.pt", "rules": RULES, "init": NEW} | arguments
    with pytest.raises(error, match=re.escape(message)):
        fusion.warm_start(net, told.pop("source"), **told)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_story_ends_with_a_net_that_learns(trained: OldNet) -> None:
    net = NewNet()
    ledger = fusion.warm_start(net, "net.pt", init=NEW)
    assert {entry.origin for entry in ledger} == {Origin.LOADED, Origin.INITIALISED}
    x = torch.randn(4, 10)
    for layer in (net.fc1, net.fc2, net.fc3, net.fc4, net.fc5):
        x = layer(x)
    x.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
