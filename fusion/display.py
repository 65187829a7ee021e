"""What commands show: plans, ledgers, runs and caches, as tables and lines."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fusion.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from fusion.composition import RecipePlan
    from fusion.ledger import Entry, Ledger
    from fusion.memory_cache.listing import Listing
    from fusion.outcome import RunResult

# Names, paths and text may hold brackets, which are no markup.
out = Console(soft_wrap=True, markup=False, highlight=False)


def show_plan(planned: RecipePlan) -> None:
    """A column per part, so that it fits a terminal."""
    table = Table("", *(part.name for part in planned.parts), title=planned.name)
    table.add_row("class", *(part.module_class for part in planned.parts))
    table.add_row("source", *(part.source for part in planned.parts))
    table.add_row("digest", *((part.digest or "-")[:12] for part in planned.parts))
    for count in ("loaded", "initialised", "tied", "computed", "ignored"):
        table.add_row(count, *(str(part.tensors.get(count, 0)) for part in planned.parts))
    for key in ("trainable", "frozen"):
        table.add_row(key, *(f"{getattr(part, key):,}" for part in planned.parts))
    out.print(table)
    for part in planned.parts:
        for name, reason in part.ignored.items():
            out.print(f"left out of {part.name}: {name}: {reason}")
    for note in planned.notes:
        out.print(f"note: {note}")
    out.print("digest: of names, shapes and dtypes")


def show_ledger(ledger: Ledger) -> None:
    """A line per part, origin and source."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in ledger:
        part = ".".join(entry.name.split(".")[: 2 if entry.name.startswith("encoders.") else 1])
        what = entry.source or entry.rule or ("its own part" if entry.tied_to else "-")
        groups.setdefault((part, str(entry.origin), what), []).append(entry)
    table = Table("part", "origin", "from", "tensors", "trainable", "frozen")
    for (part, origin, what), entries in groups.items():
        trainable, frozen = ledger.parameters(entries)
        table.add_row(part, origin, what, str(len(entries)), f"{trainable:,}", f"{frozen:,}")
    out.print(table)


def show_entry(entry: Entry) -> None:
    """What is known of one tensor, a line each."""
    for key, value in asdict(entry).items():
        if value not in (None, ()):
            out.print(f"{key}: {value}")


def show_run(recipe: Recipe, result: RunResult, host: RunResult | None) -> None:
    """Scores (beside the host's), ten samples, the ledger, and where everything is."""
    from fusion.saved import read_ledger

    compared = host is not None and host.tests.keys() >= result.tests.keys()
    heads = ["test set"] + [f"{who} {metric}" for who in ([host.name] if compared and host else [])
                            + [result.name] for metric in ("BLEU", "chrF")]  # fmt: skip
    table = Table(*heads)
    for test, scores in result.tests.items():
        sides = ([host.tests[test]] if compared and host is not None else []) + [scores]
        cells = [f"{side[metric]['score']:.2f}" for side in sides for metric in ("bleu", "chrf")]
        table.add_row(test, *cells)
    out.print(table)
    _show_samples(recipe, result, host if compared else None)
    show_ledger(read_ledger(result.model))
    out.print(
        f"{result.updates} updates, {result.seconds:.0f} s; model: {result.model}; "
        f"scores: {result.directory / 'run.json'}",
    )


def _show_samples(recipe: Recipe, result: RunResult, host: RunResult | None) -> None:
    from fusion.data import read_corpus

    shown = 0
    tests = list(recipe.data.tests)
    for number, test in enumerate(tests):
        corpus = read_corpus(recipe.data.tests[test], recipe.data, f"data.tests.{test}")
        share = (10 - shown) // (len(tests) - number)
        for index in range(min(share, len(corpus))):
            out.print(f"[{test}] {corpus[index]['source']}")
            out.print(f"  reference: {corpus[index]['target']}")
            if host is not None:
                own = host.translations(test)[index]
                out.print(f"  {host.name}: {own}")
            own = result.translations(test)[index]
            out.print(f"  {result.name}: {own}")
            shown += 1


def show_caches(found: list[Listing], root: Path) -> None:
    """A line per memory cache, least recently used first, and their sum."""
    from fusion.memory_cache.listing import shown_bytes

    table = Table("cache", "encoder", "layer", "format", "sentences", "size", "last used")
    for one in found:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        what = (str(one.key.get(key, "?")) for key in ("layer", "format"))
        encoder = str(one.about.get("source", "?"))
        size = shown_bytes(one.bytes)
        table.add_row(one.name[:12], encoder, *what, f"{one.sentences():,}", size, used)
    out.print(table)
    out.print(f"{root}: {shown_bytes(sum(one.bytes for one in found))}")
