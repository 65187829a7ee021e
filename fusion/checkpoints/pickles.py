"""The instructions of pickle protocols 0 to 5, and the plain Python data that pickles name."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from typing import Any

from fusion.checkpoints.machine import Machine, Made, as_key
from fusion.checkpoints.standins import PickleError

_MAX_INT_BYTES = 64


def _text(raw: bytes) -> str | bytes:
    """A string of Python 2: text where it is UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _long(machine: Machine, size: int) -> int:
    if size > _MAX_INT_BYTES:
        raise PickleError(f"a number of {size} bytes")
    return int.from_bytes(machine.take(size), "little", signed=True)


def _int_line(machine: Machine) -> int | bool:
    text = machine.line()
    if text in (b"00", b"01"):
        return text == b"01"
    if len(text) > 2 * _MAX_INT_BYTES:
        raise PickleError("a number of too many digits")
    return int(text.rstrip(b"L"))


def _string_line(machine: Machine) -> str | bytes:
    raw = machine.line()
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        raise PickleError("a string without quotes")
    return _text(codecs.escape_decode(raw[1:-1])[0])


def _tuple(machine: Machine, count: int) -> None:
    items = [machine.pop() for _ in range(count)]
    machine.push_new(tuple(reversed(items)))


def _new_object(machine: Machine, keywords: bool) -> None:
    named = machine.pop() if keywords else None
    arguments = machine.pop()
    machine.push_new(machine.call(machine.pop(), arguments, named))


def _instance(machine: Machine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    arguments = tuple(machine.pop_mark())
    machine.name(module, name)
    machine.push_new(machine.call(machine.pop(), arguments))


def _object(machine: Machine) -> None:
    function, *arguments = machine.pop_mark()
    machine.push_new(machine.call(function, tuple(arguments)))


def _global(machine: Machine) -> None:
    module = machine.line().decode()
    machine.name(module, machine.line().decode())


def _stack_global(machine: Machine) -> None:
    name = machine.pop()
    machine.name(machine.pop(), name)


def _set_item(machine: Machine) -> None:
    value = machine.pop()
    key = machine.pop()
    machine.set_items([key, value])


def _append(machine: Machine) -> None:
    machine.extend([machine.pop()])


def _float(machine: Machine) -> float:
    value: float = struct.unpack(">d", machine.take(8))[0]
    return value


def _frame(machine: Machine) -> None:
    machine.number("Q")  # how far the writer's buffer went; nothing depends on it


Step = Callable[[Machine], None]


def _constants() -> dict[bytes, Step]:
    def constant(value: Any) -> Step:
        return lambda m: m.push(value)

    return {b"N": constant(None), b"\x88": constant(True), b"\x89": constant(False)} | {
        b"]": lambda m: m.push_new([]),
        b"}": lambda m: m.push_new({}),
        b")": constant(()),
        b"\x8f": lambda m: m.push_new(set()),
    }


def _numbers() -> dict[bytes, Step]:
    return {
        b"I": lambda m: m.push(_int_line(m)),
        b"L": lambda m: m.push(_int_line(m)),
        b"F": lambda m: m.push(float(m.line())),
        b"J": lambda m: m.push(m.number("i")),
        b"K": lambda m: m.push(m.number("B")),
        b"M": lambda m: m.push(m.number("H")),
        b"\x8a": lambda m: m.push(_long(m, m.number("B"))),
        b"\x8b": lambda m: m.push(_long(m, m.number("i"))),
        b"G": lambda m: m.push(_float(m)),
    }


def _texts() -> dict[bytes, Step]:
    def text(size: str) -> Step:
        return lambda m: m.push(m.take(m.number(size)).decode("utf-8", "surrogatepass"))

    def raw(size: str) -> Step:
        return lambda m: m.push(m.take(m.number(size)))

    def old(size: str) -> Step:
        return lambda m: m.push(_text(m.take(m.number(size))))

    return {
        b"S": lambda m: m.push(_string_line(m)),
        b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
        b"T": old("i"),
        b"U": old("B"),
        b"\x8c": text("B"),
        b"X": text("I"),
        b"\x8d": text("Q"),
        b"C": raw("B"),
        b"B": raw("I"),
        b"\x8e": raw("Q"),
        b"\x96": lambda m: m.push_new(bytearray(m.take(m.number("Q")))),
    }


def _structure() -> dict[bytes, Step]:
    return {
        b"\x80": lambda m: m.expect_protocol(m.number("B")),
        b"\x95": _frame,
        b"(": Machine.mark,
        b"0": Machine.drop,
        b"1": lambda m: m.drop_all(m.pop_mark()),
        b"2": lambda m: m.push(m.top()),
        b"t": lambda m: m.push_new(tuple(m.pop_mark())),
        b"\x85": lambda m: _tuple(m, 1),
        b"\x86": lambda m: _tuple(m, 2),
        b"\x87": lambda m: _tuple(m, 3),
        b"l": lambda m: m.push_new(m.pop_mark()),
        b"d": lambda m: m.push_dict(m.pop_mark()),
        b"\x91": lambda m: m.push_new(frozenset(as_key(item) for item in m.pop_mark())),
        b"a": _append,
        b"e": lambda m: m.extend(m.pop_mark()),
        b"\x90": lambda m: m.extend(m.pop_mark()),
        b"s": _set_item,
        b"u": lambda m: m.set_items(m.pop_mark()),
    }


def _memo_and_objects() -> dict[bytes, Step]:
    return {
        b"p": lambda m: m.remember(int(_int_line(m))),
        b"q": lambda m: m.remember(m.number("B")),
        b"r": lambda m: m.remember(m.number("I")),
        b"\x94": Machine.memoize,
        b"g": lambda m: m.recall(int(_int_line(m))),
        b"h": lambda m: m.recall(m.number("B")),
        b"j": lambda m: m.recall(m.number("I")),
        b"c": _global,
        b"\x93": _stack_global,
        b"R": Machine.reduce,
        b"b": Machine.build,
        b"i": _instance,
        b"o": _object,
        b"\x81": lambda m: _new_object(m, keywords=False),
        b"\x92": lambda m: _new_object(m, keywords=True),
        b"P": lambda m: m.persistent(m.line().decode()),
        b"Q": lambda m: m.persistent(m.pop()),
    }


def _table() -> list[Step | None]:
    """By opcode. Left out: extension codes and out-of-band buffers, which no file can hold."""
    steps = _constants() | _numbers() | _texts() | _structure() | _memo_and_objects()
    return [steps.get(bytes([code])) for code in range(256)]


_TABLE = _table()


def pickle_machine(
    data: bytes | memoryview,
    known: Mapping[str, Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Machine:
    """A machine on a buffer of pickles.

    Args:
        known: full name -> what stands for it, beside `PLAIN`
        persistent: as for `Machine`
    """
    return Machine(data, PLAIN | dict(known or {}), persistent, _TABLE)


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    if str(encoding).lower().replace("-", "") not in ("latin1", "utf8", "ascii"):
        raise PickleError(f"bytes in encoding {encoding!r}"[:80])
    return text.encode(encoding)


def _bytearray(value: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    if isinstance(value, str):
        return bytearray(_bytes(value, encoding))
    if not isinstance(value, bytes):
        raise PickleError("a bytearray of no bytes")
    return bytearray(value)


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    pairs = pairs.items() if isinstance(pairs, dict) else pairs
    return {as_key(key): value for key, value in pairs}


def _set(items: Any = ()) -> set[Any]:
    return {as_key(item) for item in items}


# What pickles of plain Python data name.
PLAIN: dict[str, Any] = {
    "collections.OrderedDict": Made("OrderedDict", _dict),
    "collections.defaultdict": Made("defaultdict", lambda factory=None, pairs=(): _dict(pairs)),
    "collections.Counter": Made("Counter", _dict),
    "builtins.dict": Made("dict", _dict),
    "builtins.set": Made("set", _set),
    "builtins.frozenset": Made("frozenset", lambda items=(): frozenset(_set(items))),
    "builtins.list": Made("list", lambda items=(): list(items)),
    "builtins.tuple": Made("tuple", lambda items=(): tuple(items)),
    "builtins.bytearray": Made("bytearray", _bytearray),
    "builtins.complex": Made("complex", complex),
    "_codecs.encode": Made("encode", _bytes),
    "codecs.encode": Made("encode", _bytes),
}
