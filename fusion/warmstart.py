"""Plan, apply, verify: give every tensor of any nn.Module its values, or fail with a full list.

Nothing here knows of translation. A module may be built on meta; tensors are read one at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import Source, tensor_digest
from fusion.errors import LedgerError, WarmStartError
from fusion.inits import generator_for
from fusion.ledger import Entry, Ledger, Origin
from fusion.operations import run
from fusion.planning import (
    FROM_ANOTHER,
    Catalogue,
    Instructions,
    Plan,
    every_tensor,
    make_plan,
    owner_of,
)
from fusion.registry import INITS

Sources = Source | str | Path | Mapping[str, Source | str | Path] | None


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build a module with its parameters on meta and its buffers computed.

    A buffer that a constructor computes is right by construction; a parameter that is registered
    twice (tied) stays one object.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            meta = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            meta.__dict__.update(param.__dict__)
            param = meta
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def warm_start(
    module: nn.Module,
    source: Sources = None,
    *,
    rules: Mapping[str, Any] | None = None,
    ignore: Mapping[str, str] | None = None,
    init: Mapping[str, str] | None = None,
    compute: Callable[[nn.Module], None] | None = None,
    computed: Callable[[str], bool] = lambda name: False,
    seed: int = 0,
    prefix: str = "",
    allow_nonfinite: bool = False,
) -> Ledger:
    """Give every parameter and buffer of a module its values, in place.

    Args:
        source: the checkpoint (a path, hub id, package path or Source), or several by name; a
            target tensor is read from the source tensor of the same name, or of the name that a
            rule gives (`NAME:KEY` where sources have names)
        rules: target pattern <- source pattern, or a mapping with operations (see keymap)
        ignore: source pattern that is not loaded -> the reason
        init: target pattern of tensors that start from nothing -> name of an init rule
        compute: fills a module's own tensors that its class computes (positions, say)
        computed: whether a target tensor that the source lacks is computed
        seed: with the tensor's full name, decides the values of an initialised tensor
        prefix: of the names in seeds and messages, where the module is a part of a larger one
        allow_nonfinite: take source tensors that hold NaN or infinity

    Returns:
        The verified ledger: one entry per parameter and buffer.

    Raises:
        WarmStartError: lists every tensor that is missing, left over, of another shape or dtype,
            or not finite; the module is as it was.
        LedgerError: a tensor ended up on meta, or a tie was lost.
    """
    told = Instructions(rules or {}, ignore or {}, init or {}, computed, seed, prefix)
    catalogue = Catalogue(_opened(source))
    decided = make_plan(module, catalogue, told)
    problems = decided.problems or _unsound(decided, catalogue, prefix, allow_nonfinite)
    if problems:
        raise WarmStartError("\n".join(problems))
    ledger = _Filler(module, catalogue, decided, compute, prefix).fill()
    verify_total(module, ledger)
    return ledger


def plan(
    module: nn.Module,
    source: Sources = None,
    *,
    rules: Mapping[str, Any] | None = None,
    ignore: Mapping[str, str] | None = None,
    init: Mapping[str, str] | None = None,
    computed: Callable[[str], bool] = lambda name: False,
    seed: int = 0,
    prefix: str = "",
) -> Plan:
    """Decide where every tensor comes from, from headers only. Arguments as `warm_start`."""
    told = Instructions(rules or {}, ignore or {}, init or {}, computed, seed, prefix)
    return make_plan(module, Catalogue(_opened(source)), told)


def _opened(source: Sources) -> dict[str, Source]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return {name: _open(one) for name, one in source.items()}
    return {"": _open(source)}


def _open(source: Source | str | Path) -> Source:
    return source if isinstance(source, Source) else open_source(source)


def _unsound(decided: Plan, catalogue: Catalogue, prefix: str, allow_nonfinite: bool) -> list[str]:
    """What only the values tell: NaN, infinity, and tied tensors that differ at the source."""
    problems = []
    for name, keys in decided.keys.items():
        for source, key in map(catalogue.find, keys):
            bad = None if allow_nonfinite else source.nonfinite(key)
            if bad is not None:
                problems.append(
                    f"{prefix}{name}: {source.location}: {key} holds {bad}; "
                    "allow_nonfinite takes it all the same"
                )
    for entry in decided.ledger:
        if entry.tied_to is None or entry.name not in decided.keys:
            continue
        first = entry.tied_to
        if _made_of(decided, catalogue, first) != _made_of(decided, catalogue, entry.name):
            problems.append(
                f"{prefix}{entry.name}: is tied to {prefix}{first}, but {catalogue.location} has "
                f"different values in {decided.keys[entry.name][0]} and {decided.keys[first][0]}"
            )
    return problems


def _made_of(decided: Plan, catalogue: Catalogue, name: str) -> list[Any]:
    found = [source.digest(key) for source, key in map(catalogue.find, decided.keys[name])]
    return [*found, *(step.to_data() for step in decided.operations[name])]


class _Filler:
    """Fills every tensor of a module as planned, and writes down what each one is."""

    def __init__(
        self,
        module: nn.Module,
        catalogue: Catalogue,
        decided: Plan,
        compute: Callable[[nn.Module], None] | None,
        prefix: str,
    ) -> None:
        self.module, self.catalogue, self.decided = module, catalogue, decided
        self.compute, self.prefix = compute, prefix
        self.taken: set[str] = set()

    def fill(self) -> Ledger:
        done = {entry.name: entry for entry in self.decided.ledger}
        steps = {
            Origin.LOADED: self._load,
            Origin.INITIALISED: self._initialise,
            Origin.COMPUTED: self._computed,
            Origin.TIED: self._tie,
        }
        for entry in sorted(done.values(), key=_turn):
            done[entry.name] = steps[entry.origin](entry)
        return Ledger(done, dict(self.decided.ledger.ignored))

    def _load(self, entry: Entry) -> Entry:
        places = [self.catalogue.find(key) for key in self.decided.keys[entry.name]]
        operations = self.decided.operations[entry.name]
        tensors = [source.read(key) for source, key in places]
        value, _ = run(operations, tensors)
        if self._is_shared(value, entry):
            value = value.clone()
        self._set(entry, value)
        source, key = places[0]
        digest = tensor_digest(value) if operations else source.digest(key)
        return replace(entry, digest=digest)

    def _is_shared(self, value: Tensor, entry: Entry) -> bool:
        """Whether two targets would train one memory: a piece of a tensor, or one taken twice."""
        keys = self.decided.keys[entry.name]
        again = any(key in self.taken for key in keys)
        self.taken.update(keys)
        return again or value.untyped_storage().nbytes() > value.nbytes

    def _initialise(self, entry: Entry) -> Entry:
        assert entry.rule is not None and entry.seed is not None
        self._set(entry, torch.empty(entry.shape, dtype=getattr(torch, entry.dtype)))
        owner, leaf = owner_of(self.module, entry.name)
        target: Tensor = getattr(owner, leaf)
        kind, _, other = entry.rule.partition(":")
        more: list[Tensor] = []
        if kind in FROM_ANOTHER:
            holder, there = owner_of(self.module, other)
            more = [getattr(holder, there)]
        with torch.no_grad():
            generator = generator_for(entry.seed, self.prefix + entry.name)
            INITS.get(kind)(target, owner, generator, *more)
        return replace(entry, digest=tensor_digest(target))

    def _computed(self, entry: Entry) -> Entry:
        owner, leaf = owner_of(self.module, entry.name)
        if getattr(owner, leaf).is_meta:
            self._set(entry, torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype)))
            if self.compute is not None:
                self.compute(owner)
        return replace(entry, digest=tensor_digest(getattr(owner, leaf)))

    def _tie(self, entry: Entry) -> Entry:
        assert entry.tied_to is not None
        first, leaf = owner_of(self.module, entry.tied_to)
        owner, alias = owner_of(self.module, entry.name)
        setattr(owner, alias, getattr(first, leaf))
        return entry

    def _set(self, entry: Entry, value: Tensor) -> None:
        owner, leaf = owner_of(self.module, entry.name)
        old: Any = getattr(owner, leaf)
        if not old.is_meta:
            with torch.no_grad():
                old.copy_(value)
        elif entry.kind == "parameter":
            setattr(owner, leaf, nn.Parameter(value, requires_grad=not entry.frozen))
        else:
            owner._buffers[leaf] = value


def _turn(entry: Entry) -> int:
    """What is made from another tensor of the module comes after it, and ties last."""
    made = entry.origin is Origin.INITIALISED and (entry.rule or "").split(":")[0] in FROM_ANOTHER
    return 2 if entry.origin is Origin.TIED else int(made)


def verify_total(module: nn.Module, ledger: Ledger) -> None:
    """Check that a ledger covers a module: every tensor once, none on meta, ties by identity.

    Raises:
        LedgerError: lists everything that does not hold.
    """
    problems, seen = [], set()
    for names, tensor, _ in every_tensor(module):
        seen.update(names)
        if tensor.is_meta:
            problems.append(f"{names[0]}: still on meta")
        unknown = [name for name in names if name not in ledger.entries]
        problems += [f"{name}: not in the ledger" for name in unknown]
        roots = {ledger[name].tied_to or name for name in names if name in ledger.entries}
        if len(roots) > 1:
            problems.append(f"{', '.join(names)}: one tensor, but the ledger has them apart")
    problems += [
        f"{name}: in the ledger, not in the model" for name in ledger.entries if name not in seen
    ]
    for entry in ledger:
        if entry.tied_to is not None and entry.name in seen:
            here, leaf = owner_of(module, entry.name)
            there, root = owner_of(module, entry.tied_to)
            if getattr(here, leaf) is not getattr(there, root):
                problems.append(f"{entry.name}: no longer tied to {entry.tied_to}")
    if problems:
        raise LedgerError("\n".join(problems))
