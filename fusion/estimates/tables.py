"""Estimates as tables for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.table import Table

from fusion.estimates.fit import Fit, Trial
from fusion.estimates.memory import CONTEXT, Memory
from fusion.estimates.scale import Scale
from fusion.memory_cache.listing import shown_bytes

_KEYS = ("weights", "gradients", "moments")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 1:
        return f"{seconds * 1000:,.1f} ms"
    for unit, length in (("s", 120), ("min", 120), ("h", 72)):
        if seconds < length:
            return f"{seconds:,.1f} {unit}"
        seconds /= 60 if unit != "h" else 24
    return f"{seconds:,.1f} days"


def memory_table(memory: Memory) -> Table:
    """A column per part, and all of them."""
    table = Table("memory", *memory.parts, "in all")
    for key in _KEYS:
        values = [getattr(part, key) for part in memory.parts.values()]
        table.add_row(key, *map(shown_bytes, values), shown_bytes(sum(values)))
    blank = [""] * len(memory.parts)
    activations, total = _activations_and_total(memory)
    table.add_row("activations", *blank, activations)
    table.add_row("training", *blank, total)
    return table


def _activations_and_total(memory: Memory) -> tuple[str, str]:
    total = shown_bytes(memory.total)
    if not memory.counted:
        return "not counted", f"at least {total}"
    return shown_bytes(memory.activations), total


def memory_notes(memory: Memory) -> Iterator[str]:
    """What the figures are of."""
    batch = memory.batch
    yield (
        f"activations: of {batch.sentences} pairs of the longest sentences ({batch.source} tokens)"
        + (
            f"; training: with 5% for fragments and {shown_bytes(round(CONTEXT))} for CUDA"
            if memory.gpu
            else ""
        )
    )
    yield from notes(memory.notes)


def notes(said: list[str]) -> Iterator[str]:
    """A line each."""
    return (f"note: {note}" for note in said)


def trials_table(title: str, trials: list[Trial]) -> Table:
    """A row per trial."""
    table = Table(title, "weights", "gradients", "moments", "activations", "training")
    for trial in trials:
        memory = trial.memory
        sums = (sum(getattr(part, key) for part in memory.parts.values()) for key in _KEYS)
        table.add_row(trial.change, *map(shown_bytes, sums), *_activations_and_total(memory))
    return table


def fit_lines(fit: Fit) -> Iterator[str]:
    """What was left out, and the overrides to be pasted."""
    yield from notes(fit.left_out)
    if fit.fits and not fit.overrides:
        yield f"fits {shown_bytes(fit.limit)} as it is"
    elif fit.fits:
        yield f"fits {shown_bytes(fit.limit)} with: {' '.join(map(shlex.quote, fit.overrides))}"


def scale_tables(scale: Scale) -> Iterator[Table]:
    """Caches, steps, and the run as a whole."""
    if scale.caches:
        formats = list(next(iter(scale.caches.values())).bytes)
        table = Table("memory cache", "tokens", *formats, "encoding")
        for name, cache in scale.caches.items():
            sizes = map(shown_bytes, cache.bytes.values())
            table.add_row(name, f"{cache.tokens:,}", *sizes, duration(cache.seconds))
        yield table
    base = next(iter(scale.steps.values())).seconds
    table = Table("a batch", "forward", "backward", "time", "against host")
    for way, step in scale.steps.items():
        backward = step.flops.get("backward", 0)
        shown = [f"{n / 1e9:,.1f} GFLOP" for n in (sum(step.flops.values()) - backward, backward)]
        mark = " *" if way == scale.recipe_step else ""
        table.add_row(way + mark, *shown, duration(step.seconds), f"{step.seconds / base:.2f}x")
    yield table
    table = Table("the run", "")
    table.add_row("batches a pass", f"{scale.batches_per_pass:,}")
    table.add_row("updates, at most", f"{scale.updates:,}")
    if scale.encode_seconds:
        table.add_row("encoding, once", duration(scale.encode_seconds))
    table.add_row("training", duration(scale.training_seconds))
    for name, words in (
        ("model", "saved model"),
        ("full", "saved in full"),
        ("training", "training checkpoint"),
    ):
        table.add_row(words, shown_bytes(scale.checkpoints[name]))
    yield table


def scale_notes(scale: Scale) -> Iterator[str]:
    """What the figures are of."""
    text, tokens = scale.corpus, scale.lengths
    encoders = "".join(f", {name} {count:.1f}" for name, count in tokens.encoders.items())
    distinct = "" if text.distinct is None else f", {text.distinct:.1%} of the sources distinct"
    yield (
        f"{text.name}: {text.pairs:,} pairs{distinct}; tokens: "
        f"source {tokens.source:.1f}, target {tokens.target:.1f}{encoders}"
    )
    yield f"hardware: {scale.hardware.name}; * is the recipe; dev decoding is not counted"
    yield from notes(scale.notes)
