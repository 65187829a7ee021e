"""What does a training step of a fused model cost, against its host's?

A step is a batch from its rows, forward, backward, clipping and AdamW, in bf16 autocast. All sides
take the same pairs in the same batches, in turn. `gated` reads the memory at every site in every
step, `gated decoder` at those of the decoder alone. `bert-fused` as published leaves out the host's
or the memory's branch of a site in half of the steps each; `neutral` leaves out the memory's branch
in half of them. "Straightforward" is what a user writes today: `load_state_dict(strict=False)`, the
encoder in the training loop, an attention of its own in every layer, nothing kept. FLOPs are those
of the matrix products of a step. Peak memory is what a process of its own grew by, from the imports
on.

    python -m benchmarks.train_speed --scale quick
    python -m benchmarks.train_speed --scale quick --shape base
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import RESULTS, Spread, peak_mib, run_side, table
from benchmarks.profiles import milliseconds, profile_table
from benchmarks.records import Origin, origin, record_name, told, write_record
from benchmarks.sides import (
    DEVICE,
    GATED,
    NEUTRAL,
    PUBLISHED,
    SHAPES,
    SITES,
    Bench,
    Tokens,
    against,
    batches_of,
    in_turn,
    some_batches,
    tokenised,
)
from benchmarks.straightforward import Straightforward
from fusion.checkpoints.directory import locate
from fusion.denormals import flushed_denormals
from fusion.memory_cache.formats import FORMATS
from fusion.model import FusedModel

PROGRAM = "train_speed"
MEMORY_STEPS = 3
MEMORY_SIDES = ("host", "gated, cached bf16", "straightforward", "gated, on the fly")
PROFILED = (
    "host",
    "straightforward",
    *(
        f"{method}, {memory}"
        for method in ("gated", "bert-fused")
        for memory in ("on the fly", "cached bf16")
    ),
)
FUSED = {
    "gated": GATED,
    "gated decoder": GATED | {"sites": SITES[1:]},
    "bert-fused": PUBLISHED,
    "bert-fused neutral": NEUTRAL,
}
DRAWN = 8  # steps over which what drop-net leaves out is averaged
Logits = Callable[[dict[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Scale:
    """How much.

    Attributes:
        steps: of a side in a round
        pairs: of the text, at most
        all_formats: of the memory cache, or bf16 alone
        memory_sides: whose memory is measured
    """

    steps: int
    repetitions: int
    pairs: int = 30_000
    all_formats: bool = True
    memory_sides: tuple[str, ...] = MEMORY_SIDES


SCALES = {
    "small": {
        "quick": Scale(2, 6, memory_sides=MEMORY_SIDES[:3]),
        "full": Scale(10, 9),
    },
    "base": {
        "quick": Scale(1, 5, all_formats=False),
        "full": Scale(3, 7, all_formats=False),
    },
    "tiny": {"tiny": Scale(1, 5, pairs=60, memory_sides=MEMORY_SIDES[:2])},
}


class Side:
    """A model in training, and the rows that it is given."""

    def __init__(self, model: nn.Module, tokens: Tokens, logits: Logits, shift: Any) -> None:
        self.model, self.tokens, self.logits, self.shift = model, tokens, logits, shift
        trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
        self.parameters = sum(tensor.numel() for tensor in trained)
        self.model.to(DEVICE).train()
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self, indices: list[int]) -> None:
        """One update."""
        batch = self.tokens.collate(self.tokens.rows.__getitems__(indices))
        batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits = self.logits(batch, self.shift(labels))
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, label_smoothing=0.1
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, batches: list[list[int]]) -> float:
        """Seconds of a step, over some batches."""
        began = time.perf_counter()
        for indices in batches:
            self.step(indices)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / len(batches)

    def flops(self, batches: list[list[int]]) -> float:
        """Of the matrix products of a step, over some batches."""
        with FlopCounterMode(display=False) as counter:
            for indices in batches:
                self.step(indices)
        return counter.get_total_flops() / len(batches)


def fused_side(model: FusedModel, tokens: Tokens) -> Side:
    """Of a FusedModel, with glue or without; every step draws what is left out anew."""

    def logits(batch: dict[str, Tensor], shifted: Tensor) -> Tensor:
        model.clock.next_update(model.clock.update + 1)
        found: Tensor = model(**batch, decoder_input_ids=shifted, use_cache=False).logits
        return found

    return Side(model, tokens, logits, model.prepare_decoder_input_ids_from_labels)


def names(scale: Scale) -> list[str]:
    """Of the sides; the host is first."""
    formats = list(FORMATS) if scale.all_formats else ["bf16"]
    return [
        "host",
        *(f"gated, cached {name}" for name in formats),
        "gated, on the fly",
        "gated decoder, cached bf16",
        "gated decoder, on the fly",
        "bert-fused, cached bf16",
        "bert-fused, on the fly",
        "bert-fused neutral, cached bf16",
        "deeper host",
        "straightforward",
    ]


def make_side(name: str, bench: Bench, rows: Dataset) -> Side:
    """One side by its name."""
    if name in ("host", "deeper host"):
        recipe, composition = bench.host(bench.shape.deeper if name != "host" else None)
        bare = rows.remove_columns([c for c in rows.column_names if c.startswith("bert_")])
        return fused_side(composition.model, Tokens.of(recipe, composition, bare))
    if name == "straightforward":
        recipe, composition = bench.fused(GATED)
        model = Straightforward(bench.host_directory, locate(bench.encoder))
        shift = model.host.prepare_decoder_input_ids_from_labels
        return Side(model, Tokens(rows, composition.processor.pad, {}), model, shift)
    method, _, memory = name.partition(", ")
    cache = memory.removeprefix("cached ") if memory != "on the fly" else None
    recipe, composition = bench.fused(FUSED[method], cache)
    return fused_side(composition.model, Tokens.of(recipe, composition, rows))


def memory_of(name: str, folder: Path, shape: str, pairs: int) -> dict[str, float]:
    """MiB that this process grows by in training one side, imports left out."""
    rows = Dataset.load_from_disk(str(folder / "rows"))
    bench = Bench(folder, SHAPES[shape], pairs)
    before = peak_mib()
    side = make_side(name, bench, rows)
    batches = sorted(batches_of(bench, rows), key=len)
    for indices in batches[-MEMORY_STEPS:]:
        side.step(indices)
    if DEVICE.type == "cuda":
        return {"mib": torch.cuda.max_memory_allocated() / 2**20}
    return {"mib": peak_mib() - before}


@flushed_denormals()
def measure(shape: str, scale: Scale, folder: Path) -> dict[str, Any]:
    """Every side in turn, then the memory of some, each in a process of its own."""
    bench = Bench(folder, SHAPES[shape], scale.pairs)
    whole = tokenised(bench, bench.fused(GATED)[1])
    rows, batches, padding = some_batches(bench, whole, scale.steps * (scale.repetitions + 1))
    rows.save_to_disk(str(folder / "rows"))
    sides = {name: make_side(name, bench, rows) for name in names(scale)}

    def runner(side: Side) -> Callable[[int], float]:
        def one_round(number: int) -> float:
            chosen = range(number * scale.steps, (number + 1) * scale.steps)
            return side.timed([batches[place % len(batches)] for place in chosen])

        return one_round

    seconds = in_turn({name: runner(side) for name, side in sides.items()}, scale.repetitions)
    flops = {
        name: side.flops(batches[:1] * (DRAWN if name.startswith("bert-fused") else 1))
        for name, side in sides.items()
    }
    parameters = {name: side.parameters for name, side in sides.items()}
    chosen = {name: side for name, side in sides.items() if name in PROFILED}
    work = {name: partial(side.step, batches[0]) for name, side in chosen.items()}
    profiles = milliseconds(work, DRAWN // 2)
    del sides, chosen, work
    where = ["--folder", str(folder), "--shape", shape, "--pairs", str(scale.pairs)]
    mib = {
        name: run_side(f"benchmarks.{PROGRAM}", "--side", name, *where)["mib"]
        for name in scale.memory_sides
    }
    return {
        "text": f"{bench.corpus}, {len(whole):,} pairs, {len(batches)} batches of them",
        "batch_tokens": bench.shape.batch_tokens,
        "padding": padding,
        "seconds": seconds,
        "flops": flops,
        "parameters": parameters,
        "mib": mib,
        "profiles": profiles,
    }


def profile_section(shape: str, content: dict[str, Any]) -> tuple[str, str]:
    """Where the time goes, and what it says."""
    says = f"Shape {shape}: milliseconds of a step by kind of operation, under torch's profiler."
    return says, profile_table(content["profiles"])


def section(shape: str, content: dict[str, Any]) -> tuple[str, str]:
    """The table of a shape, and what it says."""
    ratios = against(content["seconds"], "host")
    lines = [["side", "steps per second", "time of host", "FLOPs of host", "trained", "peak MiB"]]
    for name, seconds in content["seconds"].items():
        speed = Spread.of([1 / one for one in seconds])
        flops = content["flops"][name] / content["flops"]["host"]
        million = f"{content['parameters'][name] / 1e6:.2f}M"
        mib = f"{content['mib'][name]:.0f}" if name in content["mib"] else ""
        lines.append([name, str(speed), f"{ratios[name]}", f"{flops:.2f}", million, mib])
    count = len(content["seconds"]["host"])
    says = (
        f"Shape {shape}; {content['text']}; batches of {content['batch_tokens']} tokens with "
        f"{content['padding']:.1%} padding; medians of {count} interleaved rounds with smallest "
        "and largest; against the host in the same round."
    )
    return says, table(lines)


def sections_of(results: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Origin]]:
    """Of every shape, and the run that each is of: a shape may have been measured earlier."""
    makers = (section, profile_section)
    pairs = [(name, make) for name in SHAPES if name in results for make in makers]
    origins = [results[name].get("origin", {}) for name, _ in pairs]
    return [make(name, results[name]) for name, make in pairs], origins


def main() -> None:
    """Measure one shape, keep what is known of the others, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=("tiny", "quick", "full"), default="quick")
    parser.add_argument("--shape", choices=list(SHAPES), help="default: small")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = arguments.shape or ("tiny" if arguments.scale == "tiny" else "small")
    if arguments.side:
        print(json.dumps(memory_of(arguments.side, arguments.folder, shape, arguments.pairs)))
        return
    if arguments.scale not in SCALES[shape]:
        parser.error(f"--shape {shape} has the scales {', '.join(SCALES[shape])}")
    mine = {"origin": origin(PROGRAM)}
    with tempfile.TemporaryDirectory(prefix="train_speed_", ignore_cleanup_errors=True) as folder:
        found = mine | measure(shape, SCALES[shape][arguments.scale], Path(folder))
    path = arguments.results / f"{record_name(PROGRAM, arguments.scale)}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}
    results = known | {shape: found}
    sections, origins = sections_of(results)
    for (says, text), of in zip(sections, origins, strict=True):
        print(f"{says}\n{told(of)}\n\n{text}\n")
    where = {"scale": arguments.scale, "folder": arguments.results}
    print(write_record(PROGRAM, results, sections, origins=origins, **where))


if __name__ == "__main__":
    main()
