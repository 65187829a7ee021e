"""Pickles made to run code are refused with the name they use, and nothing of them runs.

Every file is shown to run when it is opened as it should not be: by `pickle` or by `torch.load`
with `weights_only=False`.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pickled import entry, integer, name, program, tensor, text, write_zip

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.distributed import open_distributed
from fusion.checkpoints.standins import StandIn
from fusion.checkpoints.torch import load_pickle, open_torch
from fusion.errors import SourceError


class Reduces:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(trace: Path) -> str:
    return f"open({str(trace)!r}, 'w').close()"


def attacks(trace: Path) -> dict[str, tuple[Any, str]]:
    """Name -> what is pickled, and the global that is named in the error."""
    code, shell = touch(trace), f"touch {trace}"
    system = Reduces(getattr, Reduces(__import__, "os"), "system")
    called = Reduces(functools.partial, Reduces(eval, code))
    return {
        "os.system": (Reduces(os.system, shell), "posix.system"),
        "eval": (Reduces(eval, code), "builtins.eval"),
        "exec": (Reduces(exec, code), "builtins.exec"),
        "subprocess": (Reduces(subprocess.check_call, ["touch", str(trace)]), "subprocess."),
        "getattr": (Reduces(getattr, Reduces(eval, code), "x", None), "builtins.eval"),
        "a chain of getattr": (system, "builtins.__import__"),
        "map": (Reduces(list, Reduces(map, eval, [code])), "builtins.map"),
        "open": (Reduces(builtins.open, str(trace), "w"), "io.open"),
        "partial": (called, "builtins.eval"),
        "pickle in a pickle": (
            Reduces(pickle.loads, pickle.dumps(Reduces(eval, code))),
            "pickle.loads",
        ),
        "breakpoint": (Reduces(breakpoint), "builtins.breakpoint"),
    }


ATTACKS = list(attacks(Path("x")))
RUNS = [one for one in ATTACKS if one not in ("a chain of getattr", "breakpoint", "open")]


def nested(payload: Any) -> dict[str, Any]:
    return {"model": {"a": torch.ones(2)}, "extra": [{"deep": (1, payload)}]}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("format", ["zip", "stream"])
@pytest.mark.parametrize("reader", [load_pickle, lambda path: open_torch(path).tensors()])
def test_a_checkpoint_that_would_run_code_is_refused_by_name(
    tmp_path: Path, attack: str, format: str, reader: Callable[[Path], Any]
) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "m.pt"
    payload, named = attacks(trace)[attack]
    torch.save(nested(payload), path, _use_new_zipfile_serialization=format == "zip")
    with pytest.raises(SourceError) as raised:
        reader(path)
    assert str(raised.value).startswith(f"{path}: refused: it pickles {named}")
    assert "nothing of it was run" in str(raised.value)
    assert not trace.exists()


@pytest.mark.parametrize("attack", RUNS)
@pytest.mark.parametrize("format", ["zip", "stream"])
def test_the_same_checkpoint_runs_where_it_is_trusted(
    tmp_path: Path, attack: str, format: str
) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "m.pt"
    torch.save(
        nested(attacks(trace)[attack][0]), path, _use_new_zipfile_serialization=format == "zip"
    )
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_bare_pickles_of_every_protocol_are_refused(tmp_path: Path, protocol: int) -> None:
    trace, path = tmp_path / "it_ran", tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(Reduces(os.system, f"touch {trace}"), protocol=protocol))
    with pytest.raises(SourceError, match=r"m\.pt: refused: it pickles posix\.system"):
        open_source(path).tensors()
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("nt", "system"),
        ("__builtin__", "eval"),
        ("builtins", "__import__"),
        ("builtins", "getattr"),
        ("builtins", "type.__subclasses__"),
        ("importlib", "import_module"),
        ("importlib.machinery", "SourceFileLoader"),
        ("runpy", "run_path"),
        ("ctypes", "CDLL"),
        ("operator", "attrgetter"),
        ("_operator", "methodcaller"),
        ("types", "FunctionType"),
        ("functools", "reduce"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.hub", "load"),
        ("torch.utils.cpp_extension", "load_inline"),
        ("torch.jit", "script"),
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("harmless", "Config.__init__.__globals__"),
        ("harmless", "os.system"),
        ("harmless", "__getattr__"),
    ],
)
def test_names_that_only_code_needs_are_refused_wherever_they_stand(
    tmp_path: Path, module: str, attribute: str
) -> None:
    path = write_zip(tmp_path / "m.pt", entry("a", name(module, attribute)))
    with pytest.raises(SourceError, match=r"refused: it pickles .*; nothing of it was run"):
        open_source(path).tensors()
    stacked = text(module) + text(attribute) + b"\x93"
    (tmp_path / "n.pt").write_bytes(program(entry("a", stacked)))
    with pytest.raises(SourceError, match="refused: it pickles"):
        open_source(tmp_path / "n.pt").tensors()
    (tmp_path / "i.pt").write_bytes(program(b"(" + f"i{module}\n{attribute}\n".encode()))
    with pytest.raises(SourceError, match="refused: it pickles"):
        open_source(tmp_path / "i.pt").tensors()


def test_a_module_named_in_a_file_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "it_ran"
    (tmp_path / "evil_module.py").write_text(f"{touch(trace)}\nclass Meter: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    body = entry("meter", name("evil_module", "Meter") + b")\x81}" + text("x") + b"Nsb")
    path = write_zip(tmp_path / "m.pt", body)
    meter = load_pickle(path)["meter"]
    assert isinstance(meter, StandIn)
    assert str(meter.stands_for) == "evil_module.Meter"
    assert vars(meter) == {"x": None}
    assert "evil_module" not in sys.modules
    assert not trace.exists()


def test_a_state_cannot_reach_a_class_or_change_how_a_stand_in_behaves(tmp_path: Path) -> None:
    taken = b"".join(
        text(key) + text("taken") + b"s" for key in ("__class__", "__dict__", "build", "state")
    )
    body = entry("x", name("a", "B") + b")\x81}" + taken + b"b")
    found = load_pickle(write_zip(tmp_path / "m.pt", body))["x"]
    assert type(found) is StandIn
    assert found.state["state"] == "taken"
    of_class = write_zip(tmp_path / "n.pt", entry("x", name("a", "B") + b"}b"))
    with pytest.raises(SourceError, match="a state for a Named"):
        load_pickle(of_class)
    called = write_zip(tmp_path / "o.pt", entry("x", name("a", "B") + b")R)R"))
    with pytest.raises(SourceError, match="a call of what is no class"):
        load_pickle(called)


def getattr_of(subject: bytes, attribute: bytes) -> bytes:
    """Instructions of `getattr(subject, attribute)`."""
    return name("builtins", "getattr") + b"(" + subject + attribute + b"tR"


COLOUR = name("harmless", "Colour")
MEMBER = getattr_of(COLOUR, text("RED"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_member_of_an_enum_as_python_3_11_2_pickles_it_is_an_inert_stand_in(
    tmp_path: Path, protocol: int
) -> None:
    body = {
        0: b"c__builtin__\ngetattr\np0\n(cevil_module\nColour\np1\nVRED\np2\ntp3\nRp4\n",
        2: b"c__builtin__\ngetattr\nq\x00cevil_module\nColour\nq\x01X\x03\x00\x00\x00REDq\x02"
        b"\x86q\x03Rq\x04",
        4: b"\x8c\x08builtins\x94\x8c\x07getattr\x94\x93\x94\x8c\x0bevil_module\x94\x8c\x06Colour"
        b"\x94\x93\x94\x8c\x03RED\x94\x86\x94R\x94",
    }[protocol]
    path = write_zip(tmp_path / "m.pt", entry("colour", body))
    found = load_pickle(path)["colour"]
    assert type(found) is StandIn
    assert (str(found.stands_for), found.arguments) == ("evil_module.Colour", ("RED",))
    assert vars(found) == {}
    assert "evil_module" not in sys.modules


def test_a_second_member_may_take_getattr_from_the_memo(tmp_path: Path) -> None:
    again = b"h\x07" + b"(" + COLOUR + text("BLUE") + b"tR"
    both = name("builtins", "getattr") + b"q\x07(" + COLOUR + text("RED") + b"tR" + again + b"\x86"
    found = load_pickle(write_zip(tmp_path / "m.pt", entry("x", both)))["x"]
    assert [one.arguments for one in found] == [("RED",), ("BLUE",)]


@pytest.mark.parametrize(
    "body",
    [
        getattr_of(getattr_of(name("os", "x"), text("x")), text("system"))
        + b"("
        + text("id")
        + b"tR",
        getattr_of(MEMBER, text("system")) + b"(" + text("id") + b"tR",
        getattr_of(MEMBER, text("x")),
        getattr_of(name("harmless", "os"), text("system")),
        getattr_of(name("builtins", "type"), text("mro")),
        getattr_of(name("builtins", "object"), text("x")),
        getattr_of(name("collections", "OrderedDict"), text("fromkeys")),
        getattr_of(name("torch", "FloatStorage"), text("from_file")),
        getattr_of(name("torch", "float32"), text("to_real")),
        getattr_of(COLOUR, text("__class__")),
        getattr_of(COLOUR, text("_hidden")),
        getattr_of(COLOUR, text("a.b")),
        getattr_of(COLOUR, text("eval")),
        getattr_of(COLOUR, text("")),
        getattr_of(COLOUR, integer(3)),
        getattr_of(COLOUR, b"C\x03RED"),
        getattr_of(COLOUR, text("RED") + b"N"),
        getattr_of(COLOUR, b""),
        getattr_of(COLOUR + b")\x81", text("RED")),
        getattr_of(text("text"), text("upper")),
        name("builtins", "getattr"),
        name("builtins", "getattr") + b"N\x86",
        name("builtins", "getattr") + b"]\x94h\x00a",
        name("builtins", "getattr") + COLOUR + text("RED") + b"\x86\x81",
        name("builtins", "getattr") + b"}b",
        name("builtins", "getattr") + b"2R",
        name("builtins", "getattr") + b"0N",
        name("builtins", "getattr") + b"N",
        b"(" + name("builtins", "getattr") + COLOUR + text("RED") + b"o",
        name("builtins", "getattr") + b"(" + name("builtins", "getattr") + text("x") + b"tR",
        b"(" + name("builtins", "getattr") + b"1N",
        b"(" + name("builtins", "getattr") + b"l",
    ],
)
def test_every_other_use_of_getattr_is_refused(tmp_path: Path, body: bytes) -> None:
    path = write_zip(tmp_path / "m.pt", entry("a", body))
    with pytest.raises(SourceError, match=r"refused: it pickles .*; nothing of it was run"):
        load_pickle(path)


@pytest.mark.parametrize("call", [b"(" + text("id") + b"tR", b")R", b")\x81", b")}\x92"])
def test_what_getattr_gave_can_not_be_called(tmp_path: Path, call: bytes) -> None:
    path = write_zip(tmp_path / "m.pt", entry("a", MEMBER + call))
    with pytest.raises(SourceError, match="a call of what is no class"):
        load_pickle(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor(4, (5,), (1,)), "reaches outside of its storage of 16 bytes"),
        (tensor(4, (4,), (1,), offset=1), "reaches outside"),
        (tensor(4, (2, 2), (4, 1)), "reaches outside"),
        (tensor(4, (-1,), (1,)), "no number from 0 on"),
        (tensor(4, (2,), (-1,)), "no number from 0 on"),
        (tensor(4, (2,), (1,), offset=-1), "no number from 0 on"),
        (tensor(4, (2,), (1, 1)), "a tensor of 1 sizes and 2 strides"),
        (tensor(-4, (1,), (1,)), "a storage without a name or of impossible size"),
        (tensor(8, (1,), (1,)), "holds 16 bytes, 32 are told"),
        (tensor(4, (1,), (1,), key="../data.pkl"), r"archive/data/\.\./data\.pkl is missing"),
        (text("x") + b"Q", "a persistent id that is no storage"),
        (b"\x82\x01", "instruction 0x82 is not known"),
        (b"\x97", "instruction 0x97 is not known"),
        (b"0" * 9, "takes what it has not put"),
        (b"t", "no mark is left"),
        (b"\x80\x09", "pickle protocol 9"),
        (b"]" + text("k") + b"Ns", "entries for a list"),
        (b"}Na", "elements for a dict"),
        (name("collections", "OrderedDict") + b"(K\x05tR", "given what it cannot take"),
        (b"X\x02\x00\x00\x00\xff\xfe", "a damaged pickle"),
    ],
)
def test_a_pickle_that_lies_or_is_damaged_is_one_clear_error(
    tmp_path: Path, body: bytes, message: str
) -> None:
    path = write_zip(tmp_path / "m.pt", entry("a", body), {"0": bytes(16)})
    with pytest.raises(SourceError, match=rf"m\.pt: not a whole torch file: .*{message}"):
        open_source(path).tensors()
    with pytest.raises(SourceError, match=rf"m\.pt: not a whole torch file: .*{message}"):
        load_pickle(path)


def test_hostile_metadata_of_a_distributed_checkpoint_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Reduces(eval, touch(trace))))
    with pytest.raises(SourceError, match=r"\.metadata: refused: it pickles builtins\.eval"):
        open_distributed(tmp_path).tensors()
    assert not trace.exists()
    pickle.loads((tmp_path / ".metadata").read_bytes())
    assert trace.exists()
