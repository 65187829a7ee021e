"""Hosts x encoders x glue on tiny real models: what works together, and why what does not.

A cell composes a model from saved parts, takes a training step, generates with beams, saves, loads
and verifies. The results are merged into the JSON, so that it can run in pieces.

python -m benchmarks.matrix --scale quick      # pairwise: every part meets every other once
python -m benchmarks.matrix --scale full       # every host with every method, every encoder with
                                               # bert-fused and gated on Marian and T5
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedTokenizerBase

from benchmarks.harness import RESULTS, ROOT, hardware
from benchmarks.records import command
from fusion.errors import FusionError
from fusion.registry import GLUE, HOSTS
from fusion.saved import load_model, save_model
from fusion.testing.bench import Bench, EncoderChoice, HostChoice, kept, logits_of, loss_of
from fusion.testing.hosts import TINY_HOSTS
from fusion.verify import verify_model

sys.path.insert(0, str(ROOT / "tests" / "encoders"))
from tiny_encoders import ENCODERS, tokenizer_of

PAGE = Path(__file__).parent / "matrix.md"
WORKS = "works"


@dataclass(frozen=True)
class Cell:
    """One combination."""

    host: str
    encoder: str
    method: str

    @property
    def key(self) -> str:
        """In the JSON."""
        return f"{self.host} | {self.encoder} | {self.method}"


def hosts() -> list[str]:
    """Every family, with two rows where its hosts differ."""
    rows = {family for family, _ in TINY_HOSTS.values()}
    return [*TINY_HOSTS, *(n for n in HOSTS.names() if n not in rows | {"fusion_transformer"})]


def full() -> list[Cell]:
    """Every host with every method; every encoder with two methods in two hosts."""
    cells = [Cell(host, "bert", method) for host in hosts() for method in GLUE.names()]
    pairs = itertools.product(ENCODERS, ("bert-fused", "gated"), ("marian", "t5"))
    return list(dict.fromkeys([*cells, *(Cell(host, one, method) for one, method, host in pairs)]))


def pairwise() -> list[Cell]:
    """A covering array, greedily: each host with each method, each encoder with a few of both."""
    methods, encoders = GLUE.names(), list(ENCODERS)
    cells = []
    for number, encoder in enumerate(encoders):
        rows = hosts()
        cells.append(Cell(rows[number % len(rows)], encoder, methods[number % len(methods)]))
    return cells


def _encoder(kind: str, method: str) -> EncoderChoice:
    config = AutoConfig.for_model(kind, **ENCODERS[kind][0])

    def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
        return tokenizer_of(kind, folder)

    layers = GLUE.get(method).reads_layers
    return EncoderChoice(config, tokenizer=tokenizer, settings={"layer": "all"} if layers else {})


def run(cell: Cell) -> str:
    """`works`, or the reason."""
    method = GLUE.get(cell.method)
    family = HOSTS.get(TINY_HOSTS.get(cell.host, (cell.host,))[0])
    glue: dict[str, Any] = {"method": cell.method}
    glue["sites"] = list(method.causal_sites if family.causal else method.default_sites)
    encoders = {}
    if method.reads_memory:
        glue["encoder"] = "enc"
        encoders["enc"] = _encoder(cell.encoder, cell.method)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), HostChoice(cell.host), encoders, [glue])
        try:
            _try(bench)
        except FusionError as error:
            return textwrap.shorten(str(error), 200)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return WORKS


def _try(bench: Bench) -> None:
    model = bench.start.model
    with kept(model):
        model.train()
        loss = loss_of(model, bench.batch)
        loss.backward()
        if not bool(torch.isfinite(loss)):
            raise FusionError("the loss is not finite")
        if not any(p.grad is not None for n, p in model.named_parameters() if "glue." in n):
            raise FusionError("no gradient reaches the glue")
    model = bench.opened.model
    model.generate(**bench.source, num_beams=3, max_new_tokens=4)
    expected = logits_of(model, bench.batch)
    place = bench.folder / "saved"
    save_model(model, place, bench.opened.processor)
    if not torch.equal(logits_of(load_model(place), bench.batch), expected):
        raise FusionError("saved and loaded, its logits differ")
    if problems := verify_model(place):
        raise FusionError(problems[0])


def page(found: dict[str, str], about: dict[str, Any]) -> str:
    """The tables as Markdown."""
    works = sum(result == WORKS for result in found.values())
    lines = [
        "# What works together",
        "",
        f"{len(found)} cells run, {works} work. A cell composes a tiny model of saved parts,",
        "takes a training step, generates with 3 beams, saves, loads (bitwise equal logits) and",
        "verifies.",
        f"`python -m benchmarks.matrix --scale full`; torch {about['torch']}, transformers "
        f"{about['transformers']}, commit {about['commit']}.",
        "",
    ]
    notes: dict[str, int] = {}
    methods = GLUE.names()
    lines += _table("Hosts with each method (BERT as encoder)", hosts(), methods, notes, found)
    columns = [f"{method} in {host}" for method in ("bert-fused", "gated") for host in TWO]
    lines += _table("Encoders", list(ENCODERS), columns, notes, found, by_encoder=True)
    lines += ["## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n".join(lines) + "\n"


TWO = ("marian", "t5")


def _table(
    title: str,
    rows: list[str],
    columns: list[str],
    notes: dict[str, int],
    found: dict[str, str],
    by_encoder: bool = False,
) -> list[str]:
    lines = [f"## {title}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        marks = []
        for column in columns:
            if by_encoder:
                method, _, host = column.partition(" in ")
                cell = Cell(host, row, method)
            else:
                cell = Cell(row, "bert", column)
            marks.append(_mark(found.get(cell.key), notes))
        lines.append(f"| {row} | {' | '.join(marks)} |")
    return [*lines, ""]


def _mark(result: str | None, notes: dict[str, int]) -> str:
    if result is None:
        return ""
    if result == WORKS:
        return "✓"
    return f"[{notes.setdefault(result, len(notes) + 1)}]"


def _todo(scale: str) -> Iterator[Cell]:
    if scale == "tiny":
        yield from pairwise()[:3]
    else:
        yield from pairwise() if scale == "quick" else full()


def main() -> None:
    """Run cells that have not been run, print what does not work, write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=["tiny", "quick", "full"], default="quick")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="run finished cells too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"matrix-{options.scale}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else {}
    found: dict[str, str] = {} if options.again else known
    cells = list(_todo(options.scale))
    about = hardware()
    for cell in cells:
        if cell.key in found:
            continue
        found[cell.key] = run(cell)
        if found[cell.key] != WORKS:
            print(f"{cell.key}: {found[cell.key]}", flush=True)
        temporary = path.with_suffix(".tmp")
        record = {"command": command("matrix"), "hardware": about, "cells": found}
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
        temporary.rename(path)
    works = sum(found[cell.key] == WORKS for cell in cells)
    print(f"{len(cells)} cells, {works} work")
    if options.scale == "full":
        PAGE.write_text(page(found, about), encoding="utf-8")


if __name__ == "__main__":
    main()
