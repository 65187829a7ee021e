"""What a rule may do to a tensor on its way in, and how it is undone on the way out.

An operation is data: a name, or a mapping of one name to its arguments (`transpose`,
`{split: {parts: 3, index: 0}}`, `{scale: 0.5}`). It runs on meta tensors as well, so that a plan
knows shapes without reading weights, and is written into the ledger with all it needs to run
backwards.
"""

from __future__ import annotations

import importlib.util
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fusion.errors import KeyMapError, nearest
from fusion.positions import resized
from fusion.vocabulary import NewTokens, carry_over, read_vocabulary, vocabulary_file


class NotInvertibleError(KeyMapError):
    """An operation that loses something cannot be run backwards."""


class Operation(ABC):
    """One step from source to target."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, tensors: list[Tensor]) -> Tensor:
        """The result; only a joining operation gets several tensors."""

    def known(self, tensors: list[Tensor]) -> Operation:
        """The same operation with what its inverse must know of its input."""
        return self

    def invert(self, tensor: Tensor) -> list[Tensor]:
        """What `apply` was given.

        Raises:
            NotInvertibleError: it cannot be told from the result.
        """
        raise NotInvertibleError(f"{self.name} cannot be run backwards")

    def files(self) -> list[Path]:
        """What it reads besides the tensors."""
        return []

    def to_data(self) -> Any:
        """As it is written in a rule, without what is unset."""
        arguments = {k: v for k, v in asdict(self).items() if v is not None}  # type: ignore[call-overload]
        return {self.name: arguments} if arguments else self.name


class Piece(Operation):
    """An operation that takes one piece of a whole; all pieces together run backwards."""

    @abstractmethod
    def place(self) -> tuple[int, int]:
        """(index of this piece, number of pieces)."""

    @abstractmethod
    def assemble(self, pieces: list[Tensor]) -> Tensor:
        """The whole, from its pieces in order."""


@dataclass(frozen=True)
class Transpose(Operation):
    """Swap two dimensions."""

    name = "transpose"
    first: int = 0
    second: int = 1

    def apply(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].transpose(self.first, self.second).contiguous()

    def invert(self, tensor: Tensor) -> list[Tensor]:
        return [self.apply([tensor])]


@dataclass(frozen=True)
class Split(Piece):
    """Piece `index` of `parts` equal ones along `dim`: q, k and v of a packed projection."""

    name = "split"
    parts: int
    index: int
    dim: int = 0

    def apply(self, tensors: list[Tensor]) -> Tensor:
        size = tensors[0].shape[self.dim]
        if self.parts < 1 or size % self.parts or not 0 <= self.index < self.parts:
            raise KeyMapError(f"split: piece {self.index} of {self.parts} of {size} rows")
        length = size // self.parts
        return tensors[0].narrow(self.dim, self.index * length, length)

    def place(self) -> tuple[int, int]:
        return self.index, self.parts

    def assemble(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces, self.dim)


@dataclass(frozen=True)
class Pick(Piece):
    """Entry `index` along `dim`, which goes away: one layer of a stacked tensor."""

    name = "pick"
    index: int
    dim: int = 0
    parts: int | None = None

    def apply(self, tensors: list[Tensor]) -> Tensor:
        size = tensors[0].shape[self.dim]
        if not 0 <= self.index < size:
            raise KeyMapError(f"pick: entry {self.index} of {size}")
        return tensors[0].select(self.dim, self.index)

    def known(self, tensors: list[Tensor]) -> Operation:
        return replace(self, parts=tensors[0].shape[self.dim])

    def place(self) -> tuple[int, int]:
        return self.index, self.parts or 0

    def assemble(self, pieces: list[Tensor]) -> Tensor:
        return torch.stack(pieces, self.dim)


def _one_dtype(name: str, tensors: list[Tensor]) -> None:
    """Joining would promote silently, and the way back would not know from what."""
    found = list(dict.fromkeys(dtype_name(tensor.dtype) for tensor in tensors))
    if len(found) > 1:
        raise KeyMapError(f"{name}: tensors of several dtypes: {', '.join(found)}")


@dataclass(frozen=True)
class Concat(Operation):
    """Several tensors one after another along `dim`: a packed projection from q, k and v."""

    name = "concat"
    dim: int = 0
    sizes: Sequence[int] | None = None

    def apply(self, tensors: list[Tensor]) -> Tensor:
        _one_dtype(self.name, tensors)
        return torch.cat(tensors, self.dim)

    def known(self, tensors: list[Tensor]) -> Operation:
        return replace(self, sizes=[tensor.shape[self.dim] for tensor in tensors])

    def invert(self, tensor: Tensor) -> list[Tensor]:
        assert self.sizes is not None
        return list(tensor.split(list(self.sizes), self.dim))


@dataclass(frozen=True)
class Stack(Operation):
    """Several tensors of one shape along a new `dim`."""

    name = "stack"
    dim: int = 0

    def apply(self, tensors: list[Tensor]) -> Tensor:
        _one_dtype(self.name, tensors)
        return torch.stack(tensors, self.dim)

    def invert(self, tensor: Tensor) -> list[Tensor]:
        return list(tensor.unbind(self.dim))


@dataclass(frozen=True)
class Average(Operation):
    """Mean of several floating-point tensors, taken in float64."""

    name = "average"

    def apply(self, tensors: list[Tensor]) -> Tensor:
        _one_dtype(self.name, tensors)
        if not tensors[0].is_floating_point():
            raise KeyMapError(f"average: of {dtype_name(tensors[0].dtype)}")
        return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)


@dataclass(frozen=True)
class Slice(Operation):
    """Entries `start` up to `stop` along `dim`; the rest is left out."""

    name = "slice"
    start: int = 0
    stop: int | None = None
    dim: int = 0

    def apply(self, tensors: list[Tensor]) -> Tensor:
        size = tensors[0].shape[self.dim]
        stop = size if self.stop is None else self.stop
        if not 0 <= self.start < stop <= size:
            raise KeyMapError(f"slice: {self.start} to {stop} of {size}")
        return tensors[0].narrow(self.dim, self.start, stop - self.start)


@dataclass(frozen=True)
class Pad(Operation):
    """Grow `dim` to `size` with entries of one value at the end."""

    name = "pad"
    size: int
    dim: int = 0
    value: float = 0.0
    before: int | None = None

    def apply(self, tensors: list[Tensor]) -> Tensor:
        shape = list(tensors[0].shape)
        if shape[self.dim] > self.size:
            raise KeyMapError(f"pad: to {self.size}, but there are {shape[self.dim]}")
        shape[self.dim] = self.size - shape[self.dim]
        if not _holds(tensors[0].dtype, self.value):
            raise KeyMapError(f"pad: {dtype_name(tensors[0].dtype)} cannot hold {self.value}")
        return torch.cat([tensors[0], tensors[0].new_full(shape, self.value)], self.dim)

    def known(self, tensors: list[Tensor]) -> Operation:
        return replace(self, before=tensors[0].shape[self.dim])

    def invert(self, tensor: Tensor) -> list[Tensor]:
        assert self.before is not None
        return [tensor.narrow(self.dim, 0, self.before)]


def _holds(dtype: torch.dtype, value: float) -> bool:
    """Whether an integer dtype has a value exactly; others round it."""
    if dtype.is_floating_point or dtype.is_complex:
        return True
    if dtype == torch.bool:
        return value in (0, 1)
    return value == int(value) and torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


@dataclass(frozen=True)
class Reshape(Operation):
    """The same elements in another shape."""

    name = "reshape"
    shape: Sequence[int]
    before: Sequence[int] | None = None

    def apply(self, tensors: list[Tensor]) -> Tensor:
        try:
            return tensors[0].reshape(list(self.shape))
        except RuntimeError:
            raise KeyMapError(
                f"reshape: {list(tensors[0].shape)} does not fit {list(self.shape)}"
            ) from None

    def known(self, tensors: list[Tensor]) -> Operation:
        return replace(self, before=list(tensors[0].shape))

    def invert(self, tensor: Tensor) -> list[Tensor]:
        assert self.before is not None
        return [tensor.reshape(list(self.before))]


@dataclass(frozen=True)
class Cast(Operation):
    """Another dtype, by torch's name; runs backwards where nothing was lost."""

    name = "cast"
    to: str
    before: str | None = None

    def _dtype(self, name: str) -> torch.dtype:
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            names = ["float64", "float32", "float16", "bfloat16", "int64", "int32"]
            raise KeyMapError(f'cast: no dtype "{name}"{nearest(name, names)}')
        return found

    def apply(self, tensors: list[Tensor]) -> Tensor:
        return _cast(tensors[0], self._dtype(self.to))

    def known(self, tensors: list[Tensor]) -> Operation:
        return replace(self, before=dtype_name(tensors[0].dtype))

    def invert(self, tensor: Tensor) -> list[Tensor]:
        assert self.before is not None
        old, new = self._dtype(self.before), self._dtype(self.to)
        if is_lossy(old, new):
            raise NotInvertibleError(f"cast from {self.before} to {self.to} lost precision")
        return [_cast(tensor, old)]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Of a complex number, the real part where a real one is wanted."""
    return (tensor if dtype.is_complex or not tensor.is_complex() else tensor.real).to(dtype)


@dataclass(frozen=True)
class Scale(Operation):
    """Times a number; runs backwards bit for bit where that is a power of two.

    Args:
        exact: False where dividing by the number did not give the values back: a result that is
            subnormal, or too large, has lost bits
    """

    name = "scale"
    by: float
    exact: bool | None = None

    def known(self, tensors: list[Tensor]) -> Operation:
        if tensors[0].is_meta or not self._is_power_of_two():
            return self
        back = self.apply(tensors) / self.by
        return self if back.equal(tensors[0]) else replace(self, exact=False)

    def _is_power_of_two(self) -> bool:
        return bool(self.by) and abs(math.frexp(self.by)[0]) == 0.5

    def apply(self, tensors: list[Tensor]) -> Tensor:
        if not math.isfinite(self.by):
            raise KeyMapError(f"scale: by {self.by}")
        if not tensors[0].is_floating_point():
            raise KeyMapError(f"scale: of {dtype_name(tensors[0].dtype)}; cast it first")
        return tensors[0] * self.by

    def invert(self, tensor: Tensor) -> list[Tensor]:
        if not self._is_power_of_two():
            raise NotInvertibleError(f"scale by {self.by} is no power of two: not bit for bit")
        if self.exact is False:
            raise NotInvertibleError(f"scale by {self.by} left {dtype_name(tensor.dtype)}'s range")
        return [tensor / self.by]


@dataclass(frozen=True)
class Vocabulary(Operation):
    """Rows moved by token string from an old vocabulary to a new one.

    Args:
        old, new: a vocabulary file (see vocabulary.py) or the tokens themselves
        new_tokens: what a token that is new gets: `mean` of all old rows, `zero`, `copy:TOKEN`, or
            `subwords`: the mean of the old rows that spell it
    """

    name = "vocabulary"
    old: str | Sequence[str]
    new: str | Sequence[str]
    new_tokens: NewTokens = "mean"
    dim: int = 0
    before: int | None = None

    def files(self) -> list[Path]:
        return [vocabulary_file(one) for one in (self.old, self.new) if isinstance(one, str)]

    def apply(self, tensors: list[Tensor]) -> Tensor:
        old, new = read_vocabulary(self.old), read_vocabulary(self.new)
        table = tensors[0].movedim(self.dim, 0)
        return carry_over(table, old, new, self.new_tokens).movedim(0, self.dim).contiguous()

    def known(self, tensors: list[Tensor]) -> Operation:
        return replace(self, before=tensors[0].shape[self.dim])

    def invert(self, tensor: Tensor) -> list[Tensor]:
        old = read_vocabulary(self.old)
        index = {token: row for row, token in enumerate(read_vocabulary(self.new))}
        lost = [token for token in old if token not in index]
        if lost or self.before != len(old):
            what = f"{len(lost)} old tokens" if lost else "rows without a token"
            raise NotInvertibleError(f"vocabulary: {what} are not in the new one")
        return [tensor.index_select(self.dim, torch.tensor([index[token] for token in old]))]


@dataclass(frozen=True)
class Positions(Operation):
    """A position table `[P, D]` of another size; see positions.py.

    Args:
        method: `extend` or `interpolate` a learned table; `sinusoidal`: the same waves, computed
            for more positions
        offset: rows before the first position (2 in BART and RoBERTa), kept as they are
    """

    name = "positions"
    size: int
    method: Literal["extend", "interpolate", "sinusoidal"] = "extend"
    offset: int = 0
    before: int | None = None

    def apply(self, tensors: list[Tensor]) -> Tensor:
        return resized(tensors[0], self.size, self.method, self.offset)

    def known(self, tensors: list[Tensor]) -> Operation:
        return replace(self, before=tensors[0].shape[0])

    def invert(self, tensor: Tensor) -> list[Tensor]:
        assert self.before is not None
        if self.method == "interpolate" or self.before > self.size:
            raise NotInvertibleError(f"positions: {self.method} to {self.size} cannot be undone")
        return [tensor[: self.before]]


@dataclass(frozen=True)
class Function(Operation):
    """A Python function of yours, `module:name`, from tensor to tensor; it runs on meta too."""

    name = "function"
    path: str

    def files(self) -> list[Path]:
        try:
            spec = importlib.util.find_spec(self.path.partition(":")[0])
        except (ImportError, ValueError):
            spec = None
        return [Path(spec.origin)] if spec is not None and spec.has_location and spec.origin else []

    def apply(self, tensors: list[Tensor]) -> Tensor:
        module, colon, attribute = self.path.partition(":")
        try:
            if not colon:
                raise ImportError("write it as module:name")
            function = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:  # a module's own code runs
            told = isinstance(error, ImportError | AttributeError | ValueError)
            reason = str(error) if told else f"{type(error).__name__}: {error}"
            raise KeyMapError(f"function {self.path}: {reason}") from None
        try:
            result = function(*(tensor.clone() for tensor in tensors))  # it may work in place
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            raise KeyMapError(f"function {self.path}: {reason}") from error
        if not isinstance(result, Tensor):
            raise KeyMapError(f"function {self.path}: gave {type(result).__name__}, no tensor")
        return result


KINDS: dict[str, type[Operation]] = {
    kind.name: kind
    for kind in (
        Transpose, Split, Pick, Concat, Stack, Average, Slice, Pad, Reshape, Cast, Scale,
        Vocabulary, Positions, Function,
    )
}  # fmt: skip
JOINS = (Concat, Stack, Average, Function)


def parse(data: Any) -> Operation:
    """An operation from its data.

    Raises:
        KeyMapError: unknown name or argument, one that is missing or of the wrong type.
    """
    if isinstance(data, str):
        name, given = data, None
    elif isinstance(data, dict) and len(data) == 1:
        name, given = next(iter(data.items()))
    else:
        raise KeyMapError(f"operation {data!r}: a name, or one name with its arguments")
    kind = KINDS.get(name)
    if kind is None:
        raise KeyMapError(f'no operation "{name}"{nearest(str(name), KINDS)}')
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    arguments = given if isinstance(given, dict) else {} if given is None else {known[0]: given}
    for key in arguments:
        if key not in known:
            raise KeyMapError(f'{name}: no argument "{key}"{nearest(str(key), known)}')
    hints = typing.get_type_hints(kind)
    for key, value in arguments.items():
        if not _is(value, hints[key]):
            choices = (
                typing.get_args(hints[key]) if typing.get_origin(hints[key]) is Literal else ()
            )
            raise KeyMapError(f"{name}: {key}: found {value!r}{nearest(str(value), choices)}")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise KeyMapError(f"{name}: {str(error).split('__init__() ')[-1]}") from None


def _is(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a field's type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, one) for one in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin is not None:  # Sequence[...]
        inner = typing.get_args(hint)[0]
        return isinstance(value, list | tuple) and all(_is(one, inner) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def run(operations: Sequence[Operation], tensors: list[Tensor]) -> tuple[Tensor, list[Operation]]:
    """Apply operations in order; the second value is what the ledger keeps of them.

    Raises:
        KeyMapError: several tensors and nothing that joins them, or one that does not fit.
    """
    done: list[Operation] = []
    for operation in operations:
        if len(tensors) > 1 and not isinstance(operation, JOINS):
            raise KeyMapError(f"{operation.name}: of {len(tensors)} tensors; concat them first")
        try:
            known = operation.known(tensors)
            tensors = [operation.apply(tensors)]
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            reason = str(error).splitlines()[0]
            raise KeyMapError(f"{operation.name}: does not fit {shapes}: {reason}") from None
        done.append(known)
    if len(tensors) > 1:
        raise KeyMapError(f"{len(tensors)} tensors and no operation that joins them: concat, ...")
    return tensors[0], done


def dtype_name(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def is_lossy(old: torch.dtype, new: torch.dtype) -> bool:
    """Whether a cast may change a value: int64 to float32 may, int8 to float32 may not."""
    if old == new or old == torch.bool:
        return False
    if new == torch.bool or (old.is_complex and not new.is_complex):
        return True
    is_real = old.is_floating_point or old.is_complex
    if new.is_floating_point or new.is_complex:
        wide = torch.finfo(new)
        if is_real:
            narrow = torch.finfo(old)
            fits = wide.max >= narrow.max and wide.smallest_normal <= narrow.smallest_normal
            return not fits or wide.eps > narrow.eps
        return torch.iinfo(old).max > 2 / wide.eps
    if is_real:
        return True
    here, there = torch.iinfo(old), torch.iinfo(new)
    return there.min > here.min or there.max < here.max
