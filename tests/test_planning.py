"""A plan names every problem at once; a warm start is total, or leaves the module as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import tensor_digest
from fusion.errors import FusionError, LedgerError, SourceError, WarmStartError
from fusion.ledger import Ledger, Origin
from fusion.planning import Plan
from fusion.tensors import every_tensor
from fusion.warmstart import parameters_on_meta, plan, verify_total, warm_start


def linears(*names: str, width: int = 4) -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(width, width) for name in names})


def saved(folder: Path, state: Mapping[str, Tensor], name: str = "old.pt") -> Path:
    torch.save(dict(state), folder / name)
    return folder / name


def weights(seed: int, *names: str) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return linears(*names).state_dict()


def problems(decided: Plan) -> list[str]:
    return list(decided.problems)


# Several sources


def test_every_source_has_its_name_and_each_tensor_is_taken_from_the_one_that_has_it(
    tmp_path: Path,
) -> None:
    a, b = weights(1, "one"), weights(2, "two")
    sources = {"a": saved(tmp_path, a, "a.pt"), "b": saved(tmp_path, b, "b.pt")}
    net = linears("one", "two")
    ledger = warm_start(net, sources)
    assert torch.equal(net["one"].weight, a["one.weight"])
    assert torch.equal(net["two"].weight, b["two.weight"])
    assert ledger["two.bias"].source == str(tmp_path / "b.pt")
    assert ledger["two.bias"].keys == ("two.bias",) and ledger["two.bias"].sources == ()


def test_a_tensor_that_two_sources_have_needs_a_rule(tmp_path: Path) -> None:
    sources = {n: saved(tmp_path, weights(1, "one"), f"{n}.pt") for n in ("a", "b")}
    found = problems(plan(linears("one"), sources))
    assert found == [
        f"one.{p}: two sources have it: a:one.{p} and b:one.{p}; say which one with a rule, and "
        "ignore the other"
        for p in ("weight", "bias")
    ]
    rules, ignore = {"one.{p}": "b:one.{p}"}, {"a:one.{p}": "b is newer"}
    decided = plan(linears("one"), sources, rules=rules, ignore=ignore)
    assert problems(decided) == [] and decided.ledger["one.bias"].source == str(tmp_path / "b.pt")


def test_tensors_of_several_checkpoints_are_averaged_and_each_is_on_record(tmp_path: Path) -> None:
    sources = {
        f"step{n}": saved(tmp_path, {"w": torch.full((2,), float(n))}, f"{n}.pt") for n in (1, 2, 6)
    }
    net = nn.Module()
    net.w = nn.Parameter(torch.zeros(2))
    rule = {"from": [f"{name}:w" for name in sources], "ops": ["average"]}
    ledger = warm_start(net, sources, rules={"w": rule})
    assert net.w.tolist() == [3.0, 3.0]
    assert ledger["w"].origins == tuple((str(path), "w") for path in sources.values())
    assert ledger["w"].operations[-1] == "average"
    assert Ledger.from_json(ledger.to_json(), "here") == ledger


def test_no_source_at_all_is_named_as_such() -> None:
    assert problems(plan(nn.Linear(2, 2)))[0] == (
        "weight: would start from nothing: no source has no weight"
    )


# Rules


def test_a_rule_wins_over_the_name_and_the_name_is_then_left_over(tmp_path: Path) -> None:
    source = saved(tmp_path, weights(1, "one", "two"))
    decided = plan(linears("one"), source, rules={"one.{p}": "two.{p}"})
    lines = problems(decided)
    assert len(lines) == 2 and all("has one." in line for line in lines)


def test_a_rule_whose_source_is_not_there_names_the_nearest_one(tmp_path: Path) -> None:
    source = saved(tmp_path, weights(1, "one"))
    lines = problems(plan(linears("one"), source, rules={"one.{p}": "oone.{p}"}))
    assert lines[0] == (
        f'one.weight: rule "one.{{p}}" <- "oone.{{p}}" wants oone.weight, which {source} does not '
        'have; nearest: "one.weight"'
    )
    assert [line.split(":")[0] for line in lines] == [
        "one.weight",
        "one.bias",
        "(nothing)",
        "(nothing)",
    ]


def test_a_rule_for_a_tensor_that_is_ignored_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, weights(1, "one"))
    lines = problems(
        plan(linears("one"), source, rules={"one.{p}": "one.{p}"}, ignore={"one.bias": "old"})
    )
    assert lines == [
        'one.bias: rule "one.{p}" <- "one.{p}" takes one.bias, which is ignored: old'
    ]  # fmt: skip


def test_a_tensor_whose_namesake_is_ignored_starts_from_nothing(tmp_path: Path) -> None:
    source = saved(tmp_path, weights(1, "one"))
    lines = problems(plan(linears("one"), source, ignore={"one.bias": "too old"}))
    assert lines == ["one.bias: would start from nothing: its source is ignored (too old)"]


def test_where_that_lacks_a_layer_is_one_problem_among_the_others(tmp_path: Path) -> None:
    source = saved(tmp_path, weights(1, "l0", "l1"))
    rule = {"from": "l{i}.{p}", "where": {"i": [1]}}
    lines = problems(plan(linears("l0", "l1"), source, rules={"l{i}.{p}": rule}))
    assert [line.split(":")[0] for line in lines[:2]] == ["l1.weight", "l1.bias"]
    assert "where.i says nothing of 1; it has 0" in lines[0]
    assert len([line for line in lines if "has l0." in line]) == 2


def test_shapes_are_compared_after_the_operations(tmp_path: Path) -> None:
    source = saved(tmp_path, {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    rule = {"weight": {"from": "weight", "ops": [{"pad": 5}, "transpose"]}}
    lines = problems(plan(nn.Linear(2, 3), source, rules=rule))
    assert lines == [
        f"weight: shape [3, 2] expected, [2, 5] found in {source}: weight after pad, transpose"
    ]


def test_a_lossy_cast_is_refused_unless_the_rule_says_cast(tmp_path: Path) -> None:
    for number, dtype in enumerate((torch.float64, torch.int32, torch.int64, torch.complex64)):
        state = {"weight": torch.ones(3, 2).to(dtype), "bias": torch.zeros(3)}
        source = saved(tmp_path, state, f"{number}.pt")
        line = problems(plan(nn.Linear(2, 3), source))[0]
        assert line.startswith(f"weight: dtype torch.float32 expected, {dtype} found")
        assert "ops: [{cast: float32}]" in line
        rule = {"weight": {"from": "weight", "ops": [{"cast": "float32"}]}}
        net = nn.Linear(2, 3)
        warm_start(net, source, rules=rule)
        assert bool((net.weight == 1).all())


def test_what_an_operation_gets_wrong_is_one_problem_of_its_tensor(tmp_path: Path) -> None:
    source = saved(tmp_path, weights(1, "one", "two"))
    rules = {
        "one.weight": {"from": "one.weight", "ops": [{"split": {"parts": 3, "index": 0}}]},
        "one.bias": {"from": ["one.bias", "two.bias"]},
        "two.weight": {"from": "two.weight", "ops": ["transpoze"]},
        "two.bias": "two.bias",
    }
    lines = problems(plan(linears("one", "two"), source, rules=rules))
    assert [line.split(":")[0] for line in lines] == ["one.weight", "one.bias", "two.weight"]
    assert lines[0].endswith("split: piece 0 of 3 of 4 rows")
    assert lines[1].endswith("2 tensors and no operation that joins them: concat, ...")
    assert lines[2].endswith('no operation "transpoze"; nearest: "transpose"')


def test_how_to_leave_a_tensor_out_is_said_with_a_pattern_that_works(tmp_path: Path) -> None:
    state = weights(1, "one") | {"scale": torch.ones(1), "head.a.b": torch.ones(1)}
    source = saved(tmp_path, state)
    lines = problems(plan(linears("one"), source))
    assert 'ignore: {"scale": "the reason"}' in lines[0]
    assert 'ignore: {"head.{rest*}": "the reason"}' in lines[1]
    ignore = {"scale": "the reason", "head.{rest*}": "the reason"}
    assert problems(plan(linears("one"), source, ignore=ignore)) == []


def test_an_init_and_a_source_for_one_tensor_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, weights(1, "one"))
    lines = problems(plan(linears("one"), source, init={"one.bias": "zeros"}))
    assert lines == [
        f"one.bias: both loaded from {source}: one.bias and initialised by zeros; drop one "
        "(ignore: leaves a source tensor out)"
    ]


def test_two_inits_for_one_tensor_are_refused() -> None:
    init = {"one.{p}": "zeros", "{n}.bias": "ones"}
    assert problems(plan(linears("one"), init=init)) == [
        "one.bias: more than one init matches: one.{p}, {n}.bias"
    ]


def test_a_plan_is_made_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"weight": torch.full((3, 2), torch.nan), "bias": torch.zeros(3)}, path)
    assert problems(plan(nn.Linear(2, 3), path)) == []
    with pytest.raises(WarmStartError, match=r"weight: .*old\.safetensors: weight holds 6 NaN"):
        warm_start(nn.Linear(2, 3), path)
    net = nn.Linear(2, 3)
    warm_start(net, path, allow_nonfinite=True)
    assert bool(net.weight.isnan().all())


def test_infinity_made_by_an_operation_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    state = {"weight": torch.full((3, 2), 1e6), "bias": torch.zeros(3)}
    net = nn.Linear(2, 3).half()
    before = [p.clone() for p in net.parameters()]
    rules = {"{p}": {"from": "{p}", "ops": [{"cast": "float16"}]}}
    with pytest.raises(WarmStartError, match=r"weight: holds 6 inf, the first at .*, made by cast"):
        warm_start(net, saved(tmp_path, state), rules=rules)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


# Inits


def test_default_leaves_the_rest_of_its_module_alone(tmp_path: Path) -> None:
    state = {"weight": torch.randn(3, 3)}
    net = nn.Linear(3, 3)
    ledger = warm_start(net, saved(tmp_path, state), init={"bias": "default"})
    assert torch.equal(net.weight, state["weight"])
    assert ledger["bias"].digest == tensor_digest(net.bias)


@pytest.mark.parametrize("owner", [nn.Linear(3, 4), nn.LayerNorm(3), nn.BatchNorm1d(3)])
def test_default_gives_the_same_on_meta_and_off_and_each_digest_is_of_the_final_values(
    owner: nn.Module,
) -> None:
    init = {"{p}": "default"}
    ledger = warm_start(owner, init=init, seed=3)
    real = {name: tensor.clone() for name, tensor in owner.state_dict().items()}
    for name, tensor in real.items():
        assert ledger[name].digest == tensor_digest(tensor)
    again = owner.to("meta")
    warm_start(again, init=init, seed=3)
    assert all(torch.equal(real[name], tensor) for name, tensor in again.state_dict().items())


class Gate(nn.Linear):
    """Has a parameter that `reset_parameters` does not know."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.gate = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(
    ("module", "init", "message"),
    [
        (Gate(), {"{p}": "default"}, "gate: default of Gate left it unfilled"),
        (
            nn.ParameterList([nn.Parameter(torch.zeros(2))]),
            {"0": "default"},
            "0: init default: ParameterList has no reset_parameters",
        ),
        (nn.Linear(2, 2), {"{p}": "xaviar"}, 'no init "xaviar"; nearest: "xavier"'),
        (nn.Linear(2, 2), {"{p}": "normal:0.1"}, 'init normal: takes nothing after a colon; found'),
        (
            nn.Linear(2, 2),
            {"weight": "normal", "bias": "copy:wieght"},
            'bias: init copy: no tensor "wieght"; nearest: "weight"',
        ),
        (
            nn.Linear(2, 2),
            {"weight": "normal", "bias": "copy:weight"},
            "bias: init copy:weight: this tensor is [2] float32, and weight is [2, 2] float32",
        ),
        (
            nn.Linear(2, 2),
            {"weight": "copy:weight", "bias": "zeros"},
            "weight: init copy:weight: that is this tensor itself",
        ),
        (
            nn.Linear(2, 2),
            {"weight": "mean_rows:weight", "bias": "zeros"},
            "weight: init mean_rows:weight: that is this tensor itself",
        ),
        (
            linears("a", "b", "c"),
            {"a.{p}": "zeros", "b.weight": "copy:c.weight", "c.weight": "copy:a.weight",
             "b.bias": "copy:c.bias", "c.bias": "copy:b.bias"},
            "b.weight: init copy:c.weight: c.weight is itself copy:a.weight",
        ),
        (
            nn.BatchNorm1d(2),
            {"{p}": "normal"},
            "num_batches_tracked: init normal: NotImplementedError: ",
        ),
    ],
)  # fmt: skip
def test_an_init_that_cannot_be_is_refused_and_nothing_is_changed(
    module: nn.Module, init: dict[str, str], message: str
) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(WarmStartError) as caught:
        warm_start(module, init=init)
    assert message in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_copy_is_of_the_final_values_whatever_the_order_and_the_name(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        net = nn.ModuleDict({"new": nn.Embedding(4, 3), "row": nn.Embedding(2, 3)})
        net["old"], net["out"] = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        net["out"].weight = net["old"].weight
        return net

    table = torch.randn(4, 3)
    init = {"new.weight": "copy:out.weight", "row.weight": "mean_rows:out.weight"}
    with parameters_on_meta():
        empty = build()
    for module in (build(), empty):
        warm_start(module, saved(tmp_path, {"old.weight": table}), init=init)
        assert torch.equal(module["new"].weight, table)
        assert torch.allclose(module["row"].weight, table.mean(0).expand(2, 3))
        assert module["out"].weight is module["old"].weight
        assert module["new"].weight is not module["old"].weight


# Memory and ties


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_one_source_tensor_in_two_places_is_two_tensors(tmp_path: Path, suffix: str) -> None:
    state = {"same": torch.randn(3)}
    path = tmp_path / f"old.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    with parameters_on_meta():
        net = nn.Module()
        net.a, net.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    warm_start(net, path, rules={"a": "same", "b": "same"})
    with torch.no_grad():
        net.a.zero_()
    assert torch.equal(net.b, state["same"])


def test_a_tie_of_the_source_is_no_tie_of_a_module_that_has_none(tmp_path: Path) -> None:
    table = torch.randn(3, 2)
    source = saved(tmp_path, {"a": table, "b": table})  # torch keeps them one
    with parameters_on_meta():
        net = nn.Module()
        net.a, net.b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(3, 2))
    warm_start(net, source)
    with torch.no_grad():
        net.a.zero_()
    assert torch.equal(net.b, table)


def test_a_buffer_that_is_saved_under_one_of_its_names_is_loaded(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.Module(), "b": nn.Module()})
    shared = torch.zeros(2)
    net["a"].register_buffer("mean", shared, persistent=False)
    net["b"].register_buffer("mean", shared)
    ledger = warm_start(net, saved(tmp_path, {"b.mean": torch.ones(2)}))
    assert net["a"].mean is net["b"].mean and net["a"].mean.tolist() == [1.0, 1.0]
    assert ledger["a.mean"].tied_to == "b.mean"


def test_a_buffer_on_meta_that_nothing_computes_is_refused_instead_of_zeroed() -> None:
    with torch.device("meta"):
        net = nn.Module()
        net.register_buffer("ids", torch.arange(3), persistent=False)
    with pytest.raises(WarmStartError, match="ids: is on meta, and nothing computes it"):
        warm_start(net)
    with pytest.raises(WarmStartError, match="ids: compute of Module left it unfilled"):
        warm_start(net, compute=lambda owner: None)
    warm_start(net, compute=lambda owner: owner.ids.copy_(torch.arange(3)))
    assert net.ids.tolist() == [0, 1, 2]


# Any module, any instructions


class Node(nn.Module):
    """A module with tensors of its own and children."""


@dataclass
class Told:
    """What a case says, and the file's content."""

    state: dict[str, Tensor]
    rules: dict[str, Any] = field(default_factory=dict)
    init: dict[str, str] = field(default_factory=dict)
    ignore: dict[str, str] = field(default_factory=dict)


LEAVES = {
    "linear": lambda: nn.Linear(2, 2),
    "wide": lambda: nn.Linear(2, 3, bias=False),
    "embed": lambda: nn.Embedding(3, 2, padding_idx=0),
    "norm": lambda: nn.LayerNorm(2),
    "batch": lambda: nn.BatchNorm1d(2),
}
INITS = ["zeros", "ones", "normal", "xavier", "identity", "orthogonal", "default", "transformer"]


@st.composite
def modules(draw: st.DrawFn, depth: int = 2) -> nn.Module:
    """Nested modules with parameters, saved and unsaved buffers, and names that are prefixes."""
    node = Node()
    for name in draw(st.lists(st.sampled_from("pq"), unique=True, max_size=2)):
        frozen = draw(st.booleans())
        node.register_parameter(name, nn.Parameter(torch.randn(2, 2), requires_grad=not frozen))
    for name in draw(st.lists(st.sampled_from("bc"), unique=True, max_size=2)):
        value = draw(st.sampled_from([torch.randn(2), torch.arange(3), torch.tensor(True)]))
        node.register_buffer(name, value.clone(), persistent=draw(st.booleans()))
    names = draw(st.lists(st.sampled_from(["l1", "l10", "l2"]), unique=True, max_size=3))
    for name in names:
        if depth and draw(st.booleans()):
            node.add_module(name, draw(modules(depth - 1)))
        else:
            node.add_module(name, LEAVES[draw(st.sampled_from(sorted(LEAVES)))]())
    return node


def tied(draw: st.DrawFn, module: nn.Module) -> None:
    """Tie some parameters of one shape, and use a child twice."""
    for _ in range(draw(st.integers(0, 2))):
        parameters = dict(module.named_parameters(remove_duplicate=False))
        if len(parameters) < 2:
            return
        one, two = draw(st.permutations(sorted(parameters)))[:2]
        if parameters[one].shape == parameters[two].shape:
            path, _, leaf = two.rpartition(".")
            setattr(module.get_submodule(path), leaf, parameters[one])
    children = [name for name, _ in module.named_children()]
    if children and draw(st.booleans()):
        module.add_module("again", module.get_submodule(children[0]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Module, Told]:
    """A module, a file that more or less fits, and instructions that more or less cover it."""
    module = draw(modules())
    tied(draw, module)
    state = {
        name: torch.randn_like(t) if t.is_floating_point() else t.clone()
        for names, t, _ in every_tensor(module)
        for name in [n for n in names if n in module.state_dict()][:1]
    }
    told, fits = Told(state), draw(st.booleans())
    names = sorted(state)
    some = st.lists(st.sampled_from(names), unique=True, max_size=3) if names else st.just([])
    for name in draw(some):  # the file lacks it
        plain = ["zeros", "ones"]
        told.init[name] = draw(st.sampled_from(plain if fits else INITS))
        if state[name].dim() == 2:
            told.init[name] = draw(st.sampled_from(INITS[:6]))
        del state[name]
    for name in draw(some):  # it is called otherwise
        if name in state:
            square = state[name].dim() == 2 and len(set(state[name].shape)) == 1
            steps = draw(st.sampled_from([[], ["transpose"], [{"scale": 2}]]))
            steps = steps if square or not fits else []
            state[f"old.{name}"] = state.pop(name)
            told.rules[name] = {"from": f"old.{name}", "ops": steps} if steps else f"old.{name}"
    if draw(st.booleans()) or not state:  # nobody wants it
        state["extra.0"] = torch.ones(2)
        told.ignore["extra.{n}"] = "of no use"
    if fits:
        return module, told
    for said in (told.rules, told.init, told.ignore):  # not all of it is said
        for name in list(said):
            if draw(st.integers(0, 3)) == 0:
                del said[name]
    if draw(st.integers(0, 4)) == 0:  # it does not fit
        name = draw(st.sampled_from(sorted(state)))
        wrong = [state[name][None], state[name].double(), state[name] * torch.nan]
        state[name] = draw(st.sampled_from(wrong))
    for name in draw(some):  # and what is said twice
        if draw(st.integers(0, 3)) == 0:
            told.init[name] = "zeros"
    return module, told


def contents(module: nn.Module) -> list[tuple[str, int, bool, tuple[int, ...], str | None]]:
    """Every name with its object, and its bits unless it is on meta."""
    return [
        (name, id(t), t.requires_grad, tuple(t.shape), None if t.is_meta else tensor_digest(t))
        for names, t, _ in every_tensor(module)
        for name in names
    ]


@settings(max_examples=200, deadline=None)
@given(case=cases(), meta=st.booleans(), suffix=st.sampled_from(["pt", "safetensors"]))
def test_a_warm_start_is_total_or_leaves_the_module_bit_for_bit_as_it_was(
    case: tuple[nn.Module, Told], meta: bool, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    module, told = case
    path = tmp_path_factory.mktemp("case") / f"old.{suffix}"
    torch.save(told.state, path) if suffix == "pt" else save_file(told.state, path)
    if meta:
        for name, parameter in list(module.named_parameters(remove_duplicate=False)):
            owner, _, leaf = name.rpartition(".")
            held = module.get_submodule(owner)._parameters
            held[leaf] = _as_meta(parameter)
    _as_meta.cache.clear()
    before = contents(module)
    decided: Plan | None = None
    try:
        decided = plan(module, path, rules=told.rules, init=told.init, ignore=told.ignore)
        ledger = warm_start(module, path, rules=told.rules, init=told.init, ignore=told.ignore)
    except LedgerError:
        raise
    except FusionError as error:
        event(type(error).__name__)
        assert contents(module) == before
        assert str(error).strip()
        return
    event("loaded")
    assert decided is not None and decided.problems == ()
    verify_total(module, ledger)
    _check(module, told, ledger, dict((row[0], row) for row in before))


class _AsMeta:
    """A parameter on meta, the same one for the same parameter."""

    def __init__(self) -> None:
        self.cache: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def __call__(self, parameter: nn.Parameter) -> nn.Parameter:
        meta = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        return self.cache.setdefault(id(parameter), (meta, parameter))[0]


_as_meta = _AsMeta()


def _check(module: nn.Module, told: Told, ledger: Ledger, before: dict[str, Any]) -> None:
    """Every tensor is what its entry says, and every source tensor is accounted for."""
    used = set()
    for names, tensor, _ in every_tensor(module):
        assert sum(ledger[name].origin is not Origin.TIED for name in names) == 1
        for name in names:
            entry = ledger[name]
            used.update(entry.keys)
            assert (entry.shape, entry.frozen) == (tuple(tensor.shape), not tensor.requires_grad)
            if entry.origin is Origin.TIED:
                continue
            assert entry.digest == tensor_digest(tensor)
            if entry.origin is Origin.LOADED:
                expected = told.state[entry.keys[0]]
                steps = [step for step in entry.operations if step != "rename"]
                for step in steps:
                    expected = expected.T if "transpose" in step else expected * 2
                assert torch.equal(tensor, expected)
            elif entry.origin is Origin.COMPUTED:
                assert entry.digest == before[name][4]
            elif entry.origin is Origin.INITIALISED:
                assert told.init[name] == entry.rule
    assert used | set(ledger.ignored) == set(told.state)
    assert not used & set(ledger.ignored)


def test_a_file_that_changed_after_it_was_opened_is_refused_and_nothing_is_changed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.safetensors"
    save_file(weights(1, "one"), path)
    source = open_source(path)
    net = linears("one")
    assert plan(net, source).problems == ()
    before = contents(net)
    path.write_bytes(path.read_bytes()[:-8] + b"12345678")
    with pytest.raises(SourceError, match="has changed since it was opened"):
        warm_start(net, source)
    assert contents(net) == before


def test_a_tied_tensor_is_computed_only_if_all_of_its_names_are(tmp_path: Path) -> None:
    net = nn.ModuleDict({"shared": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    net["head"].weight = net["shared"].weight
    source = saved(tmp_path, {"extra": torch.ones(1)})
    told = {"ignore": {"extra": "of no use"}}
    decided = plan(net, source, computed=lambda name: name == "head.weight", **told)
    assert problems(decided)[0].startswith("shared.weight: would start from nothing")
    assert problems(plan(net, source, computed=lambda name: True, **told)) == []


def test_a_function_that_works_in_place_changes_no_other_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in_place.py").write_text("def add_one(t):\n    return t.add_(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"weight": weight}, tmp_path / "old.pt")
    module = nn.ModuleList(nn.Linear(3, 2, bias=False) for _ in range(2))
    changed = {"from": "weight", "ops": [{"function": "in_place:add_one"}]}
    rules = {"0.weight": changed, "1.weight": "weight"}
    ledger = warm_start(module, tmp_path / "old.pt", rules=rules)
    for index, expected in enumerate((weight + 1, weight)):
        assert torch.equal(module[index].weight, expected)
        assert ledger[f"{index}.weight"].digest == tensor_digest(expected)
