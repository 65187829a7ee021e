"""Glue placed in a site, and taken out again: the host's module keeps its names and its code.

A sited module gets a subclass of its own class, so that its parameters keep their names, checks of
its type still hold, and taking the glue out is giving it its class back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from fusion.errors import SiteError

HostBranch = Callable[[], Tensor]
Reader = Callable[[Tensor, HostBranch], Tensor]


class _Sited:
    """Mixed into a host module's class; its own output is one branch among the readers'."""

    _fusion_reader: Reader
    _fusion_rest: tuple[None, ...] | None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        computed: list[tuple[Any, ...]] = []

        def host() -> Tensor:
            if not computed:
                computed.append(super(_Sited, self).forward(hidden_states, *args, **kwargs))  # type: ignore[misc]
            output: Tensor = computed[0][0]
            return output

        output = self._fusion_reader(hidden_states, host)
        if not computed and self._fusion_rest is None:
            host()
        rest = computed[0][1:] if computed else self._fusion_rest
        return (output, *(rest or ()))


@cache
def _sited_class(base: type[nn.Module]) -> type[nn.Module]:
    return type(base.__name__, (_Sited, base), {"__module__": base.__module__})


def attach(module: nn.Module, reader: Reader, rest: tuple[None, ...] | None) -> None:
    """Let a reader mix something into a module's output.

    Args:
        module: a host's attention module, `forward(hidden_states [B, T, D], ...) -> (output, ...)`
        reader: `(hidden_states, host) -> output`, where `host()` computes the module's own output
        rest: what to return beside the output when the reader did not call `host()`; None: call it

    Raises:
        SiteError: something is attached already.
    """
    if isinstance(module, _Sited):
        raise SiteError(f"{type(module).__name__}: glue is attached to this site already")
    module.__dict__["_fusion_reader"] = reader
    module.__dict__["_fusion_rest"] = rest
    module.__class__ = _sited_class(type(module))  # type: ignore[arg-type]


def detach(module: nn.Module) -> None:
    """Take the glue out; the host is bit for bit what it was."""
    if isinstance(module, _Sited):
        module.__class__ = type(module).__mro__[2]
        del module.__dict__["_fusion_reader"], module.__dict__["_fusion_rest"]
