"""What happens around the updates of a run: the watch, the clock, freezing, stopping early."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from fusion.model import FusedModel
from fusion.policies import part_of
from fusion.timetable import Timetable, set_trainable

Say = Callable[[str], None]


class Stopwatch(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Seconds of training, evaluation included, over all interruptions."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the watch."""
        self._since = time.monotonic()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Stops the watch."""
        self.state()
        self._since = None

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        if self._since is not None:
            now = time.monotonic()
            self.seconds, self._since = self.seconds + now - self._since, now
        return {"args": {"seconds": self.seconds}, "attributes": {}}


class UpdateClock(TrainerCallback):  # type: ignore[misc]
    """Tells the model which update it is in, so that drop-net draws the same after a resume."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first micro-batch of an update."""
        kwargs["model"].clock.next_update(state.global_step)


class StopInLastStage(EarlyStoppingCallback):  # type: ignore[misc]
    """transformers' early stopping, from the first update of the last stage on."""

    def __init__(self, patience: int = 1, threshold: float = 0.0, begin: int = 0) -> None:
        super().__init__(patience, threshold)
        self.begin = begin

    def on_evaluate(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        """Counts evaluations without a better one."""
        if state.global_step > self.begin:
            super().on_evaluate(args, state, *rest, **kwargs)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        own = {
            "patience": self.early_stopping_patience,
            "threshold": self.early_stopping_threshold,
            "begin": self.begin,
        }
        return {"args": own, "attributes": super().state()["attributes"]}


class Freezer(TrainerCallback):  # type: ignore[misc]
    """Freezes, unfreezes and paces tensors as the timetable has it, before the update it is for."""

    def __init__(self, table: Timetable, say: Say) -> None:
        self.table, self.say = table, say
        self._since: int | None = None  # the last change that was made

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first micro-batch of an update."""
        since = max(edge for edge in self.table.changes if edge <= state.global_step)
        if since != self._since:
            self._since = since
            self._apply(kwargs["model"], state.global_step)
        _catch_up(kwargs["lr_scheduler"], state.global_step)

    def _apply(self, model: FusedModel, update: int) -> None:
        trained = self.table.trained(update)
        set_trainable(model, self.table.turns, trained)
        parts = ", ".join(sorted({part_of(name) for name in trained})) or "nothing"
        label = [label for label, begin in self.table.spans if begin <= update][-1]
        count = sum(model.get_parameter(name).numel() for name in trained)
        self.say(
            f"from update {update} on ({label}): trained: {parts}; "
            f"{len(trained)} tensors, {count:,} parameters"
        )

    def release(self, model: FusedModel) -> None:
        """Make everything trainable that is trained at some time, as it was composed."""
        set_trainable(model, self.table.turns, self.table.turns)
        self._since = None


def _catch_up(scheduler: LambdaLR, update: int) -> None:
    """Set the rates of an update.

    An update whose gradients overflow in fp16 counts for the Trainer, and mostly not for its
    scheduler.
    """
    if scheduler.last_epoch == update:
        return
    scheduler.last_epoch = update
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    scheduler._last_lr = [base * factor(update) for base, factor in pairs]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate
