"""When each tensor is trained in a run, how fast, and in which groups of the optimizer.

One optimizer serves the whole run, whatever its stages. A tensor that is frozen for a time has no
gradient, so that AdamW skips it: no moments, no weight decay, no work and no memory in the backward
pass; its moments and their bias correction start when it is first trained, and go on where they
were if it is trained in a later stage. Groups whose rate is zero would have cost the backward pass
of everything and gathered moments on the way; an optimizer per stage would have lost the moments
of what is trained on, and could not be resumed from one file.

While nothing of the host or of an encoder is trained, that part is in eval mode, as with
`freeze: true`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from fusion.errors import RecipeError
from fusion.model import FusedModel
from fusion.policies import Phase, never_trained, part_of, phases, unfreezing_order
from fusion.recipe import PolicySpec, Recipe, ScheduleSpec

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class Curve:
    """A factor of the learning rate over the updates since `begin`.

    `ctnmt` is the rate schedule of Yang et al. 2020 (CTNMT, arXiv:1908.05672): t / T' up to
    T' = `warmup`, then 1 - (t - T') / (T - T'), and 0 from T = `length` on; the authors trained
    with T' = 10,000 and T = 20,000. Differs: the authors' code (neurst, RateScheduledOptimizer)
    multiplies the gradient before Adam, which Adam mostly takes out again; ours multiplies the
    update. All other kinds are transformers' own, with lr_end (polynomial) as a share of the peak.
    """

    kind: str
    begin: int
    warmup: int
    length: int
    options: tuple[tuple[str, Any], ...] = ()

    def factor(self, update: int) -> float:
        """Of the update with this number, counted from the start of the run."""
        since = update - self.begin
        if self.kind != "ctnmt":
            return float(_transformers_curve(replace(self, begin=0))(since))
        if since < self.warmup:
            return since / self.warmup
        return max(0.0, 1 - (since - self.warmup) / (self.length - self.warmup))


@cache
def _transformers_curve(curve: Curve) -> Callable[[int], float]:
    """The function inside transformers' scheduler.

    Raises:
        AttributeError, TypeError, ValueError: it has none that knows the update's number only.
    """
    blank = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    options = dict(curve.options) or None
    found: Callable[[int], float] = get_scheduler(
        curve.kind, blank, curve.warmup, curve.length, options
    ).lr_lambdas[0]
    return found


@dataclass(frozen=True)
class Turn:
    """One tensor in one stage: trained in the updates from `begin` up to, not with, `end`."""

    begin: int
    end: int
    peak: float
    curves: tuple[Curve, ...]

    def rate(self, update: int) -> float:
        """The learning rate of an update; 0 out of turn."""
        if not self.begin <= update < self.end:
            return 0.0
        rate = self.peak
        for curve in self.curves:
            rate *= curve.factor(update)
        return rate


@dataclass(frozen=True)
class Defaults:
    """What `train:` says of learning rates."""

    rate: float
    schedule: str
    warmup: Callable[[int], int]  # from the number of updates
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timetable:
    """All turns of all tensors that are ever trained.

    Attributes:
        spans: label and first update of every stage
        total: updates of the run
        turns: tensor -> its turns
    """

    spans: tuple[tuple[str, int], ...]
    total: int
    turns: Mapping[str, tuple[Turn, ...]]

    def trained(self, update: int) -> set[str]:
        """The tensors that an update changes."""
        return {
            name
            for name, turns in self.turns.items()
            if any(turn.begin <= update < turn.end for turn in turns)
        }

    @property
    def changes(self) -> list[int]:
        """Updates from which on other tensors are trained than before, the first one included."""
        edges = {0, *(t.begin for turns in self.turns.values() for t in turns)}
        edges |= {t.end for turns in self.turns.values() for t in turns if t.end < self.total}
        return sorted(edges)

    def rates(self, update: int) -> dict[str, float]:
        """The highest learning rate in each part; 0 where it is frozen."""
        found: dict[str, float] = {}
        for name, turns in self._distinct():
            found[name] = max(found.get(name, 0.0), rate_of(turns, update))
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Every change of what is trained: stage, first update, tensors by part."""
        rows = []
        for update in self.changes:
            trained = Counter(part_of(name) for name in self.trained(update))
            label = [label for label, begin in self.spans if begin <= update][-1]
            rows.append(
                {"stage": label, "update": update, "tensors": dict(sorted(trained.items()))}
            )
        return rows

    def _distinct(self) -> Iterable[tuple[str, tuple[Turn, ...]]]:
        return dict.fromkeys((part_of(name), turns) for name, turns in self.turns.items())


def rate_of(turns: tuple[Turn, ...], update: int) -> float:
    """The learning rate of a tensor with these turns; 0 where it is frozen."""
    return sum(turn.rate(update) for turn in turns)


def stage_lengths(recipe: Recipe, total: int, per_pass: int) -> list[int]:
    """Updates of every stage.

    Args:
        total: of a run without stages
        per_pass: updates in one pass over the training text
    """
    if not recipe.stages:
        return [total]
    return [
        stage.updates
        if stage.updates is not None
        else max(1, round((stage.passes or 0) * per_pass))
        for stage in recipe.stages
    ]


def timetable(
    recipe: Recipe, tensors: Sequence[str], defaults: Defaults, updates: Sequence[int]
) -> Timetable:
    """The turns of all tensors.

    Args:
        tensors: names of all that is not frozen for good
        updates: of every stage

    Raises:
        RecipeError: something would be trained only after the end of its stage.
    """
    stages, total = phases(recipe), sum(updates)
    edges = list(pairwise([0, *accumulate(updates)]))
    turns: dict[str, list[Turn]] = {name: [] for name in tensors}
    for stage, (begin, end) in zip(stages, edges, strict=True):
        for name, turn in _turns(stage, begin, end, tensors, defaults).items():
            turns[name].append(turn)
    spans = tuple((stage.label, begin) for stage, (begin, _) in zip(stages, edges, strict=True))
    return Timetable(spans, total, {name: tuple(found) for name, found in turns.items()})


def _turns(
    stage: Phase, begin: int, end: int, tensors: Sequence[str], defaults: Defaults
) -> dict[str, Turn]:
    mine = {name: stage.policy(name) for name in tensors if stage.trains(name)}
    warmup = stage.warmup if stage.warmup is not None else defaults.warmup(end - begin)
    usual = Curve(
        stage.schedule or defaults.schedule,
        begin,
        warmup,
        end - begin,
        tuple(sorted(defaults.options.items())) if stage.schedule is None else (),
    )
    try:
        usual.factor(begin)
    except (AttributeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{stage.where}.lr_scheduler_type: {usual.kind} does not go with stages or policies: "
            f"{' '.join(str(error).split())}"
        ) from None
    waits = _waits(stage, mine)
    found = {}
    for name, policy in mine.items():
        first = begin + (policy.after or 0) + waits.get(name, 0)
        if first >= end:
            raise RecipeError(
                f"{stage.where}: {name} would be trained from update {first - begin} on, but there "
                f"are only {end - begin}; lower after: or unfreeze.every:"
            )
        found[name] = _turn(first, end, stage.peak(name, defaults.rate), usual, policy.schedule)
    return found


def _waits(stage: Phase, policies: Mapping[str, PolicySpec]) -> dict[str, int]:
    """Updates that layer-wise unfreezing adds; every part's layers are counted by themselves."""
    waits: dict[str, int] = {}
    kinds = {p.unfreeze for p in policies.values() if p.unfreeze is not None}
    for kind in kinds:
        names = [name for name, policy in policies.items() if policy.unfreeze == kind]
        for part in {part_of(name) for name in names}:
            mine = [name for name in names if part_of(name) == part]
            try:
                order = unfreezing_order(mine, kind.order)
            except RecipeError as error:
                raise RecipeError(f"{stage.where}.policies: unfreeze of {part}: {error}") from None
            waits |= {name: turn * kind.every for name, turn in order.items()}
    return waits


def _turn(first: int, end: int, peak: float, usual: Curve, own: ScheduleSpec | None) -> Turn:
    if own is None:
        return Turn(first, end, peak, (usual,))
    curve = Curve(own.type, first, own.warmup_steps, own.end or end - first)
    if own.type == "ctnmt":
        return Turn(first, min(end, first + curve.length), peak, (usual, curve))
    return Turn(first, end, peak, (curve,))


def own_name(name: str) -> str:
    """A tensor's name without what wrappers of the model put into it."""
    pieces = [piece for piece in name.split(".") if piece not in _WRAPPERS]
    return ".".join(pieces[1:] if pieces[0] == "module" else pieces)


def freeze_never_trained(recipe: Recipe, model: FusedModel) -> None:
    """Freeze for good what the recipe never trains, so that the ledger says so.

    Raises:
        RecipeError: a name in stages, policies or learning rates matches no tensor.
    """
    names = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    for name in never_trained(recipe, names):
        model.get_parameter(name).requires_grad_(False)
    if not any(tensor.requires_grad for tensor in model.host.parameters()):
        model.config.freeze_host = model.host_at_rest = True
    for name, part in model.encoder_parts.items():
        if not part.freeze and not any(p.requires_grad for p in part.model.parameters()):
            part.freeze = model.config.encoders[name]["freeze"] = True


def set_trainable(model: FusedModel, known: Collection[str], trained: Collection[str]) -> None:
    """Freeze what is in `known` and not in `trained`, and unfreeze the rest of it."""
    for name, tensor in model.named_parameters():
        if (own := own_name(name)) in known:
            tensor.requires_grad_(own in trained)
    if any(name.startswith("host.") for name in known):
        model.host_at_rest = not any(name.startswith("host.") for name in trained)
    for name, part in model.encoder_parts.items():
        prefix = f"encoders.{name}."
        if any(own.startswith(prefix) for own in known):
            part.freeze = not any(own.startswith(prefix) for own in trained)
