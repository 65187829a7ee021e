"""Glue placed in a site, and taken out again: the host's module keeps its names and its code.

A sited module gets a subclass of its own class, so that its parameters keep their names, checks of
its type still hold, and taking the glue out is giving it its class back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn

from fusion.errors import SiteError

HostBranch = Callable[[], Tensor]
Reader = Callable[[Tensor, HostBranch], Tensor]


@dataclass(frozen=True)
class At:
    """Where a site is, as patterns of module names with the hole `{i}`.

    Attributes:
        module: the module whose output `A` glue mixes into
        query: the module whose first argument is `x`, where that is not the site's own: a host
            that writes a sublayer out in its layer (`fc2` after `fc1`) has no module for the whole
        x: whether `x` is an argument or, for embeddings and whole layers, the output itself
        time_major: the module takes and gives `[T, B, D]`
        skip: the module need not run when glue does not ask for the host's own branch
    """

    module: str
    query: str | None = None
    x: Literal["argument", "output"] = "argument"
    time_major: bool = False
    skip: bool = False


@dataclass(frozen=True)
class Seat:
    """A site of one host: its row, and the host's modules that it names."""

    at: At
    module: nn.Module
    query: nn.Module | None = None


class _Sited:
    """Mixed into a host module's class; its own output is one branch among the readers'."""

    _fusion_at: At
    _fusion_reader: Reader
    _fusion_rest: tuple[None, ...] | None
    _fusion_query: _Query | None
    _fusion_first: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        at, computed = self._fusion_at, list[Any]()

        def run() -> Any:
            if not computed:
                computed.append(super(_Sited, self).forward(*args, **kwargs))  # type: ignore[misc]
            return computed[0]

        def host() -> Tensor:
            return _turned(_first(run()), at)

        if at.x == "output":
            x = host()
        elif self._fusion_query is not None:
            x = _turned(self._fusion_query.take(), at)
        else:
            x = _turned(args[0] if args else kwargs[self._fusion_first], at)
        output = self._fusion_reader(x, host)
        output = _turned(output, at).contiguous() if at.time_major else output
        if not computed and at.skip and self._fusion_rest is not None:
            return (output, *self._fusion_rest)
        return _with_first(run(), output)


class _Query:
    """Sees a module's first argument; what a site in another module reads as its `x`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: Tensor | None = None
        self.handle: Any = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen = args[0] if args else kwargs[self.name]

    def take(self) -> Tensor:
        """The argument of the call that is running."""
        seen, self.seen = self.seen, None
        assert seen is not None
        return seen


def _turned(states: Tensor, at: At) -> Tensor:
    return states.transpose(0, 1) if at.time_major else states


def _first(result: Any) -> Tensor:
    """The hidden states in what a module returned: a tensor, a tuple, or a ModelOutput."""
    states: Tensor = result if isinstance(result, Tensor) else result[0]
    return states


def _with_first(result: Any, output: Tensor) -> Any:
    """What a module returned, with other hidden states."""
    if isinstance(result, Tensor):
        return output
    if isinstance(result, tuple):
        return (output, *result[1:])
    if isinstance(result, list):
        return [output, *result[1:]]
    result["last_hidden_state"] = output
    return result


@cache
def _sited_class(base: type[nn.Module]) -> type[nn.Module]:
    return type(base.__name__, (_Sited, base), {"__module__": base.__module__})


def _first_parameter(module: nn.Module) -> str:
    return next(iter(inspect.signature(module.forward).parameters))


def attach(seat: Seat, reader: Reader, rest: tuple[None, ...] | None = None) -> None:
    """Let a reader mix something into the output at a site.

    Args:
        reader: `(x, host) -> output`, all `[B, T, D]`, where `host()` computes the host's own
        rest: what a module that may be skipped returns beside its output; None: never skip it

    Raises:
        SiteError: something is attached already.
    """
    module = seat.module
    if isinstance(module, _Sited):
        raise SiteError(f"{type(module).__name__}: glue is attached to this site already")
    query = None
    if seat.query is not None:
        query = _Query(_first_parameter(seat.query))
        query.handle = seat.query.register_forward_pre_hook(query, with_kwargs=True)
    module.__dict__["_fusion_at"] = seat.at
    module.__dict__["_fusion_reader"] = reader
    module.__dict__["_fusion_rest"] = rest
    module.__dict__["_fusion_query"] = query
    module.__dict__["_fusion_first"] = _first_parameter(module)
    module.__class__ = _sited_class(type(module))  # type: ignore[arg-type]


def detach(seat: Seat) -> None:
    """Take the glue out; the host is bit for bit what it was."""
    module = seat.module
    if isinstance(module, _Sited):
        if module._fusion_query is not None:
            module._fusion_query.handle.remove()
        module.__class__ = type(module).__mro__[2]
        for name in ("at", "reader", "rest", "query", "first"):
            del module.__dict__[f"_fusion_{name}"]
