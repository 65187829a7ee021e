"""Plan, apply, verify: give every tensor of any nn.Module its values, or fail with a full list.

Nothing here knows of translation. A module may be built on meta; tensors are read one at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fusion.checkpoints.source import Source, TensorInfo, tensor_digest
from fusion.errors import LedgerError, WarmStartError, nearest
from fusion.inits import generator_for
from fusion.keymap import KeyMap, Pattern, Rule
from fusion.ledger import Entry, Ledger, Origin
from fusion.registry import INITS


@dataclass(frozen=True)
class Plan:
    """What warm_start will do: a ledger without digests, and the problems that forbid it."""

    ledger: Ledger
    problems: tuple[str, ...] = ()


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
    source: Source | None = None,
    *,
    rules: Mapping[str, str] | None = None,
    ignore: Mapping[str, str] | None = None,
    init: Mapping[str, str] | None = None,
    compute: Callable[[nn.Module], None] | None = None,
    computed: Callable[[str], bool] = lambda name: False,
    seed: int = 0,
    prefix: str = "",
) -> Ledger:
    """Give every parameter and buffer of a module its values, in place.

    Args:
        source: the checkpoint; a target tensor is read from the source tensor of the same name, or
            of the name that a rule gives
        rules: target pattern <- source pattern (see keymap)
        ignore: source pattern that is not loaded -> the reason
        init: target pattern of tensors that start from nothing -> name of an init rule
        compute: fills a module's own tensors that its class computes (positions, say)
        computed: whether a target tensor that the source lacks is computed
        seed: with the tensor's full name, decides the values of an initialised tensor
        prefix: of the names in seeds and messages, where the module is a part of a larger one

    Returns:
        The verified ledger: one entry per parameter and buffer.

    Raises:
        WarmStartError: lists every tensor that is missing, left over, or of another shape or dtype.
        LedgerError: a tensor ended up on meta, or a tie was lost.
    """
    decided = plan(
        module,
        source,
        rules=rules,
        ignore=ignore,
        init=init,
        computed=computed,
        seed=seed,
        prefix=prefix,
    )
    problems = decided.problems or _torn(source, decided.ledger, prefix)
    if problems:
        raise WarmStartError("\n".join(problems))
    ledger = _apply(module, source, decided.ledger, compute, prefix)
    verify_total(module, ledger)
    return ledger


def plan(
    module: nn.Module,
    source: Source | None = None,
    *,
    rules: Mapping[str, str] | None = None,
    ignore: Mapping[str, str] | None = None,
    init: Mapping[str, str] | None = None,
    computed: Callable[[str], bool] = lambda name: False,
    seed: int = 0,
    prefix: str = "",
) -> Plan:
    """Decide where every tensor comes from, from headers only. Arguments as `warm_start`."""
    keymap = KeyMap(Rule(target, src) for target, src in (rules or {}).items())
    headers = dict(source.tensors()) if source is not None else {}
    where = source.location if source is not None else "no source"
    inits = {Pattern(pattern): rule for pattern, rule in (init or {}).items()}
    ledger = Ledger()
    problems: list[str] = []
    used: set[str] = set()
    for names, tensor, kind in _tensors(module):
        persistent = kind != "buffer" or _is_persistent(module, names[0])
        found = [(n, k) for n in names if (k := keymap.source_of(n)) in headers]
        name = found[0][0] if found and persistent else names[0]
        entry = Entry(
            name=name,
            kind=kind,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            origin=Origin.COMPUTED,
            frozen=not tensor.requires_grad,
        )
        rule = next((r for p, r in inits.items() if p.match(name) is not None), None)
        if not persistent:
            entry = replace(entry, rule="the module's constructor")
        elif found:
            used.update(key for _, key in found)
            for alias, key in found:
                if problem := _misfit(headers[key], tensor):
                    problems.append(f"{prefix}{alias}: {problem} in {where}: {key}")
            operations = ("rename",) if found[0][1] != name else ()
            entry = replace(
                entry,
                origin=Origin.LOADED,
                source=where,
                key=found[0][1],
                operations=operations,
            )
        elif rule is not None:
            entry = replace(entry, origin=Origin.INITIALISED, rule=rule, seed=seed)
        elif any(computed(n) for n in names):
            entry = replace(entry, rule="the model's own class")
        else:
            wanted = keymap.source_of(name)
            problems.append(
                f"{prefix}{name}: would start from nothing: {where} has no {wanted}"
                f"{nearest(wanted, headers)}"
            )
        ledger.add(entry)
        keys = dict(found) if persistent else {}
        for alias in names:
            if alias != name:
                tied = replace(_bare(entry), name=alias, origin=Origin.TIED, tied_to=name)
                ledger.add(replace(tied, key=keys.get(alias)))
    problems += _left_over(headers, used, ignore or {}, ledger, where, prefix)
    problems += [
        f"{prefix}{rule.target}: the rule from {rule.source} matches no tensor"
        for rule in keymap.unused()
    ]
    return Plan(ledger, tuple(problems))


def _bare(entry: Entry) -> Entry:
    """A tied tensor has no origin of its own."""
    return replace(entry, source=None, key=None, operations=(), rule=None, seed=None)


def _torn(source: Source | None, ledger: Ledger, prefix: str) -> list[str]:
    """Tied tensors that the source has under several names, with different values."""
    problems = []
    for entry in ledger:
        if source is None or entry.tied_to is None or entry.key is None:
            continue
        first = ledger[entry.tied_to].key
        if first is None or first == entry.key:
            continue
        if tensor_digest(source.read(first)) != tensor_digest(source.read(entry.key)):
            problems.append(
                f"{prefix}{entry.name}: is tied to {prefix}{entry.tied_to}, but {source.location} "
                f"has different values in {entry.key} and {first}"
            )
    return problems


def _left_over(
    headers: Mapping[str, TensorInfo],
    used: set[str],
    ignore: Mapping[str, str],
    ledger: Ledger,
    where: str,
    prefix: str,
) -> list[str]:
    problems = []
    patterns = {Pattern(pattern): reason for pattern, reason in ignore.items()}
    for key in headers:
        if key in used:
            continue
        reason = next((r for p, r in patterns.items() if p.match(key) is not None), None)
        if reason is None:
            head = key.split(".")[0]
            targets = [entry.name for entry in ledger]
            problems.append(
                f"{prefix}(nothing): {where} has {key}, which no tensor takes"
                f"{nearest(key, targets)}; to leave it out: ignore: "
                f'{{"{head}.{{rest*}}": "the reason"}}'
            )
        else:
            ledger.ignored[key] = reason
    return problems


def _misfit(info: TensorInfo, tensor: Tensor) -> str | None:
    if info.shape != tuple(tensor.shape):
        hint = "; transposed?" if info.shape == tuple(tensor.shape)[::-1] else ""
        return f"shape {list(tensor.shape)} expected, {list(info.shape)}{hint} found"
    if torch.promote_types(info.dtype, tensor.dtype) != tensor.dtype:
        return f"dtype {tensor.dtype} expected, {info.dtype} found (the cast would lose precision)"
    return None


def _tensors(module: nn.Module) -> Iterator[tuple[list[str], Tensor, str]]:
    """Every parameter and buffer once, with all the names it goes by."""
    groups: dict[int, tuple[list[str], Tensor, str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), ([], parameter, "parameter"))[0].append(name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        groups.setdefault(id(buffer), ([], buffer, "buffer"))[0].append(name)
    yield from groups.values()


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _is_persistent(module: nn.Module, name: str) -> bool:
    owner, leaf = _owner(module, name)
    return leaf not in owner._non_persistent_buffers_set


def _apply(
    module: nn.Module,
    source: Source | None,
    ledger: Ledger,
    compute: Callable[[nn.Module], None] | None,
    prefix: str,
) -> Ledger:
    """Fill every tensor. Values are set on the owner, then on every tied name."""
    done = Ledger(ignored=ledger.ignored)
    for entry in ledger:
        digest = None
        if entry.origin is Origin.LOADED:
            assert source is not None and entry.key is not None
            value = source.read(entry.key)
            wanted = getattr(torch, entry.dtype)
            operations = entry.operations
            if value.dtype != wanted:
                value, operations = value.to(wanted), (*operations, f"cast from {value.dtype}")
            _set(module, entry, value)
            entry = replace(entry, operations=operations)
            digest = tensor_digest(value)
        elif entry.origin is Origin.INITIALISED:
            value = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
            _set(module, entry, value)
            owner, leaf = _owner(module, entry.name)
            assert entry.rule is not None and entry.seed is not None
            with torch.no_grad():
                target: Tensor = getattr(owner, leaf)
                generator = generator_for(entry.seed, prefix + entry.name)
                INITS.get(entry.rule)(target, owner, generator)
            digest = tensor_digest(target)
        elif entry.origin is Origin.COMPUTED:
            owner, leaf = _owner(module, entry.name)
            if getattr(owner, leaf).is_meta:
                _set(module, entry, torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype)))
                if compute is not None:
                    compute(owner)
            digest = tensor_digest(getattr(owner, leaf))
        elif entry.origin is Origin.TIED:
            assert entry.tied_to is not None
            first, leaf = _owner(module, entry.tied_to)
            owner, alias = _owner(module, entry.name)
            setattr(owner, alias, getattr(first, leaf))
            entry = replace(entry, key=None)
        done.add(replace(entry, digest=digest))
    return done


def _set(module: nn.Module, entry: Entry, value: Tensor) -> None:
    owner, leaf = _owner(module, entry.name)
    old: Any = getattr(owner, leaf)
    if not old.is_meta:
        with torch.no_grad():
            old.copy_(value)
    elif entry.kind == "parameter":
        setattr(owner, leaf, nn.Parameter(value, requires_grad=not entry.frozen))
    else:
        owner._buffers[leaf] = value


def verify_total(module: nn.Module, ledger: Ledger) -> None:
    """Check that a ledger covers a module: every tensor once, none on meta, ties by identity.

    Raises:
        LedgerError: lists everything that does not hold.
    """
    problems, seen = [], set()
    for names, tensor, _ in _tensors(module):
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
            here, leaf = _owner(module, entry.name)
            there, root = _owner(module, entry.tied_to)
            if getattr(here, leaf) is not getattr(there, root):
                problems.append(f"{entry.name}: no longer tied to {entry.tied_to}")
    if problems:
        raise LedgerError("\n".join(problems))
