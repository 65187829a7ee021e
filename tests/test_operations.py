"""Operations: what they do to a tensor, how they are undone, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion.errors import KeyMapError
from fusion.operations import KINDS, NotInvertibleError, is_lossy, parse, run
from fusion.warmstart import warm_start

GRID = torch.arange(12.0).reshape(3, 4)
FINER = GRID[0] + 2.0 * torch.arange(5)[:, None]


def made(operations: list[Any], *tensors: Tensor) -> Tensor:
    """The result; on meta it must be of the same shape and dtype."""
    steps = [parse(operation) for operation in operations]
    result, _ = run(steps, list(tensors))
    planned, _ = run(steps, [tensor.to("meta") for tensor in tensors])
    assert planned.is_meta
    assert (planned.shape, planned.dtype) == (result.shape, result.dtype)
    return result


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("transpose", GRID.T),
        ({"transpose": {"first": 1, "second": 0}}, GRID.T),
        ({"split": {"parts": 3, "index": 1}}, GRID[1:2]),
        ({"split": {"parts": 2, "index": 0, "dim": 1}}, GRID[:, :2]),
        ({"split": {"parts": 2, "index": 1, "dim": -1}}, GRID[:, 2:]),
        ({"pick": 2}, GRID[2]),
        ({"pick": {"index": 0, "dim": 1}}, GRID[:, 0]),
        ({"slice": {"start": 1}}, GRID[1:]),
        ({"slice": {"stop": 2, "dim": 1}}, GRID[:, :2]),
        ({"pad": 5}, torch.cat([GRID, torch.zeros(2, 4)])),
        ({"pad": {"size": 5, "dim": 1, "value": 7}}, torch.cat([GRID, torch.full((3, 1), 7)], 1)),
        ({"pad": 3}, GRID),
        ({"reshape": [4, 3]}, GRID.reshape(4, 3)),
        ({"reshape": [2, -1]}, GRID.reshape(2, 6)),
        ({"cast": "float16"}, GRID.half()),
        ({"scale": 0.5}, GRID / 2),
        ({"scale": 2}, GRID * 2),
        ({"positions": 5}, torch.cat([GRID, GRID[:2]])),
        ({"positions": {"size": 7, "offset": 1}}, GRID[[0, 1, 2, 1, 2, 1, 2]]),
        ({"positions": 2}, GRID[:2]),
        ({"positions": {"size": 5, "method": "interpolate"}}, FINER),
        ({"function": "torch:neg"}, -GRID),
    ],
)  # fmt: skip
def test_one_tensor_is_changed_as_the_rule_says(operation: Any, expected: Tensor) -> None:
    result = made([operation], GRID)
    assert result.dtype == expected.dtype and torch.equal(result, expected)


def test_several_tensors_are_joined() -> None:
    q, k, v = GRID, GRID + 100, GRID + 200
    assert torch.equal(made(["concat"], q, k, v), torch.cat([q, k, v]))
    assert torch.equal(made([{"concat": 1}], q, k), torch.cat([q, k], 1))
    assert torch.equal(made(["stack"], q, k), torch.stack([q, k]))
    assert torch.equal(made([{"stack": -1}], q, k), torch.stack([q, k], -1))
    assert torch.equal(made(["average"], q, k), GRID + 50)
    assert torch.equal(made([{"function": "torch:add"}], q, k), q + k)


def test_an_average_is_taken_in_double_precision() -> None:
    large, one = torch.tensor([2.0**24]), torch.ones(1)
    assert made(["average"], large, one, one).item() == 5592406.0
    half = torch.full((2,), 60000.0, dtype=torch.float16)
    assert made(["average"], half, half).tolist() == half.tolist()


def test_operations_are_applied_in_order() -> None:
    packed = torch.arange(24.0).reshape(6, 4)
    steps = [{"split": {"parts": 2, "index": 1}}, "transpose", {"scale": 2}, {"pad": 6}]
    expected = torch.cat([packed[3:].T * 2, torch.zeros(2, 3)])
    assert torch.equal(made(steps, packed), expected)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (torch.int64, 0.5, "pad: int64 cannot hold 0.5"),
        (torch.int8, 300, "pad: int8 cannot hold 300"),
        (torch.uint8, -1, "pad: uint8 cannot hold -1"),
        (torch.bool, 2, "pad: bool cannot hold 2"),
    ],
)
def test_a_value_that_an_integer_cannot_hold_is_refused(
    dtype: torch.dtype, value: float, message: str
) -> None:
    with pytest.raises(KeyMapError) as caught:
        made([{"pad": {"size": 5, "value": value}}], torch.ones(3, dtype=dtype))
    assert message in str(caught.value)
    assert made([{"pad": {"size": 5, "value": 1}}], torch.ones(3, dtype=dtype)).equal(
        torch.ones(5, dtype=dtype)
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: "),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import sys\ndef f(tensor): sys.exit(4)", "SystemExit: 4"),
    ],
)
def test_a_function_whose_module_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    name = f"users_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyMapError) as caught:
        made([{"function": f"{name}:f"}], torch.ones(3))
    assert f"function {name}:f: {message}" in str(caught.value)


def test_every_operation_is_listed_under_its_name() -> None:
    assert {kind.name: kind for kind in KINDS.values()} == KINDS
    assert len(KINDS) == 14


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("transpoze", 'no operation "transpoze"; nearest: "transpose"'),
        ({"scale": 2, "pad": 3}, "a name, or one name with its arguments"),
        (["transpose"], "a name, or one name with its arguments"),
        ({3: 4}, 'no operation "3"; known: average, cast, '),
        ({"pad": {"sise": 3}}, 'pad: no argument "sise"; nearest: "size"'),
        ("pad", "pad: missing 1 required positional argument: 'size'"),
        ({"pad": "5"}, "pad: size: found '5'"),
        ({"pad": True}, "pad: size: found True"),
        ({"pad": 2.5}, "pad: size: found 2.5"),
        ({"split": {"parts": 2}}, "split: missing 1 required positional argument: 'index'"),
        ({"scale": None}, "scale: missing 1 required positional argument: 'by'"),
        ({"scale": "2"}, "scale: by: found '2'"),
        ({"reshape": 4}, "reshape: shape: found 4"),
        ({"reshape": [2, "3"]}, "reshape: shape: found [2, '3']"),
        (
            {"positions": {"size": 3, "method": "interpolat"}},
            "positions: method: found 'interpolat'; nearest: \"interpolate\"",
        ),
        ({"vocabulary": {"old": [1], "new": ["a"]}}, "vocabulary: old: found [1]"),
    ],
)
def test_an_operation_that_cannot_be_read_says_what_is_wrong_with_it(
    operation: Any, message: str
) -> None:
    with pytest.raises(KeyMapError) as caught:
        parse(operation)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"split": {"parts": 2, "index": 0}}, "split: piece 0 of 2 of 3 rows"),
        ({"split": {"parts": 3, "index": 3}}, "split: piece 3 of 3 of 3 rows"),
        ({"split": {"parts": 3, "index": -1}}, "split: piece -1 of 3 of 3 rows"),
        ({"split": {"parts": 0, "index": 0}}, "split: piece 0 of 0 of 3 rows"),
        ({"pick": 3}, "pick: entry 3 of 3"),
        ({"pick": -1}, "pick: entry -1 of 3"),
        ({"slice": {"start": 2, "stop": 2}}, "slice: 2 to 2 of 3"),
        ({"slice": {"stop": 4}}, "slice: 0 to 4 of 3"),
        ({"slice": {"start": -1}}, "slice: -1 to 3 of 3"),
        ({"pad": 2}, "pad: to 2, but there are 3"),
        ({"reshape": [5, 3]}, "reshape: [3, 4] does not fit [5, 3]"),
        ({"cast": "float33"}, 'cast: no dtype "float33"; nearest: "float32"'),
        ({"cast": "nn"}, 'cast: no dtype "nn"'),
        ({"scale": float("nan")}, "scale: by nan"),
        ({"scale": float("-inf")}, "scale: by -inf"),
        ({"positions": {"size": 2, "offset": 2}}, "positions: [3, 4] to 2 with offset 2"),
        ({"positions": {"size": 5, "offset": 3}}, "positions: [3, 4] to 5 with offset 3"),
        ({"positions": {"size": 5, "offset": -1}}, "positions: [3, 4] to 5 with offset -1"),
        ({"function": "torch"}, "function torch: write it as module:name"),
        ({"function": ":neg"}, "function :neg: "),
        ({"function": "no_such_module:f"}, "function no_such_module:f: No module named"),
        ({"function": "torch:no_such_name"}, "function torch:no_such_name: module 'torch' has no"),
        ({"function": "math:sqrt"}, "function math:sqrt: "),
        ({"function": "builtins:len"}, "function builtins:len: gave int, no tensor"),
        *(
            ({name: {"dim": 7} | more}, f"{name}: does not fit [3, 4]: ")
            for name, more in {
                "split": {"parts": 1, "index": 0},
                "pick": {"index": 0},
                "slice": {},
                "pad": {"size": 9},
                "concat": {},
                "stack": {},
                "vocabulary": {"old": ["a"], "new": ["a"]},
            }.items()
        ),
        ({"transpose": {"second": 2}}, "transpose: does not fit [3, 4]: "),
    ],
)
def test_an_operation_that_does_not_fit_is_one_clear_error_on_meta_too(
    operation: Any, message: str
) -> None:
    for tensor in (GRID, GRID.to("meta")):
        with pytest.raises(KeyMapError) as caught:
            run([parse(operation)], [tensor])
        assert str(caught.value).startswith(message)


def test_a_scalar_is_refused_where_rows_are_meant() -> None:
    for operation in ("transpose", {"pick": 0}, {"pad": 3}, {"slice": {"stop": 1}}, "concat"):
        with pytest.raises(KeyMapError, match="does not fit"):
            run([parse(operation)], [torch.tensor(3.0)])


def test_several_tensors_need_an_operation_that_joins_them() -> None:
    two = [GRID, GRID]
    with pytest.raises(KeyMapError, match=r"^transpose: of 2 tensors; concat them first$"):
        run([parse("transpose")], two)
    with pytest.raises(KeyMapError, match=r"^2 tensors and no operation that joins them"):
        run([], two)


@pytest.mark.parametrize("name", ["concat", "stack", "average"])
def test_tensors_of_several_dtypes_are_not_joined_silently(name: str) -> None:
    with pytest.raises(KeyMapError, match=f"^{name}: tensors of several dtypes: float16, float32$"):
        run([parse(name)], [GRID.half(), GRID])


def test_whole_numbers_are_neither_scaled_nor_averaged() -> None:
    with pytest.raises(KeyMapError, match=r"^scale: of int64; cast it first$"):
        run([parse({"scale": 0.5})], [GRID.long()])
    with pytest.raises(KeyMapError, match=r"^average: of int64$"):
        run([parse("average")], [GRID.long(), GRID.long()])


# Vocabularies


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_follow_their_token(dim: int) -> None:
    table = GRID if dim == 0 else GRID.T.contiguous()
    operation = {"vocabulary": {"old": ["a", "b", "c"], "new": ["c", "new", "a"], "dim": dim}}
    rows = made([operation], table).movedim(dim, 0)
    assert torch.equal(rows[0], GRID[2]) and torch.equal(rows[2], GRID[0])
    assert torch.equal(rows[1], GRID.mean(0))


def test_a_file_gives_the_tokens(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("a\nb\nc\n", encoding="utf-8")
    vocabulary = {"old": str(tmp_path / "old.txt"), "new": ["b"], "new_tokens": "zero"}
    assert torch.equal(made([{"vocabulary": vocabulary}], GRID), GRID[1:2])


# Backwards


def finite(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Numbers of a dtype, with zeros of both signs, and no subnormal ones."""
    least = torch.finfo(dtype).smallest_normal
    normal = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(
        lambda x: abs(x) >= least * 2**8 and abs(x) <= torch.finfo(dtype).max / 2**8
    )
    return st.one_of(st.sampled_from([0.0, -0.0, 1.0, -3.5]), normal)


@st.composite
def tensors(draw: st.DrawFn, dims: int | None = None, least: int = 1) -> Tensor:
    """A small tensor of any floating dtype."""
    rank = draw(st.integers(1, 3)) if dims is None else dims
    shape = [draw(st.integers(least, 4)) for _ in range(rank)]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    count = torch.Size(shape).numel()
    values = draw(st.lists(finite(dtype), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float64).to(dtype).reshape(shape)


def dims(draw: st.DrawFn, tensor: Tensor) -> int:
    """A dimension, counted from either end."""
    return draw(st.integers(-tensor.dim(), tensor.dim() - 1))


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, flat.numpy().tobytes()


Case = tuple[list[Any], list[Tensor]]


@st.composite
def transposes(draw: st.DrawFn) -> Case:
    tensor = draw(tensors())
    return [{"transpose": {"first": dims(draw, tensor), "second": dims(draw, tensor)}}], [tensor]


@st.composite
def joins(draw: st.DrawFn) -> Case:
    first = draw(tensors())
    dim, count = dims(draw, first), draw(st.integers(1, 3))
    if draw(st.booleans()):
        return [{"stack": dim}], [first + number for number in range(count)]
    others = [torch.cat([first] * (number + 1), dim) for number in range(count)]
    return [{"concat": dim}], others


@st.composite
def pads(draw: st.DrawFn) -> Case:
    tensor = draw(tensors())
    dim = dims(draw, tensor)
    size = tensor.shape[dim] + draw(st.integers(0, 3))
    return [{"pad": {"size": size, "dim": dim, "value": draw(st.floats(-9, 9))}}], [tensor]


@st.composite
def reshapes(draw: st.DrawFn) -> Case:
    tensor = draw(tensors())
    shape = draw(st.sampled_from([[-1], [tensor.numel()], [1, -1], [*tensor.shape[::-1]]]))
    return [{"reshape": list(shape)}], [tensor]


@st.composite
def casts(draw: st.DrawFn) -> Case:
    tensor = draw(tensors())
    names = ("float64", "float32", "float16", "bfloat16", "complex128")
    wider = [name for name in names if not is_lossy(tensor.dtype, getattr(torch, name))]
    return [{"cast": draw(st.sampled_from(wider))}], [tensor]


@st.composite
def scales(draw: st.DrawFn) -> Case:
    power = draw(st.integers(-6, 6))
    return [{"scale": draw(st.sampled_from([1, -1])) * 2.0**power}], [draw(tensors())]


@st.composite
def vocabularies(draw: st.DrawFn) -> Case:
    tensor = draw(tensors())
    dim = dims(draw, tensor)
    old = [f"t{row}" for row in range(tensor.shape[dim])]
    new = draw(st.permutations([*old, *(f"n{row}" for row in range(draw(st.integers(0, 3))))]))
    kind = draw(st.sampled_from(["mean", "zero", "copy:t0", "subwords"]))
    return [{"vocabulary": {"old": old, "new": list(new), "dim": dim, "new_tokens": kind}}], [
        tensor
    ]


@st.composite
def positions(draw: st.DrawFn) -> Case:
    tensor = draw(tensors(dims=2))
    offset = draw(st.integers(0, len(tensor) - 1))
    size = len(tensor) + draw(st.integers(0, 9))
    return [{"positions": {"size": size, "offset": offset}}], [tensor]


INVERTIBLE: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    "transpose": transposes,
    "concat": joins,
    "stack": joins,
    "pad": pads,
    "reshape": reshapes,
    "cast": casts,
    "scale": scales,
    "vocabulary": vocabularies,
    "positions": positions,
}


def undone(operations: list[Any], given: list[Tensor]) -> list[Tensor]:
    """Forwards as a plan decides it, through what the ledger keeps, and backwards."""
    steps = [parse(operation) for operation in operations]
    _, planned = run(steps, [tensor.to("meta") for tensor in given])
    result, done = run(steps, given)
    kept = [step.to_data() for step in done]
    assert [step.to_data() for step in planned] == kept
    back = [result]
    for step in reversed([parse(data) for data in kept]):
        back = step.invert(back[0])
    return back


@given(st.sampled_from(sorted(INVERTIBLE)).flatmap(lambda name: INVERTIBLE[name]()))
def test_what_was_done_is_undone_bit_for_bit(case: Case) -> None:
    operations, given_tensors = case
    back = undone(operations, given_tensors)
    assert [bits(one) for one in back] == [bits(one) for one in given_tensors]


@given(st.data())
def test_a_chain_of_operations_is_undone_bit_for_bit(data: st.DataObject) -> None:
    operations, given_tensors = data.draw(joins())
    value, _ = run([parse(one) for one in operations], given_tensors)
    for _ in range(data.draw(st.integers(1, 3))):
        dim = data.draw(st.integers(0, value.dim() - 1))
        step = data.draw(
            st.sampled_from(
                [
                    {"transpose": {"first": dim, "second": 0}},
                    {"pad": {"size": value.shape[dim] + 2, "dim": dim}},
                    {"reshape": [-1]},
                    {"scale": 0.25},
                ]
            )
        )
        operations = [*operations, step]
        value, _ = run([parse(step)], [value])
    back = undone(operations, given_tensors)
    assert [bits(one) for one in back] == [bits(one) for one in given_tensors]


@given(tensors(dims=2), st.data())
def test_all_pieces_together_are_the_whole_bit_for_bit(whole: Tensor, data: st.DataObject) -> None:
    dim = data.draw(st.integers(-2, 1))
    size = whole.shape[dim]
    parts = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    split = [{"split": {"parts": parts, "index": index, "dim": dim}} for index in range(parts)]
    pick = [{"pick": {"index": index, "dim": dim}} for index in range(size)]
    for operations in (split, pick):
        ran = [run([parse(one)], [whole]) for one in operations]
        steps = [done[0] for _, done in ran]
        assert [step.place() for step in steps] == [
            (number, len(operations)) for number in range(len(operations))
        ]
        assert bits(steps[0].assemble([piece for piece, _ in ran])) == bits(whole)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"slice": {"stop": 2}}, "slice cannot be run backwards"),
        ("average", "average cannot be run backwards"),
        ({"function": "torch:neg"}, "function cannot be run backwards"),
        ({"split": {"parts": 3, "index": 0}}, "split cannot be run backwards"),
        ({"pick": 0}, "pick cannot be run backwards"),
        ({"cast": "float16"}, "cast from float32 to float16 lost precision"),
        ({"cast": "bfloat16"}, "cast from float32 to bfloat16 lost precision"),
        ({"cast": "int64"}, "cast from float32 to int64 lost precision"),
        ({"scale": 3}, "scale by 3 is no power of two: not bit for bit"),
        ({"scale": 0.1}, "scale by 0.1 is no power of two: not bit for bit"),
        ({"scale": 0}, "scale by 0 is no power of two: not bit for bit"),
        ({"positions": {"size": 2}}, "positions: extend to 2 cannot be undone"),
        (
            {"positions": {"size": 5, "method": "interpolate"}},
            "positions: interpolate to 5 cannot be undone",
        ),
        (
            {"vocabulary": {"old": ["a", "b", "c"], "new": ["a"]}},
            "vocabulary: 2 old tokens are not in the new one",
        ),
        (
            {"vocabulary": {"old": ["a", "b"], "new": ["b", "a"]}},
            "vocabulary: rows without a token are not in the new one",
        ),
    ],
)
def test_what_loses_something_says_so_when_it_should_be_undone(
    operation: Any, message: str
) -> None:
    result, done = run([parse(operation)], [GRID])
    with pytest.raises(NotInvertibleError) as caught:
        done[0].invert(result)
    assert str(caught.value) == message


# Casts


NUMBERS = {
    torch.bool: [False, True],
    **{
        kind: [torch.iinfo(kind).min, torch.iinfo(kind).max, torch.iinfo(kind).max - 1, 0]
        for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    },
    **{
        kind: [torch.finfo(kind).max, torch.finfo(kind).smallest_normal, 1 + torch.finfo(kind).eps]
        for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    },
}  # fmt: skip


@pytest.mark.parametrize("old", NUMBERS, ids=str)
@pytest.mark.parametrize("new", NUMBERS, ids=str)
def test_a_cast_is_lossy_exactly_if_a_number_does_not_come_back(
    old: torch.dtype, new: torch.dtype
) -> None:
    there = torch.tensor(NUMBERS[old], dtype=old)
    back = there.to(new).to(old)
    out_of_range = (old, new) in {(torch.int64, torch.float64), (torch.int64, torch.float32)}
    same = torch.equal(there, back) and not out_of_range
    if old in (torch.int8, torch.int16, torch.int32, torch.int64) and new == torch.uint8:
        same = False  # -1 comes back by wrapping round
    if new in (torch.int8, torch.int16, torch.int32) and not old.is_floating_point:
        same = same and torch.iinfo(new).max >= (1 if old == torch.bool else torch.iinfo(old).max)
    assert is_lossy(old, new) is not same


def test_complex_numbers_lose_their_imaginary_part() -> None:
    assert is_lossy(torch.complex64, torch.float32)
    assert is_lossy(torch.complex128, torch.complex64)
    assert not is_lossy(torch.float32, torch.complex64)
    assert is_lossy(torch.float64, torch.complex64)


def test_eight_bit_floats_fit_into_wider_ones() -> None:
    assert not is_lossy(torch.float8_e4m3fn, torch.float32)
    assert not is_lossy(torch.float8_e5m2, torch.float16)
    assert is_lossy(torch.float32, torch.float8_e4m3fn)
    assert is_lossy(torch.float8_e5m2, torch.float8_e4m3fn)


# In a warm start


def test_a_function_of_the_users_runs_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_for_test.py").write_text(
        "def doubled(t):\n    return t * 2\n\ndef broken(t):\n    raise LookupError('no row')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(made([{"function": "mine_for_test:doubled"}], GRID), GRID * 2)
    with pytest.raises(
        KeyMapError, match=re.escape("function mine_for_test:broken: LookupError: no row")
    ):
        run([parse({"function": "mine_for_test:broken"})], [GRID])
    with pytest.raises(KeyMapError, match="has no attribute 'dubled'"):
        run([parse({"function": "mine_for_test:dubled"})], [GRID])
    sys.modules.pop("mine_for_test")


def test_a_piece_does_not_share_memory_with_its_whole(tmp_path: Path) -> None:
    torch.save({"qkv": torch.arange(6.0)}, tmp_path / "old.pt")
    with torch.device("meta"):
        net = nn.Module()
        net.q, net.k, net.v = (nn.Parameter(torch.empty(2)) for _ in range(3))
    rules = {
        name: {"from": "qkv", "ops": [{"split": {"parts": 3, "index": index}}]}
        for index, name in enumerate("qkv")
    }
    warm_start(net, tmp_path / "old.pt", rules=rules)
    assert [p.tolist() for p in (net.q, net.k, net.v)] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    for parameter in (net.q, net.k, net.v):
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
