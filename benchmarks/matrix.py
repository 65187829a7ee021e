"""Hosts x encoders x glue on tiny real models: what works together, and why what does not.

A cell composes a model from saved parts, takes a training step, generates with beams, saves, loads
and verifies. Which cells are run, and how many pairs of parts they have, is counted and printed.
lora and bottleneck read no encoder: their cells have none. All pairs of every host and every
encoder would be 2,520 cells; no scale runs them. The results are merged into the JSON, so that it
can run in pieces.

    python -m benchmarks.matrix --scale tiny    # a covering array: every pair of a few hosts, a few
                                                #   encoders and all methods
    python -m benchmarks.matrix --scale quick   # every host with every method, the encoders in turn
    python -m benchmarks.matrix --scale full    # every host with every method and BERT, every
                                                #   encoder with bert-fused and gated on Marian, T5
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import sys
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedTokenizerBase

from benchmarks.harness import RESULTS, ROOT, commit, table
from benchmarks.jobs import processes
from benchmarks.records import Section, record_name, write_record
from fusion.errors import FusionError
from fusion.model import FusedModel
from fusion.registry import GLUE, HOSTS
from fusion.saved import load_model, save_model
from fusion.testing.bench import Bench, EncoderChoice, HostChoice, kept, logits_of, loss_of
from fusion.testing.hosts import TINY_HOSTS
from fusion.verify import verify_model

sys.path.insert(0, str(ROOT / "tests" / "encoders"))
from tiny_encoders import ENCODERS, tokenizer_of

PROGRAM = "matrix"
PAGE = Path(__file__).parent / "matrix.md"
WORKS = "works"
NONE = "none"  # in the place of an encoder
# layers like BART's and T5's; two models in one; a decoder alone: it has no encoder to distill into
SOME_HOSTS = ("marian", "t5", "bert2gpt2", "llama")
REFUSED = {("llama", "distill"), ("llama", "replace-encoder")}
SOME_ENCODERS = ("bert", "modernbert", "t5", "qwen3")  # t5: another model's encoder; qwen3: decoder
TWO = ("marian", "t5")  # hosts with which full scale runs every encoder
PAIRS = ("host and method", "host and encoder", "encoder and method")
LEARNING_RATE = 1e-2  # Adam: every element that has a gradient moves by about this much
SMALLEST = 1e-6  # a tensor's largest gradient below this is what rounding leaves of none
SAVED_EVERY = 20.0  # seconds
Found = dict[str, dict[str, str]]  # a cell's key -> "result" and "commit"


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

    @property
    def pairs(self) -> list[tuple[str, str, str]]:
        """What meets in it: a kind of `PAIRS` with two names."""
        found = [(PAIRS[0], self.host, self.method)]
        if self.encoder != NONE:
            found += [(PAIRS[1], self.host, self.encoder), (PAIRS[2], self.encoder, self.method)]
        return found


def hosts() -> list[str]:
    """Every family, with two rows where its hosts differ."""
    rows = {family for family, _ in TINY_HOSTS.values()}
    return [*TINY_HOSTS, *(n for n in HOSTS.names() if n not in rows | {"fusion_transformer"})]


def in_turn(hosts: Sequence[str], encoders: Sequence[str]) -> list[Cell]:
    """Every host with every method; the encoder is the one that makes most pairs that are new."""
    cells: list[Cell] = []
    have: Counter[tuple[str, str]] = Counter()
    for host, method in itertools.product(hosts, GLUE.names()):
        encoder = NONE
        if GLUE.get(method).reads_memory:

            def worth(one: str, host: str = host, method: str = method) -> tuple[int, int]:
                new = (not have[host, one]) + (not have[one, method])
                return new, -have[one, NONE]

            encoder = max(encoders, key=worth)
            have.update([(host, encoder), (encoder, method), (encoder, NONE)])
        cells.append(Cell(host, encoder, method))
    return cells


def covering(hosts: Sequence[str], encoders: Sequence[str]) -> list[Cell]:
    """Every pair of them and of all methods but those refused, greedily: most new pairs first."""
    allowed = [pair for pair in itertools.product(hosts, GLUE.names()) if pair not in REFUSED]
    every = [
        Cell(host, encoder, method)
        for host, method in allowed
        for encoder in (encoders if GLUE.get(method).reads_memory else [NONE])
    ]
    left = {pair for cell in every for pair in cell.pairs}
    cells = []
    while left:
        cells.append(max(every, key=lambda cell: len(left.intersection(cell.pairs))))
        left.difference_update(cells[-1].pairs)
    return cells


def full() -> list[Cell]:
    """Every host with every method; every encoder with two methods in two hosts."""
    cells = [
        Cell(host, "bert" if GLUE.get(method).reads_memory else NONE, method)
        for host, method in itertools.product(hosts(), GLUE.names())
    ]
    pairs = itertools.product(ENCODERS, ("bert-fused", "gated"), TWO)
    return list(dict.fromkeys([*cells, *(Cell(host, one, method) for one, method, host in pairs)]))


def _encoder(kind: str, method: str) -> EncoderChoice:
    config = AutoConfig.for_model(kind, **ENCODERS[kind][0])

    def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
        return tokenizer_of(kind, folder)

    layers = GLUE.get(method).reads_layers
    return EncoderChoice(config, tokenizer=tokenizer, settings={"layer": "all"} if layers else {})


def run(cell: Cell) -> str:
    """`works`, or the reason."""
    method = GLUE.get(cell.method)
    glue: dict[str, Any] = {"method": cell.method}
    encoders = {}
    if method.reads_memory:
        glue["encoder"] = "enc"
        encoders["enc"] = _encoder(cell.encoder, cell.method)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), HostChoice(cell.host), encoders, [glue])
        try:
            _try(bench)
        except FusionError as error:
            return textwrap.shorten(str(error).replace(f"{bench.folder / 'check.yaml'}: ", ""), 200)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return WORKS


def _train(model: FusedModel, bench: Bench) -> None:
    """One update: what has a gradient moves, and nothing else."""
    model.train()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    loss = loss_of(model, bench.batch)
    if not bool(torch.isfinite(loss)):
        raise FusionError("the loss is not finite")
    loss.backward()
    optimizer.step()
    reached = {
        name
        for name, tensor in model.named_parameters()
        if tensor.grad is not None and float(tensor.grad.abs().max()) > SMALLEST
    }
    moved = {n for n, tensor in model.named_parameters() if not torch.equal(tensor, before[n])}
    if not any("glue." in name for name in moved):
        raise FusionError("a training step does not move the glue")
    if still := sorted(reached - moved):
        raise FusionError(f"a training step does not move {still[0]}")
    if frozen := sorted(n for n in moved if not model.get_parameter(n).requires_grad):
        raise FusionError(f"a training step moves {frozen[0]}, which is frozen")


def _try(bench: Bench) -> None:
    model = bench.start.model
    with kept(model):
        _train(model, bench)
    model = bench.opened.model
    model.generate(**bench.source, num_beams=3, max_new_tokens=4)
    expected = logits_of(model, bench.batch)
    place = bench.folder / "saved"
    save_model(model, place, bench.opened.processor)
    if not torch.equal(logits_of(load_model(place), bench.batch), expected):
        raise FusionError("saved and loaded, its logits differ")
    if problems := verify_model(place):
        raise FusionError(problems[0])


def counted(cells: Sequence[Cell], found: Found) -> str:
    """How many pairs of parts are in the cells, in those that work, and in the whole product."""
    reading = [name for name in GLUE.names() if GLUE.get(name).reads_memory]
    sizes = (len(hosts()) * len(GLUE.names()), len(hosts()) * len(ENCODERS))
    there = dict(zip(PAIRS, (*sizes, len(ENCODERS) * len(reading)), strict=True))
    run = {pair for cell in cells for pair in cell.pairs}
    work = {p for c in cells if found[c.key]["result"] == WORKS for p in c.pairs}
    lines = [["pairs", "run", "work", "of all"]]
    for kind, every in there.items():
        counts = [sum(pair[0] == kind for pair in pairs) for pairs in (run, work)]
        lines.append([kind, *(f"{count:,}" for count in (*counts, every))])
    return table(lines)


def summary(cells: Sequence[Cell], found: Found) -> str:
    """What the cells are made of."""
    works = sum(found[cell.key]["result"] == WORKS for cell in cells)
    parts = [
        f"{len({getattr(cell, part) for cell in cells} - {NONE})} of {every} {part}s"
        for part, every in (
            ("host", len(hosts())),
            ("encoder", len(ENCODERS)),
            ("method", len(GLUE.names())),
        )
    ]
    commits = sorted({found[cell.key]["commit"] for cell in cells})
    at = f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
    return f"{len(cells)} cells run, {works} work; {', '.join(parts)}; {at}."


def broken(cells: Sequence[Cell], found: Found) -> str:
    """The cells that do not work, and why."""
    lines = [["host", "encoder", "method", "why"]]
    for cell in cells:
        result = found[cell.key]["result"]
        if result != WORKS:
            lines.append([cell.host, cell.encoder, cell.method, result.replace("|", "/")])
    return table(lines)


def page(cells: Sequence[Cell], found: Found) -> str:
    """The tables as Markdown."""
    lines = [
        "# What works together",
        "",
        "A cell composes a tiny model of saved parts, takes a training step (an update after which",
        "what has a gradient has moved and what is frozen has not), generates with 3 beams, saves,",
        "loads (bitwise equal logits) and verifies. `python -m benchmarks.matrix --scale full`;",
        f"torch {torch.__version__}, transformers {transformers.__version__}.",
        "",
        summary(cells, found),
        "",
        counted(cells, found),
        "",
        "An encoder meets a method only where the method reads one: lora and bottleneck do not.",
        "",
    ]
    notes: dict[str, int] = {}
    methods = GLUE.names()
    lines += _table(
        "Hosts with each method (BERT as encoder, where the method reads one)",
        hosts(),
        methods,
        notes,
        found,
    )
    columns = [f"{method} in {host}" for method in ("bert-fused", "gated") for host in TWO]
    lines += _table("Encoders", list(ENCODERS), columns, notes, found, by_encoder=True)
    lines += ["## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n".join(lines) + "\n"


def _table(
    title: str,
    rows: list[str],
    columns: list[str],
    notes: dict[str, int],
    found: Found,
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
                cell = Cell(row, "bert" if GLUE.get(column).reads_memory else NONE, column)
            marks.append(_mark(found.get(cell.key), notes))
        lines.append(f"| {row} | {' | '.join(marks)} |")
    return [*lines, ""]


def _mark(one: dict[str, str] | None, notes: dict[str, int]) -> str:
    if one is None:
        return ""
    result = one["result"]
    if result == WORKS:
        return "✓"
    return f"[{notes.setdefault(result, len(notes) + 1)}]"


def chosen(scale: str) -> list[Cell]:
    """The cells of a scale."""
    if scale == "tiny":
        return covering(SOME_HOSTS, SOME_ENCODERS)
    return in_turn(hosts(), list(ENCODERS)) if scale == "quick" else full()


def quiet() -> None:
    """Set a worker up."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # models this small take five times as long on two
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()


def main() -> None:
    """Run cells that have not been run, print what does not work, write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=["tiny", "quick", "full"], default="quick")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--first", type=int, help="of the cells, these alone", metavar="N")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--again", action="store_true", help="run finished cells too")
    options = parser.parse_args()
    path = options.results / f"{record_name(PROGRAM, options.scale)}.json"
    cells = chosen(options.scale)[: options.first]
    found: Found = {}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["results"]["cells"]
    written = time.monotonic()
    left = [cell for cell in cells if cell.key not in found or options.again]
    with processes(min(options.workers, len(left) or 1), before=quiet) as pool:
        running = {pool.submit(run, cell): cell.key for cell in left}
        for done in as_completed(running):
            key, result = running[done], done.result()
            found[key] = {"result": result, "commit": commit()}
            if result != WORKS:
                print(f"{key}: {result}", flush=True)
            if time.monotonic() > written + SAVED_EVERY:
                write(cells, found, options)
                written = time.monotonic()
    sections = write(cells, found, options)
    print("\n\n".join(text for one in sections for text in one))
    print(path)
    if options.scale == "full":
        PAGE.write_text(page(cells, found), encoding="utf-8")


def write(cells: list[Cell], found: Found, options: argparse.Namespace) -> list[Section]:
    """Write the record of what has been run so far."""
    done = [cell for cell in cells if cell.key in found]
    sections = [(summary(done, found), counted(done, found))]
    if any(found[cell.key]["result"] != WORKS for cell in done):
        sections.append(("What does not work.", broken(done, found)))
    where = {"scale": options.scale, "folder": options.results}
    write_record(PROGRAM, {"cells": found}, sections, **where)
    return sections


if __name__ == "__main__":
    main()
