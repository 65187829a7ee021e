"""Decide where every tensor of a module comes from, from headers only; say every problem at once.

Nothing here knows of translation, and nothing here reads or changes a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fusion.checkpoints.source import Source, TensorInfo
from fusion.errors import KeyMapError, RegistryError, nearest
from fusion.keymap import KeyMap, Pattern, Rule, first_match, nearest_pattern
from fusion.ledger import Entry, Ledger, Origin
from fusion.operations import Operation, dtype_name, is_lossy, parse, run
from fusion.registry import INITS
from fusion.tensors import every_tensor, extra_state, is_persistent, owner_of, unfillable

FROM_ANOTHER = ("copy", "mean_rows")  # inits that read another tensor of the module


@dataclass(frozen=True)
class Plan:
    """What warm_start will do: a ledger without digests, and the problems that forbid it.

    Attributes:
        keys: source tensors of each loaded tensor by name, and of each tied name that has one
        operations: what is done to them
    """

    ledger: Ledger
    problems: tuple[str, ...] = ()
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    operations: dict[str, list[Operation]] = field(default_factory=dict)


class Catalogue:
    """Several sources under the names that rules use: `KEY`, or `NAME:KEY` where they are named."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = dict(sources)
        self.headers: dict[str, TensorInfo] = {}
        self._where: dict[str, tuple[Source, str]] = {}
        for name, source in self.sources.items():
            for key, info in source.tensors().items():
                full = f"{name}:{key}" if name else key
                self.headers[full] = info
                self._where[full] = (source, key)

    def find(self, full: str) -> tuple[Source, str]:
        """The source and its own key of a name."""
        return self._where[full]

    def same_name(self, target: str) -> list[str]:
        """Names of source tensors that are called as the target is."""
        names = [f"{name}:{target}" if name else target for name in self.sources]
        return [name for name in names if name in self.headers]

    @property
    def location(self) -> str:
        """All places, for messages."""
        return " and ".join(source.location for source in self.sources.values()) or "no source"


@dataclass(frozen=True)
class Instructions:
    """What `warm_start` was told; see there."""

    rules: Mapping[str, Any] = field(default_factory=dict)
    ignore: Mapping[str, str] = field(default_factory=dict)
    init: Mapping[str, str] = field(default_factory=dict)
    computed: Callable[[str], bool] = lambda name: False
    seed: int = 0
    prefix: str = ""

    def __post_init__(self) -> None:
        for what in ("rules", "ignore", "init"):
            told = getattr(self, what)
            if not isinstance(told, Mapping):
                raise KeyMapError(f"{what}: a mapping of patterns; found {type(told).__name__}")
            for pattern, value in told.items():
                if not isinstance(pattern, str):
                    raise KeyMapError(f"{what}: a pattern is text; found {pattern!r}")
                if what != "rules" and not isinstance(value, str):
                    wanted = "the reason" if what == "ignore" else "the name of an init rule"
                    raise KeyMapError(f"{what}: {pattern}: {wanted} is text; found {value!r}")


def make_plan(module: nn.Module, catalogue: Catalogue, told: Instructions) -> Plan:
    """Decide for every tensor; see `fusion.warmstart.plan`."""
    return _Planner(module, catalogue, told).plan()


class _Planner:
    """One pass over a module's tensors, then a look at what was left over."""

    def __init__(self, module: nn.Module, catalogue: Catalogue, told: Instructions) -> None:
        self.module, self.catalogue, self.told = module, catalogue, told
        self.keymap = KeyMap.parse(told.rules)
        self.inits = {Pattern(pattern): rule for pattern, rule in told.init.items()}
        self.ignored = {Pattern(pattern): reason for pattern, reason in told.ignore.items()}
        self.unused_inits = set(told.init)
        self.ledger = Ledger()
        self.keys: dict[str, tuple[str, ...]] = {}
        self.operations: dict[str, list[Operation]] = {}
        self.problems: list[str] = []
        self.used: set[str] = set()
        self.tensors = {name: t for names, t, _ in every_tensor(module) for name in names}
        self.extras = extra_state(module)

    def plan(self) -> Plan:
        for names, tensor, kind in every_tensor(self.module):
            self._decide(names, tensor, kind)
        self._check_copies()
        self._extra_state()
        self._left_over()
        for rule in self.keymap.unused():
            what = f"the rule from {' + '.join(rule.sources)}"
            self._matches_nothing(rule.target, what)
        for pattern, reason in self.told.ignore.items():
            if not reason.strip():
                self._problem(pattern, "ignore: say why it is left out; the reason is empty")
        for pattern in sorted(self.unused_inits):
            self._matches_nothing(pattern, "the init")
        filled = {e.name for e in self.ledger if e.origin in (Origin.LOADED, Origin.INITIALISED)}
        for name, why in unfillable(self.module, filled).items():
            self._problem(name, why)
        return Plan(self.ledger, tuple(self.problems), self.keys, self.operations)

    def _problem(self, name: str, what: str) -> None:
        self.problems.append(f"{self.told.prefix}{name}: {what}")

    def _matches_nothing(self, pattern: str, what: str) -> None:
        """Say that a pattern of the user's is for no tensor that is saved."""
        parsed = Pattern(pattern)
        names = [name for name in self.tensors if parsed.match(name) is not None]
        if names:
            self._problem(
                pattern, f"{what} is for {names[0]}, a buffer that is not saved: its class fills it"
            )
        else:
            self._problem(
                pattern, f"{what} matches no tensor{nearest_pattern(pattern, self.tensors)}"
            )

    def _decide(self, names: list[str], tensor: Tensor, kind: str) -> None:
        """Give one tensor, with all the names it goes by, its origin."""
        if is_lazy(tensor):
            self._problem(names[0], "has no shape yet; call the lazy module once on an input")
            return
        saved = [n for n in names if kind != "buffer" or is_persistent(self.module, n)]
        found = self._loads(saved, tensor)
        name = (found or saved or names)[0]
        entry = Entry(
            name=name,
            kind=kind,
            shape=tuple(tensor.shape),
            dtype=dtype_name(tensor.dtype),
            origin=Origin.COMPUTED,
            frozen=not tensor.requires_grad,
        )
        init = self._init_rule(saved)
        if not saved:
            entry = replace(entry, rule="the module's constructor")
        elif found:
            entry = self._loaded(entry)
            if init is not None:
                self._problem(
                    name,
                    f"both loaded from {entry.source}: {' + '.join(entry.keys)} and initialised "
                    f"by {init}; drop one (ignore: leaves a source tensor out)",
                )
        elif init is not None:
            self._check_init(name, tensor, init)
            entry = replace(entry, origin=Origin.INITIALISED, rule=init, seed=self.told.seed)
        elif all(self.told.computed(n) for n in names):
            entry = replace(entry, rule="the model's own class")
        else:
            self._missing(name)
        self.ledger.add(entry)
        for alias in names:
            if alias != name:
                tied = replace(_bare(entry), name=alias, origin=Origin.TIED, tied_to=name)
                if alias in self.keys:
                    here = self._loaded(tied)
                    tied = replace(tied, keys=here.keys, operations=here.operations)
                self.ledger.add(tied)

    def _loads(self, names: list[str], tensor: Tensor) -> list[str]:
        """The names under which a tensor has a source; `keys` and `operations` say which."""
        found = []
        for name in names:
            try:
                hit = self.keymap.rule_of(name)
            except KeyMapError as error:
                self._problem(name, str(error))
                self.used.update(self.keymap.wanted_by(name))
                continue
            keys = self._by_rule(name, *hit) if hit is not None else self._by_name(name)
            if keys:
                found.append(name)
                self.keys[name] = keys
                self.used.update(keys)
                self._fit(name, tensor, hit[0] if hit is not None else None)
        return found

    def _by_rule(self, name: str, rule: Rule, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if key not in self.catalogue.headers:
                self._problem(
                    name,
                    f"{rule} wants {key}, which {self.catalogue.location} does not have"
                    f"{nearest(key, self.catalogue.headers)}",
                )
            elif (reason := self._reason(key)) is not None:
                self._problem(name, f"{rule} takes {key}, which is ignored: {reason}")
        return keys if all(key in self.catalogue.headers for key in keys) else ()

    def _by_name(self, name: str) -> tuple[str, ...]:
        same = [key for key in self.catalogue.same_name(name) if self._reason(key) is None]
        if len(same) > 1:
            self._problem(
                name,
                f"two sources have it: {' and '.join(same)}; say which one with a rule, and "
                "ignore the other",
            )
            self.used.update(same)
        return tuple(same[:1])

    def _fit(self, name: str, tensor: Tensor, rule: Rule | None) -> None:
        """Run the operations on meta tensors and compare shape and dtype."""
        keys = self.keys[name]
        infos = [self.catalogue.headers[key] for key in keys]
        metas = [torch.empty(info.shape, dtype=info.dtype, device="meta") for info in infos]
        try:
            steps = [parse(data) for data in rule.operations] if rule is not None else []
            result, done = run(steps, metas)
        except KeyMapError as error:
            self._problem(name, f"{rule}: {error}")
            return
        where = f"in {self.catalogue.location}: {' + '.join(keys)}"
        if rule is not None and rule.operations:
            where += f" after {', '.join(step.name for step in done)}"
        if result.shape != tensor.shape:
            shapes = f"shape {list(tensor.shape)} expected, {list(result.shape)}"
            turned = list(result.shape) == list(tensor.shape)[::-1]
            hint = "; transposed? ops: [transpose]" if turned and not steps else ""
            self._problem(name, f"{shapes} found{hint} {where}")
            return
        if result.dtype != tensor.dtype:
            step = parse({"cast": dtype_name(tensor.dtype)})
            if is_lossy(result.dtype, tensor.dtype):
                self._problem(
                    name,
                    f"dtype {tensor.dtype} expected, {result.dtype} found (the cast would lose "
                    f"precision; a rule may say ops: [{{cast: {dtype_name(tensor.dtype)}}}]) "
                    f"{where}",
                )
                return
            done.append(step.known([result]))
        self.operations[name] = done

    def _loaded(self, entry: Entry) -> Entry:
        places = [self.catalogue.find(key) for key in self.keys[entry.name]]
        own = tuple(key for _, key in places)
        sources = [source.location for source, _ in places]
        renamed = ("rename",) if own != (entry.name,) else ()
        done = tuple(step.to_data() for step in self.operations.get(entry.name, ()))
        return replace(
            entry,
            origin=Origin.LOADED,
            source=sources[0],
            sources=tuple(sources) if len(set(sources)) > 1 else (),
            keys=own,
            operations=renamed + done,
        )

    def _init_rule(self, names: list[str]) -> str | None:
        hits = {
            pattern.text: rule
            for pattern, rule in self.inits.items()
            if any(pattern.match(name) is not None for name in names)
        }
        self.unused_inits -= hits.keys()
        if len(hits) > 1:
            self._problem(names[0], f"more than one init matches: {', '.join(hits)}")
        return next(iter(hits.values()), None)

    def _check_init(self, name: str, tensor: Tensor, rule: str) -> None:
        kind, _, other = rule.partition(":")
        try:
            INITS.get(kind)
        except RegistryError as error:
            self._problem(name, str(error))
            return
        if kind not in FROM_ANOTHER:
            owner = owner_of(self.module, name)[0]
            if other:
                self._problem(name, f'init {kind}: takes nothing after a colon; found "{other}"')
            elif kind == "default" and not hasattr(owner, "reset_parameters"):
                self._problem(name, f"init default: {type(owner).__name__} has no reset_parameters")
            return
        there = self.tensors.get(other)
        if there is None:
            self._problem(name, f'init {kind}: no tensor "{other}"{nearest(other, self.tensors)}')
            return
        wanted = tensor.shape if kind == "copy" else tensor.shape[1:]
        has = there.shape if kind == "copy" else there.shape[1:]
        if wanted != has or tensor.dtype != there.dtype or (kind != "copy" and not there.dim()):
            here = f"{list(tensor.shape)} {dtype_name(tensor.dtype)}"
            other_one = f"{other} is {list(there.shape)} {dtype_name(there.dtype)}"
            self._problem(name, f"init {rule}: this tensor is {here}, and {other_one}")

    def _check_copies(self) -> None:
        """A copy of a copy, or of itself, would depend on the order of filling."""
        for entry in self.ledger:
            other = _made_from(entry)
            if other not in self.ledger.entries:
                continue
            root = self.ledger[self.ledger[other].tied_to or other]
            if root.name == entry.name:
                self._problem(entry.name, f"init {entry.rule}: that is this tensor itself")
            elif _made_from(root):
                self._problem(entry.name, f"init {entry.rule}: {other} is itself {root.rule}")

    def _missing(self, name: str) -> None:
        hit = None
        try:
            hit = self.keymap.rule_of(name)
        except KeyMapError:
            return  # said already
        if hit is None and not self.catalogue.same_name(name):
            self._problem(
                name,
                f"would start from nothing: {self.catalogue.location} has no {name}"
                f"{nearest(name, self.catalogue.headers)}",
            )
        elif hit is None:
            reason = self._reason(self.catalogue.same_name(name)[0])
            self._problem(name, f"would start from nothing: its source is ignored ({reason})")

    def _reason(self, key: str) -> str | None:
        return first_match(self.ignored, key)

    def _extra_state(self) -> None:
        """What a module saves besides tensors is not loaded; that must be said."""
        for name, kind in self.extras.items():
            reason = self._reason(name)
            if reason is None:
                self._problem(
                    name,
                    f"{kind} saves more than tensors (get_extra_state), and only tensors are "
                    f'loaded; to start without it: ignore: {{"{name}": "the reason"}}',
                )
            else:
                self.ledger.ignored[name] = reason

    def _left_over(self) -> None:
        """Source tensors that nothing takes, and patterns of tensors to ignore that match none."""
        targets = list(self.tensors)
        for key in self.catalogue.headers:
            if key in self.used:
                continue
            reason = self._reason(key)
            if reason is None:
                head, dot, _ = key.partition(".")
                wanted = f"{head}.{{rest*}}" if dot else key
                self._problem(
                    "(nothing)",
                    f"{self.catalogue.find(key)[0].location} has {key}, which no tensor takes"
                    f"{nearest(key, targets)}; to leave it out: ignore: "
                    f'{{"{wanted}": "the reason"}}',
                )
            else:
                self.ledger.ignored[key] = reason
        for pattern in self.ignored:
            known = [*self.catalogue.headers, *self.extras]
            if not any(pattern.match(key) is not None for key in known):
                self._problem(
                    "(nothing)",
                    f"ignore: {pattern.text} matches nothing in {self.catalogue.location}"
                    f"{nearest_pattern(pattern.text, self.catalogue.headers)}",
                )


def _made_from(entry: Entry) -> str:
    """The tensor that an init copies from; empty: none."""
    kind, _, other = (entry.rule or "").partition(":")
    return other if entry.origin is Origin.INITIALISED and kind in FROM_ANOTHER else ""


def _bare(entry: Entry) -> Entry:
    """A tied tensor has no origin of its own."""
    return replace(
        entry, source=None, sources=(), keys=(), operations=(), rule=None, seed=None, digest=None
    )
