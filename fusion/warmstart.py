"""Plan, apply, verify: give every tensor of any nn.Module its values, or fail with a full list.

Nothing here knows of translation. A module may be built on meta; tensors are read one at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import Source, learn, nonfinite, tensor_digest
from fusion.denormals import denormals_kept
from fusion.errors import FusionError, LedgerError, SourceError, WarmStartError
from fusion.inits import generator_for
from fusion.ledger import Entry, Ledger, Origin
from fusion.operations import dtype_name, run
from fusion.planning import (
    FROM_ANOTHER,
    Catalogue,
    Instructions,
    Plan,
    make_plan,
)
from fusion.registry import INITS
from fusion.tensors import every_tensor, in_place_of, overlaps_itself, owner_of

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
            on_device: Any = in_place_of(param, param.detach().to("meta"), param.requires_grad)
            param = on_device
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@denormals_kept  # the same numbers while training, loading and verifying
@torch.inference_mode(False)
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
        computed: whether a target tensor that the source lacks is computed; of tied ones, all are
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
    told = _told(module, rules, ignore, init, computed, seed, prefix)
    with torch.device("cpu"):  # whatever the caller's default is: files are read there
        catalogue = Catalogue(_opened(source))
        decided = make_plan(module, catalogue, told)
        problems = decided.problems or _unsound(decided, catalogue, prefix, allow_nonfinite)
        if problems:
            raise WarmStartError("\n".join(problems))
        filler = _Filler(module, catalogue, decided, compute, prefix, allow_nonfinite)
        problems = filler.stage()
        if problems:
            raise WarmStartError("\n".join(problems))
        ledger = filler.fill()
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
    told = _told(module, rules, ignore, init, computed, seed, prefix)
    with torch.device("cpu"):
        return make_plan(module, Catalogue(_opened(source)), told)


def _told(
    module: nn.Module,
    rules: Mapping[str, Any] | None,
    ignore: Mapping[str, str] | None,
    init: Mapping[str, str] | None,
    computed: Callable[[str], bool],
    seed: int,
    prefix: str,
) -> Instructions:
    if not isinstance(module, nn.Module):
        raise WarmStartError(f"an nn.Module is filled; found {type(module).__name__}")
    return Instructions(
        {} if rules is None else rules,
        {} if ignore is None else ignore,
        {} if init is None else init,
        computed,
        seed,
        prefix,
    )


def _opened(source: Sources) -> dict[str, Source]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return {name: _open(one) for name, one in source.items()}
    return {"": _open(source)}


def _open(source: Source | str | Path) -> Source:
    if not isinstance(source, Source | str | Path):
        raise SourceError(
            f"a source is a path, a hub id or a Source; found {type(source).__name__}; "
            "save a state dict to a file first"
        )
    return source if isinstance(source, Source) else open_source(source)


def _unsound(decided: Plan, catalogue: Catalogue, prefix: str, allow_nonfinite: bool) -> list[str]:
    """What only the values tell: NaN, infinity, and tied tensors that differ at the source."""
    problems = []
    learn([catalogue.find(key) for keys in decided.keys.values() for key in keys])
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


@dataclass
class _Filler:
    """Fills every tensor of a module as planned, and writes down what each one is.

    What can fail is made first, beside the module: `stage`. Nothing of the module has changed then.
    """

    module: nn.Module
    catalogue: Catalogue
    decided: Plan
    compute: Callable[[nn.Module], None] | None
    prefix: str
    allow_nonfinite: bool
    staged: dict[str, Tensor] = field(default_factory=dict)
    operations: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)

    def stage(self) -> list[str]:
        """Make every tensor that is more than read; the problems met."""
        problems = []
        for entry in self.decided.ledger:
            try:
                value = self._made(entry)
                problem = self._wrong(entry, value) if value is not None else None
            except Exception as error:  # of an init rule or a function of the user's
                if isinstance(error, SourceError):
                    raise
                value, problem = None, _said(entry, error)
            if problem is not None:
                problems.append(f"{self.prefix}{entry.name}: {problem}")
            elif value is not None:
                self.staged[entry.name] = value
        return problems

    def _made(self, entry: Entry) -> Tensor | None:
        """The value of a tensor; None where it is only read, or made of one that is."""
        owner, leaf = owner_of(self.module, entry.name)
        if entry.origin is Origin.LOADED and self.decided.operations[entry.name]:
            places = map(self.catalogue.find, self.decided.keys[entry.name])
            tensors = [source.read_own(key) for source, key in places]
            made, done = run(self.decided.operations[entry.name], tensors)
            renamed = entry.operations[:1] if entry.operations[:1] == ("rename",) else ()
            self.operations[entry.name] = renamed + tuple(step.to_data() for step in done)
            return made.detach()
        if entry.origin is Origin.INITIALISED and _turn(entry) == 0:
            assert entry.rule is not None and entry.seed is not None
            rule, generator = INITS.get(entry.rule), generator_for(entry.seed, self._full(entry))
            return self._in_place(entry, lambda tensor: rule(tensor, owner, generator))
        if entry.origin is Origin.COMPUTED and getattr(owner, leaf).is_meta:
            if self.compute is None:
                raise WarmStartError("is on meta, and nothing computes it; parameters_on_meta()")
            compute = self.compute
            return self._in_place(entry, lambda _: compute(owner))
        return None

    def _in_place(self, entry: Entry, fill: Callable[[Tensor], object]) -> Tensor:
        """Let a function fill a blank CPU tensor that stands in for the module's own one."""
        owner, leaf = owner_of(self.module, entry.name)
        held = dict(owner._parameters), dict(owner._buffers)
        blank = _blank(entry)
        if entry.kind == "parameter":
            owner._parameters[leaf] = nn.Parameter(blank, requires_grad=False)
        else:
            owner._buffers[leaf] = blank
        try:
            with torch.no_grad():
                fill(getattr(owner, leaf))
            made: Tensor = getattr(owner, leaf)
            return made.detach()
        finally:
            owner._parameters.update(held[0])
            owner._buffers.update(held[1])

    def _wrong(self, entry: Entry, value: Tensor) -> str | None:
        """Why a value that was made cannot be taken."""
        if (tuple(value.shape), dtype_name(value.dtype)) != (entry.shape, entry.dtype):
            found = f"{list(value.shape)} {dtype_name(value.dtype)}"
            return f"{list(entry.shape)} {entry.dtype} expected, {found} was made"
        bad = nonfinite(value)
        left = bad is not None or not value.is_floating_point()  # a blank is NaN, or an integer
        if entry.origin is not Origin.LOADED and left and _is_blank(value):
            how = entry.rule if entry.origin is Origin.INITIALISED else "compute"
            return (
                f"{how} of {type(owner_of(self.module, entry.name)[0]).__name__} left it unfilled"
            )
        allowed = self.allow_nonfinite or entry.origin is Origin.COMPUTED
        return None if bad is None or allowed else f"holds {bad}, made by {_how(entry)}"

    def fill(self) -> Ledger:
        """Change the module; its verified-to-be ledger.

        Raises:
            WarmStartError: a tensor of a kind that torch does not let us fill; the module is
                partly filled then.
        """
        done = {entry.name: entry for entry in self.decided.ledger}
        for entry in sorted(done.values(), key=_turn):
            if entry.origin is Origin.TIED:
                self._tie(entry)
                continue
            try:
                digest = self._filled(entry)
            except (RuntimeError, TypeError, NotImplementedError) as error:
                owner, leaf = owner_of(self.module, entry.name)
                raise WarmStartError(
                    f"{self._full(entry)}: a {type(getattr(owner, leaf)).__name__} that cannot be "
                    f"filled, and the module is filled in part: {error}"
                ) from error
            done[entry.name] = replace(
                entry, digest=digest, operations=self.operations.get(entry.name, entry.operations)
            )
        return Ledger(done, dict(self.decided.ledger.ignored))

    def _filled(self, entry: Entry) -> str:
        """Give one tensor its value; its digest."""
        owner, leaf = owner_of(self.module, entry.name)
        value = self.staged.pop(entry.name, None)
        if value is not None:
            self._set(entry, value)
        elif entry.origin is Origin.LOADED:
            source, key = self.catalogue.find(self.decided.keys[entry.name][0])
            self._set(entry, source.read_own(key))
            return source.digest(key)
        elif entry.origin is Origin.INITIALISED:
            self._copy(entry)
        return tensor_digest(getattr(owner, leaf))

    def _copy(self, entry: Entry) -> None:
        assert entry.rule is not None and entry.seed is not None
        kind, _, other = entry.rule.partition(":")
        other = self.decided.ledger[other].tied_to or other
        holder, there = owner_of(self.module, other)
        value = _blank(entry)
        generator = generator_for(entry.seed, self._full(entry))
        owner = owner_of(self.module, entry.name)[0]
        with torch.no_grad():
            INITS.get(kind)(value, owner, generator, getattr(holder, there))
        self._set(entry, value)

    def _tie(self, entry: Entry) -> None:
        assert entry.tied_to is not None
        first, leaf = owner_of(self.module, entry.tied_to)
        owner, alias = owner_of(self.module, entry.name)
        setattr(owner, alias, getattr(first, leaf))

    def _set(self, entry: Entry, value: Tensor) -> None:
        owner, leaf = owner_of(self.module, entry.name)
        old: Any = getattr(owner, leaf)
        if not old.is_meta:
            with torch.no_grad():
                old.copy_(value)
            return
        if self._is_shared(value):
            value = value.clone(memory_format=torch.contiguous_format)
        new = in_place_of(old, value, requires_grad=not entry.frozen)
        if entry.kind == "parameter":
            setattr(owner, leaf, new)
        else:
            owner._buffers[leaf] = new

    def _is_shared(self, value: Tensor) -> bool:
        """Whether others would train this memory too: a piece of a tensor, or one taken twice."""
        memory = value.untyped_storage()
        again = memory.data_ptr() in self.taken
        self.taken.add(memory.data_ptr())
        alone = memory.nbytes() <= value.nbytes and not overlaps_itself(value)
        return bool(value.numel()) and (again or not alone)

    def _full(self, entry: Entry) -> str:
        return self.prefix + entry.name


def _said(entry: Entry, error: Exception) -> str:
    if isinstance(error, FusionError):
        return str(error)
    return f"{_how(entry)}: {type(error).__name__}: {error}"


def _how(entry: Entry) -> str:
    steps = [step if isinstance(step, str) else next(iter(step)) for step in entry.operations]
    return f"init {entry.rule}" if entry.rule else ", ".join(steps)


def _blank(entry: Entry) -> Tensor:
    """A tensor of a value that nothing fills in by intention: NaN, or the least integer."""
    dtype: torch.dtype = getattr(torch, entry.dtype)
    if dtype == torch.bool:
        return torch.zeros(entry.shape, dtype=dtype)
    value = (
        torch.iinfo(dtype).min if not (dtype.is_floating_point or dtype.is_complex) else math.nan
    )
    return torch.full(entry.shape, value, dtype=dtype)


def _is_blank(value: Tensor) -> bool:
    """Whether any part of a blank was left."""
    if value.is_floating_point() or value.is_complex():
        return bool(value.isnan().any())
    signed = value.dtype not in (torch.bool, torch.uint8)
    return signed and bool((value == torch.iinfo(value.dtype).min).any())


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
