"""Settings that make a recipe's training fit a device, the least harmful ones first."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

from fusion.errors import FusionError
from fusion.estimates import changes
from fusion.estimates.changes import Change, State
from fusion.estimates.hardware import Hardware
from fusion.estimates.memory import Memory, longest_pair, memory_of, planned_model
from fusion.estimates.settings import accumulation
from fusion.memory_cache.listing import shown_bytes
from fusion.recipe import Recipe

Load = Callable[[list[str]], Recipe]
_SMALLEST = 256  # tokens of a batch; smaller ones leave the hardware idle
_ORDER = (
    changes.autocast,
    None,  # smaller batches, which are tried again after each further change
    changes.checkpointing,
    changes.cache,
    changes.small_optimizer,
    changes.lora,
    changes.frozen_encoders,
    changes.frozen_host,
)
_SAVINGS = (
    changes.autocast,
    changes.checkpointing,
    changes.cache,
    changes.small_optimizer,
    changes.lora,
    changes.frozen_encoders,
)


@dataclass(frozen=True)
class Trial:
    """A recipe with some overrides.

    Attributes:
        change: what it changes, in words
    """

    change: str
    overrides: list[str]
    memory: Memory

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        content = {"change": self.change, "overrides": self.overrides}
        return content | {"memory": self.memory.to_json()}


@dataclass(frozen=True)
class Choices:
    """The recipe as it is, and each change of it alone.

    Attributes:
        left_out: changes that this recipe does not allow, and why
    """

    trials: list[Trial]
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        trials = [trial.to_json() for trial in self.trials]
        return {"choices": trials, "left_out": self.left_out}


@dataclass(frozen=True)
class Fit:
    """What was tried, each with all that is above it; the last one fits where any does.

    Attributes:
        left_out: changes that this recipe does not allow, and why
    """

    limit: int
    trials: list[Trial]
    left_out: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool | None:
        """Whether the last trial does; None: its activations could not be counted."""
        memory = self.trials[-1].memory
        if memory.total > self.limit:
            return False
        return True if memory.counted else None

    @property
    def says_no(self) -> str:
        """The message where nothing is known to fit: the least that was reached, and how."""
        limit = shown_bytes(self.limit)
        least = min(self.trials, key=lambda trial: trial.memory.total)
        needs = shown_bytes(least.memory.total)
        how = " ".join(map(shlex.quote, least.overrides)) or "no change"
        if self.fits is None:
            why = "; ".join(least.memory.notes)
            return (
                f"--fit: whether training fits {limit} is not known: it needs at least {needs}, "
                f"with: {how}; {why}"
            )
        return (
            f"--fit: nothing that is known here fits {limit}; the least that training needs is "
            f"{needs}, with: {how}"
        )

    @property
    def overrides(self) -> list[str]:
        """To be given to the recipe."""
        return self.trials[-1].overrides

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        content: dict[str, Any] = {"limit": self.limit, "fits": self.fits}
        content |= {"overrides": self.overrides, "left_out": self.left_out}
        return content | {"trials": [trial.to_json() for trial in self.trials]}


def choices(load: Load, where: Hardware) -> Choices:
    """The recipe, and the recipe with each saving alone added or taken back."""
    now = _state(load, [], where)
    as_it_is = Trial("as it is", [], memory_of(now.recipe, gpu=where.gpu, model=now.model))
    found = Choices([as_it_is])
    proposed = [change for saving in _SAVINGS for change in saving(now)]
    for change in [*proposed, *changes.reversals(now)]:
        trial = _tried(load, change, [], where)
        if isinstance(trial, Trial):
            found.trials.append(trial)
        else:
            found.left_out.append(trial)
    return found


def fit(load: Load, limit: int, where: Hardware) -> Fit:
    """Add one change after the other until training needs at most `limit` bytes.

    In this order, by what they do to the result: 16-bit autocast; smaller batches, as many more of
    them in an update; activations computed twice; memory of frozen encoders from disk; an 8-bit
    optimizer; LoRA in place of training an encoder's own weights; encoders frozen, their memory
    from disk; the host frozen. Batches are made smaller again after each change, where that is
    enough to fit, so that no further change is made.

    Args:
        load: overrides -> the recipe
    """
    found = Fit(limit, [_trial(load, "as it is", [], where)])
    taken: list[str] = []
    for propose in _ORDER:
        if found.trials[-1].memory.total <= limit:
            break
        proposed = () if propose is None else propose(_state(load, taken, where))
        for change in proposed:
            trial = _tried(load, change, taken, where)
            if isinstance(trial, Trial):
                taken = trial.overrides
                found.trials.append(trial)
            else:
                found.left_out.append(trial)
        if found.trials[-1].memory.total > limit and propose is not changes.autocast:
            found.trials.extend(_smaller_batches(load, taken, limit, where))
    return found


def _state(load: Load, overrides: list[str], where: Hardware) -> State:
    recipe = load(overrides)
    return State(recipe, planned_model(recipe), where.half)


def _trial(load: Load, words: str, overrides: list[str], where: Hardware) -> Trial:
    return Trial(words, overrides, memory_of(load(overrides), gpu=where.gpu))


def _tried(load: Load, change: Change, taken: list[str], where: Hardware) -> Trial | str:
    """A recipe with one more change; or why it does not allow that."""
    try:
        return _trial(load, change.words, _with(taken, change.overrides), where)
    except FusionError as error:
        return f"{change.words}: left out: {shorten(str(error), 200)}"


def _with(taken: list[str], more: list[str]) -> list[str]:
    """Overrides with further ones; a later value of a key replaces an earlier one."""
    keys = {override.partition("=")[0] for override in more}
    return [one for one in taken if one.partition("=")[0] not in keys] + more


def _smaller_batches(load: Load, taken: list[str], limit: int, where: Hardware) -> list[Trial]:
    """The largest batches that fit, and as many more of them; none where the smallest do not."""
    now = _state(load, taken, where)
    tokens, times = now.recipe.data.batch_tokens, accumulation(now.recipe)
    least = max(_SMALLEST, longest_pair(now.recipe, now.model))
    cuts = [2**power for power in range(1, 12) if tokens // 2**power >= least]
    fitting: list[Trial] = []
    for cut in reversed(cuts):
        size, count = tokens // cut, times * cut
        more = [f"data.batch_tokens={size}", f"train.gradient_accumulation_steps={count}"]
        words = f"batches of {size:,} tokens, {count} an update"
        trial = _trial(load, words, _with(taken, more), where)
        if trial.memory.total > limit:
            break
        fitting = [trial]
    return fitting
