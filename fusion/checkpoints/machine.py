"""A pickle machine that builds plain data and calls nothing that a file names.

Python's own unpickler imports and calls what it reads, and even a restricted one can be made to
allocate without bound or to overflow the stack (hashing deep tuples). This one runs the same
instructions (protocols 0 to 5) on lists, dicts, numbers, strings and stand-ins only.

The instructions themselves are in `pickles`.

Source: the opcodes as `pickletools` documents them; the idea of a closed machine is
`torch._weights_only_unpickler`, which refuses unknown classes where this one puts a stand-in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusion.checkpoints.standins import (
    GETATTR,
    Named,
    PickleError,
    RefusedError,
    StandIn,
    member,
    normal_name,
    refuse_dangerous,
)

MAX_STEPS = 10_000_000
MAX_OBJECTS = 1_000_000  # lists, dicts, tuples and stand-ins
_MAX_KEY = 64  # parts of a tuple that is a key

Function = Callable[..., Any]
_MARK = object()


class Made:
    """A name that the reader knows, with what to do in its place."""

    __slots__ = ("function", "name")

    def __init__(self, name: str, function: Function) -> None:
        self.name = name
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.function(*arguments)
        except PickleError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, LookupError) as error:
            raise PickleError(f"{self.name} is given what it cannot take: {error}"[:200]) from None


class Machine:
    """Runs one pickle after another of a buffer.

    Args:
        data: the bytes
        known: full name -> what stands for it: a value, or a `Made` that is called
        persistent: gives the object of a persistent id (torch: a storage)
        table: what to do, by opcode
    """

    def __init__(
        self,
        data: bytes | memoryview,
        known: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None,
        table: Sequence[Callable[[Machine], None] | None],
    ) -> None:
        self.data = memoryview(data)
        self.position = 0
        self._known = known
        self._persistent = persistent
        self._table = table
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._objects = 0
        self._copied = 0

    def load(self) -> Any:
        """The next pickle's object; `position` is then behind it.

        Raises:
            PickleError: it is cut short, damaged or larger than any checkpoint's.
            RefusedError: it names what only code would need.
        """
        self._stack, self._memo = [], {}
        data, table = self.data, self._table
        start = self.position
        try:
            for _ in range(MAX_STEPS):
                opcode = data[self.position]
                self.position += 1
                if opcode == 0x2E:  # STOP
                    for left in self._stack:
                        _refuse_getattr(left)
                    return self._pop()
                step = table[opcode]
                if step is None:
                    raise PickleError(f"instruction {opcode:#04x} is not known")
                step(self)
        except RefusedError:
            raise
        except PickleError as error:
            raise PickleError(f"{error} (at byte {self.position} of the pickle)") from None
        except IndexError:
            what = "ends early" if self.position >= len(data) else "takes what it has not put"
            raise PickleError(f"the pickle {what} (at byte {self.position - start})") from None
        except (ValueError, struct.error, OverflowError, TypeError, RecursionError) as error:
            raise PickleError(
                f"a damaged pickle (at byte {self.position}): {error}"[:300]
            ) from None
        raise PickleError(f"the pickle has more than {MAX_STEPS} instructions")

    # reading

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise PickleError(f"the pickle ends early: {count} bytes are promised")
        taken = bytes(self.data[self.position : end])
        self.position = end
        return taken

    def number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def line(self) -> bytes:
        for end in range(self.position, min(len(self.data), self.position + 1_000_000)):
            if self.data[end] == 0x0A:
                text = bytes(self.data[self.position : end])
                self.position = end + 1
                return text
        raise PickleError("a line without an end")

    # the stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_new(self, value: Any) -> None:
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise PickleError(f"the pickle makes more than {MAX_OBJECTS} objects")
        self._stack.append(value)

    def _pop(self) -> Any:
        return _value(self._stack.pop())

    def pop(self) -> Any:
        return self._pop()

    def top(self) -> Any:
        return _value(self._stack[-1])

    def mark(self) -> None:
        self.push_new(_MARK)

    def pop_mark(self) -> list[Any]:
        stack = self._stack
        for place in range(len(stack) - 1, -1, -1):
            _refuse_getattr(stack[place])
            if stack[place] is _MARK:
                items = stack[place + 1 :]
                del stack[place:]
                return items
        raise PickleError("no mark is left")

    def drop(self) -> None:
        _refuse_getattr(self._stack.pop())

    def drop_all(self, items: list[Any]) -> None:
        """Items that a mark already took off."""
        items.clear()

    def push_dict(self, items: list[Any]) -> None:
        self.push_new({})
        self.set_items(items)

    def expect_protocol(self, number: int) -> None:
        if number > 5:
            raise PickleError(f"pickle protocol {number}")

    # the memo

    def remember(self, index: int) -> None:
        if index < 0:
            raise PickleError("a memo index below zero")
        value = self._stack[-1]
        self._memo[index] = value if value is GETATTR else _value(value)

    def memoize(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError(f"memo {index} was never set")
        self.push(self._memo[index])

    # names and objects

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        module, name = normal_name(module, name)
        full = f"{module}.{name}"
        if full == "builtins.getattr":
            self.push(GETATTR)
            return
        if full in self._known:
            self.push(self._known[full])
            return
        refuse_dangerous(module, name)
        self.push_new(Named(module, name))

    def call(self, function: Any, arguments: Any, keywords: Any = None) -> Any:
        """What stands for `function(*arguments)`; only a `Made` is ever called."""
        if not isinstance(arguments, tuple):
            raise PickleError("arguments that are no tuple")
        if isinstance(function, Made):
            if keywords:
                raise PickleError(f"{function.name} takes no keywords")
            return self._charge(function(*arguments))
        if not isinstance(function, Named):
            raise PickleError("a call of what is no class")
        made = StandIn(function, arguments)
        if isinstance(keywords, dict):
            made.keywords = keywords
        return made

    def _charge(self, made: Any) -> Any:
        """Copies of one large thing must not add up to more than the file could hold."""
        if isinstance(made, str | bytes | bytearray | list | tuple | dict | set | frozenset):
            self._copied += len(made)
            if self._copied > 2 * len(self.data) + 1_000_000:
                raise PickleError("the pickle copies more than it holds")
        return made

    def reduce(self) -> None:
        arguments = self._pop()
        if self._stack[-1] is GETATTR:
            self._stack.pop()
            self.push_new(member(arguments))
            return
        function = self._pop()
        if isinstance(function, Named) and function.module == "copyreg":
            # _reconstructor(class, base, state), __newobj__(class, *arguments)
            inner = arguments[0] if isinstance(arguments, tuple) and arguments else None
            rest = arguments[2:] if function.name == "_reconstructor" else arguments[1:]
            rest = () if rest == (None,) else rest
            self.push_new(self.call(inner, rest))
            return
        self.push_new(self.call(function, arguments))

    def build(self) -> None:
        state = self._pop()
        made = self.top()
        if isinstance(made, StandIn):
            made.build(state)
        elif not isinstance(made, dict):  # attributes of a plain dict (`_metadata`) are no data
            raise PickleError(f"a state for a {type(made).__name__}")

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, StandIn):
            target.elements.extend(items)
        elif type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(as_key(item) for item in items)
        else:
            raise PickleError(f"elements for a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, StandIn):
            target = target.entries
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError(f"entries for a {type(target).__name__}")
        for place in range(0, len(items), 2):
            target[as_key(items[place])] = items[place + 1]

    def persistent(self, saved_id: Any) -> None:
        if self._persistent is None:
            raise PickleError("a persistent id, which only torch.save writes")
        self.push(self._persistent(saved_id))


def _value(value: Any) -> Any:
    if value is _MARK:
        raise PickleError("a mark where a value was expected")
    if value is GETATTR:
        _refuse_getattr(value)
    return value


def _refuse_getattr(value: Any) -> None:
    """It may be called where it lies (`reduce`), and be nothing else."""
    if value is GETATTR:
        raise RefusedError(f"it pickles {GETATTR}")


def as_key(value: Any) -> Any:
    """A value that can be hashed in bounded time and depth.

    Numbers are held to 64 bits: larger ones can be chosen to collide.
    """
    budget, waiting = _MAX_KEY, [value]
    while waiting:
        budget -= 1
        one = waiting.pop()
        if budget < 0:
            raise PickleError("a key of too many parts")
        if isinstance(one, tuple):
            if len(one) > _MAX_KEY:
                raise PickleError("a key of too many parts")
            waiting.extend(one)
        elif isinstance(one, int):
            if one.bit_length() > 64:
                raise PickleError("a key that is a huge number")
        elif isinstance(one, list | dict | set | bytearray):
            raise PickleError(f"a {type(one).__name__} as a key")
    return value
