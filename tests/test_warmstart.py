"""Any nn.Module: every tensor gets its values from a named place, or everything is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion.backwards import backwards
from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import Source, tensor_digest
from fusion.errors import KeyMapError, LedgerError, SourceError, WarmStartError
from fusion.inits import generator_for
from fusion.ledger import Origin
from fusion.warmstart import parameters_on_meta, plan, verify_total, warm_start


class Net(nn.Module):
    """Linear layers by name."""

    def __init__(self, *names: str, width: int = 4) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(width, width))


class TiedNet(nn.Module):
    """An embedding that is the output matrix too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight


class BufferNet(nn.Module):
    """A buffer that is saved and one that the constructor computes."""

    def __init__(self, offset: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("ids", torch.arange(3) + offset, persistent=False)


def saved(folder: Path, state: dict[str, Tensor], name: str = "net.pt") -> Source:
    torch.save(state, folder / name)
    return open_source(folder / name)


def old_net(folder: Path) -> tuple[Source, dict[str, Tensor]]:
    state = {name: tensor.clone() for name, tensor in Net("fc1", "fc2", "fc5").state_dict().items()}
    return saved(folder, state), state


NEW = {"fc3.{p}": "transformer", "fc4.{p}": "transformer"}
ALL = ("fc1", "fc2", "fc3", "fc4", "fc5")


def on_meta(*names: str) -> Net:
    with parameters_on_meta():
        return Net(*names)


# The story of fc1 .. fc5


def test_a_net_with_new_layers_is_refused_with_every_layer_that_would_start_from_nothing(
    tmp_path: Path,
) -> None:
    source, _ = old_net(tmp_path)
    net = Net(*ALL)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WarmStartError) as error:
        warm_start(net, source)
    lines = str(error.value).split("\n")
    assert len(lines) == 4
    for name in ("fc3.weight", "fc3.bias", "fc4.weight", "fc4.bias"):
        assert any(line.startswith(f"{name}: would start from nothing") for line in lines)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("meta", [False, True])
def test_layers_named_in_init_are_initialised_and_the_rest_loaded(
    tmp_path: Path, meta: bool
) -> None:
    source, state = old_net(tmp_path)
    net = on_meta(*ALL) if meta else Net(*ALL)
    ledger = warm_start(net, source, init=NEW, seed=1)
    for name, tensor in state.items():
        assert torch.equal(net.get_parameter(name), tensor)
        assert ledger[name].origin is Origin.LOADED
        assert ledger[name].key == name
        assert ledger[name].digest == tensor_digest(tensor)
    for name in ("fc3", "fc4"):
        assert ledger[f"{name}.weight"].origin is Origin.INITIALISED
        assert ledger[f"{name}.weight"].rule == "transformer"
        assert ledger[f"{name}.weight"].seed == 1
        assert net.get_parameter(f"{name}.weight").abs().sum() > 0
        assert net.get_parameter(f"{name}.bias").abs().sum() == 0
    assert len(ledger) == 10
    assert not any(parameter.is_meta for parameter in net.parameters())


def test_the_warm_started_net_computes_and_learns(tmp_path: Path) -> None:
    source, _ = old_net(tmp_path)
    net = on_meta(*ALL)
    warm_start(net, source, init=NEW)
    x = torch.ones(1, 4)
    for name in ALL:
        x = net.get_submodule(name)(x)
    x.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_source_tensor_that_nothing_takes_is_refused_unless_ignored(tmp_path: Path) -> None:
    source, _ = old_net(tmp_path)
    with pytest.raises(WarmStartError) as error:
        warm_start(Net("fc1", "fc2"), source)
    message = str(error.value)
    assert "fc5.weight" in message and "fc5.bias" in message
    assert 'ignore: {"fc5.{rest*}": "the reason"}' in message

    ledger = warm_start(Net("fc1", "fc2"), source, ignore={"fc5.{rest*}": "the new net is shorter"})
    assert ledger.ignored == {
        "fc5.weight": "the new net is shorter",
        "fc5.bias": "the new net is shorter",
    }


def test_leaving_a_tensor_out_takes_a_reason(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "net.pt")
    with pytest.raises(WarmStartError, match="bias: ignore: say why"):
        warm_start(nn.Linear(2, 3, bias=False), tmp_path / "net.pt", ignore={"bias": " "})


def test_a_lazy_module_and_a_source_that_is_no_place_are_named(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(WarmStartError, match=r"weight: has no shape yet.*\n.*bias: has no shape"):
        warm_start(nn.LazyLinear(3), tmp_path / "net.pt")
    with pytest.raises(SourceError, match="found Tensor; save a state dict"):
        warm_start(nn.Linear(2, 3), state)


def test_a_rule_renames(tmp_path: Path) -> None:
    source, state = old_net(tmp_path)
    net = Net("fc1", "fc2", "last")
    ledger = warm_start(net, source, rules={"last.{p}": "fc5.{p}"})
    assert torch.equal(net.get_parameter("last.weight"), state["fc5.weight"])
    assert ledger["last.weight"].key == "fc5.weight"
    assert ledger["last.weight"].operations == ("rename",)


def test_a_rule_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    source, _ = old_net(tmp_path)
    with pytest.raises(WarmStartError, match=r"fc9\.\{p\}: the rule from fc5\.\{p\} matches no"):
        warm_start(Net("fc1", "fc2", "fc5"), source, rules={"fc9.{p}": "fc5.{p}"})


def test_two_rules_for_one_tensor_are_refused(tmp_path: Path) -> None:
    source, _ = old_net(tmp_path)
    rules = {"last.{p}": "fc5.{p}", "{layer}.weight": "{layer}.weight"}
    with pytest.raises(WarmStartError) as error:
        warm_start(Net("fc1", "fc2", "last", "new"), source, rules=rules)
    several, nothing, *more = str(error.value).split("\n")
    assert several.startswith('last.weight: "last.weight": more than one rule matches')
    assert nothing.startswith("new.weight: rule")
    assert [line.split(":")[0] for line in more] == ["new.bias"]


def test_every_misfit_is_reported_with_both_shapes(tmp_path: Path) -> None:
    state = {
        "wide.weight": torch.zeros(3, 4),
        "wide.bias": torch.zeros(4),
        "tall.weight": torch.zeros(4, 5),
        "tall.bias": torch.zeros(5),
    }
    with pytest.raises(WarmStartError) as error:
        warm_start(Net("wide", "tall"), saved(tmp_path, state))
    lines = str(error.value).split("\n")
    assert [line.split(":")[0] for line in lines] == ["wide.weight", "tall.weight", "tall.bias"]
    assert "shape [4, 4] expected, [3, 4] found" in lines[0]


def test_a_transposed_matrix_is_recognised(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    source = saved(tmp_path, {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)})
    with pytest.raises(WarmStartError, match="transposed"):
        warm_start(net, source)


def test_a_cast_that_loses_precision_is_refused_and_one_that_does_not_is_recorded(
    tmp_path: Path,
) -> None:
    double = {"weight": torch.zeros(2, 2, dtype=torch.float64), "bias": torch.zeros(2)}
    with pytest.raises(WarmStartError, match="would lose precision"):
        warm_start(nn.Linear(2, 2), saved(tmp_path, double))
    half = {"weight": torch.ones(2, 2, dtype=torch.bfloat16), "bias": torch.zeros(2)}
    net = nn.Linear(2, 2)
    ledger = warm_start(net, saved(tmp_path, half, "half.pt"))
    assert net.weight.dtype == torch.float32 and bool((net.weight == 1).all())
    assert ledger["weight"].operations == ({"cast": {"to": "float32", "before": "bfloat16"}},)


def test_layer_1_and_layer_10_are_not_confused(tmp_path: Path) -> None:
    state = {f"blocks.{i}.weight": torch.full((1, 1), float(i)) for i in range(12)}
    net = nn.Module()
    net.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(12))
    rules = {"layers.{i}.weight": "blocks.{i}.weight"}
    warm_start(net, saved(tmp_path, state), rules=rules)
    assert [layer.weight.item() for layer in net.layers] == list(range(12))

    only_one = {"layers.1.{p}": "blocks.1.{p}"}
    with pytest.raises(WarmStartError) as error:
        warm_start(net, saved(tmp_path, state), rules=only_one)
    assert "layers.10.weight: would start from nothing" in str(error.value)
    assert "layers.1.weight: " not in str(error.value)


def test_a_plan_reads_nothing_and_changes_nothing(tmp_path: Path) -> None:
    source, _ = old_net(tmp_path)
    net = on_meta(*ALL)
    decided = plan(net, source, init=NEW)
    assert decided.problems == ()
    assert decided.ledger.counts() == {"loaded": 6, "initialised": 4}
    assert all(parameter.is_meta for parameter in net.parameters())


# Ties and buffers


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("names", [("embed",), ("out",), ("embed", "out")])
def test_a_tie_survives_by_identity_whichever_name_the_source_has(
    tmp_path: Path, meta: bool, names: tuple[str, ...]
) -> None:
    value = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    source = saved(tmp_path, {f"{name}.weight": value for name in names})
    if meta:
        with parameters_on_meta():
            net = TiedNet()
    else:
        net = TiedNet()
    ledger = warm_start(net, source)
    assert net.embed.weight is net.out.weight
    assert torch.equal(net.embed.weight, value)
    assert sorted(ledger.counts().items()) == [("loaded", 1), ("tied", 1)]
    assert ledger.parameters() == (28, 0)


def test_a_tied_name_whose_source_tensor_has_other_values_is_refused(tmp_path: Path) -> None:
    state = {"embed.weight": torch.zeros(7, 4), "out.weight": torch.ones(7, 4)}
    with pytest.raises(WarmStartError, match=r"(?s)embed\.weight.*out\.weight"):
        warm_start(TiedNet(), saved(tmp_path, state))


def test_a_tied_name_whose_source_tensor_has_another_shape_is_refused(tmp_path: Path) -> None:
    state = {"embed.weight": torch.zeros(7, 4), "out.weight": torch.zeros(9, 4)}
    with pytest.raises(WarmStartError, match=r"out\.weight"):
        warm_start(TiedNet(), saved(tmp_path, state))


@pytest.mark.parametrize("meta", [False, True])
def test_saved_buffers_are_loaded_and_unsaved_ones_stay_as_constructed(
    tmp_path: Path, meta: bool
) -> None:
    other = BufferNet(offset=5)
    other.mean.fill_(2.0)
    source = saved(tmp_path, other.state_dict())
    if meta:
        with parameters_on_meta():
            net = BufferNet()
    else:
        net = BufferNet()
    ledger = warm_start(net, source)
    assert net.mean.tolist() == [2.0, 2.0]
    assert net.ids.tolist() == [0, 1, 2]
    assert ledger["mean"].origin is Origin.LOADED and ledger["mean"].kind == "buffer"
    assert ledger["ids"].origin is Origin.COMPUTED


def test_a_saved_buffer_that_the_source_lacks_is_refused(tmp_path: Path) -> None:
    state = BufferNet().state_dict()
    del state["mean"]
    with pytest.raises(WarmStartError, match="mean: would start from nothing"):
        warm_start(BufferNet(), saved(tmp_path, state))


def test_a_frozen_parameter_stays_frozen(tmp_path: Path) -> None:
    source, _ = old_net(tmp_path)
    with parameters_on_meta():
        net = Net("fc1", "fc2", "fc5")
        net.fc1.requires_grad_(False)
    ledger = warm_start(net, source)
    assert not net.fc1.weight.requires_grad and net.fc2.weight.requires_grad
    assert ledger["fc1.weight"].frozen and not ledger["fc2.weight"].frozen


def test_a_scalar_and_an_empty_tensor_are_loaded(tmp_path: Path) -> None:
    net = nn.Module()
    net.scale = nn.Parameter(torch.zeros(()))
    net.none = nn.Parameter(torch.zeros(0, 3))
    warm_start(net, saved(tmp_path, {"scale": torch.tensor(3.0), "none": torch.zeros(0, 3)}))
    assert net.scale.item() == 3.0


# Seeds


def test_initial_values_do_not_depend_on_build_order_or_other_parts() -> None:
    init = {"{name*}": "transformer"}
    one, other = on_meta("a", "b", "c"), on_meta("c", "a")
    warm_start(one, init=init, seed=3)
    torch.manual_seed(99)
    warm_start(other, init=init, seed=3)
    for name in ("a.weight", "c.weight"):
        assert torch.equal(one.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(one.get_parameter("a.weight"), one.get_parameter("b.weight"))


def test_a_prefix_takes_part_in_the_seed_as_the_full_name_does() -> None:
    init = {"{name*}": "transformer"}
    whole = nn.ModuleDict({"part": Net("a")})
    part = Net("a")
    warm_start(whole, init=init, seed=3)
    warm_start(part, init=init, seed=3, prefix="part.")
    assert torch.equal(whole["part"].a.weight, part.a.weight)


def test_another_seed_gives_other_values_and_the_global_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    one, other = on_meta("a"), on_meta("a")
    state = torch.random.get_rng_state()
    warm_start(one, init={"{name*}": "default"}, seed=1)
    warm_start(other, init={"{name*}": "default"}, seed=2)
    assert not torch.equal(one.a.weight, other.a.weight)
    assert torch.equal(torch.random.get_rng_state(), state)
    first = torch.rand(3, generator=generator_for(1, "a"))
    assert torch.equal(first, torch.rand(3, generator=generator_for(1, "a")))


# verify_total


def test_a_broken_tie_is_found() -> None:
    net = TiedNet()
    ledger = warm_start(net, init={"{name*}": "normal"})
    net.out.weight = nn.Parameter(net.embed.weight.detach().clone())
    with pytest.raises(LedgerError, match=r"out\.weight: no longer tied to embed\.weight"):
        verify_total(net, ledger)


def test_a_tie_that_the_ledger_does_not_know_is_found() -> None:
    net = Net("a", "b")
    ledger = warm_start(net, init={"{name*}": "normal"})
    net.b.weight = net.a.weight
    with pytest.raises(LedgerError, match="the ledger has them apart"):
        verify_total(net, ledger)


def test_a_tensor_on_meta_is_found() -> None:
    net = Net("a")
    ledger = warm_start(net, init={"{name*}": "normal"})
    net.a.to("meta")
    with pytest.raises(LedgerError, match=r"a\.weight: still on meta\na\.bias: still on meta"):
        verify_total(net, ledger)


def test_a_tensor_too_many_and_one_too_few_are_found() -> None:
    net = Net("a", "b")
    ledger = warm_start(net, init={"{name*}": "normal"})
    net.extra = nn.Parameter(torch.zeros(1))
    del net.b
    with pytest.raises(LedgerError) as error:
        verify_total(net, ledger)
    message = str(error.value)
    assert "extra: not in the ledger" in message
    assert "b.weight: in the ledger, not in the model" in message


# Modules and instructions of other kinds


def test_parameters_on_meta_keep_their_class_and_attributes(tmp_path: Path) -> None:
    class Marked(nn.Parameter):
        pass

    net = nn.Linear(2, 3, device="meta")
    net.weight = Marked(net.weight, requires_grad=False)
    net.weight.no_weight_decay = True
    torch.save({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "net.pt")
    warm_start(net, tmp_path / "net.pt")
    assert isinstance(net.weight, Marked) and net.weight.no_weight_decay
    assert not net.weight.requires_grad and net.bias.requires_grad


def test_a_source_whose_elements_share_memory_gives_each_its_own(tmp_path: Path) -> None:
    net = nn.Linear(2, 3, device="meta")
    state = {"weight": torch.ones(1).expand(3, 2), "bias": torch.ones(3)}
    torch.save(state, tmp_path / "net.pt")
    warm_start(net, tmp_path / "net.pt")
    with torch.no_grad():
        net.weight[0, 0] = 5
    assert net.weight.sum() == 10


def test_the_default_device_of_the_caller_does_not_matter(tmp_path: Path) -> None:
    source, state = old_net(tmp_path)
    with torch.device("meta"):
        net = Net(*ALL)
        ledger = warm_start(net, str(source.location), init=NEW)
        assert not plan(net, str(source.location), init=NEW).problems
    assert torch.equal(net.get_parameter("fc1.weight"), state["fc1.weight"])
    assert ledger["fc3.weight"].rule == "transformer"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"rules": ["fc1.{p}"]}, "rules: a mapping of patterns; found list"),
        ({"rules": {3: "fc1.{p}"}}, "rules: a pattern is text; found 3"),
        ({"ignore": {"fc5.{p}": None}}, r"ignore: fc5\.\{p\}: the reason is text; found None"),
        ({"ignore": "fc5.{p}"}, "ignore: a mapping of patterns; found str"),
        ({"init": {"fc3.{p}": 1}}, r"init: fc3\.\{p\}: the name of an init rule is text; found 1"),
    ],
)
def test_instructions_of_another_type_are_one_message(
    tmp_path: Path, told: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeyMapError, match=message):
        warm_start(Net(*ALL), old_net(tmp_path)[0], **told)


def test_what_is_no_module_is_one_message(tmp_path: Path) -> None:
    source, state = old_net(tmp_path)
    with pytest.raises(WarmStartError, match=r"an nn\.Module is filled; found dict"):
        warm_start(state, source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"init": {"ids": "zeros"}}, "the init"),
        ({"rules": {"ids": "mean"}}, "the rule from mean"),
    ],
)
def test_a_buffer_that_is_not_saved_is_named_as_one(
    tmp_path: Path, told: dict[str, Any], what: str
) -> None:
    source = saved(tmp_path, BufferNet().state_dict())
    with pytest.raises(WarmStartError) as error:
        warm_start(BufferNet(), source, **told)
    assert f"ids: {what} is for ids, a buffer that is not saved: its class fills it" in str(
        error.value
    )


def test_a_scale_that_lost_bits_is_in_the_ledger_and_is_not_undone(tmp_path: Path) -> None:
    small = torch.tensor([1e-3, 2e-7, 6e-8]).half()
    rules = {"w": {"from": "w", "ops": [{"scale": 0.125}]}}
    for value, exact in ((small, False), (torch.ones(3).half(), True)):
        net = nn.Module()
        net.w = nn.Parameter(torch.zeros(3).half())
        ledger = warm_start(net, saved(tmp_path, {"w": value}), rules=rules)
        if exact:
            assert ledger["w"].operations == ({"scale": {"by": 0.125}},)
            assert torch.equal(backwards(ledger, net.state_dict())["w"], value)
        else:
            assert ledger["w"].operations == ({"scale": {"by": 0.125, "exact": False}},)
            with pytest.raises(WarmStartError, match=r"w: scale by 0\.125 left float16's range"):
                backwards(ledger, net.state_dict())
