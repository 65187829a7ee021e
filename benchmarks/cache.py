"""What does the memory cache cost: bytes, seconds to write and to read, error, and its first pass?

Every format is filled with the same sentences and read back in the batches of training. "Coding" is
the format's own work on the writing side, the encoder left out; "reading" makes a batch's tensor
from the files. The error is against the encoder's fp32 states: root mean square over that of the
states, and the largest. The first pass is a whole pass of training with the encoding included,
against a pass in which the encoder runs in every step.

    python -m benchmarks.cache --scale quick
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from benchmarks.harness import RESULTS, Spread, table
from benchmarks.records import print_record
from benchmarks.sides import (
    DEVICE,
    GATED,
    SHAPES,
    Bench,
    Tokens,
    against,
    batches_of,
    in_turn,
    some_batches,
    tokenised,
)
from benchmarks.train_speed import fused_side
from fusion.memory_cache.formats import FORMATS
from fusion.memory_cache.reader import CachedBatches

PROGRAM = "cache"
ON_THE_FLY = "on the fly"


@dataclass(frozen=True)
class Scale:
    """How much.

    Attributes:
        pairs: of the text, whose batches are those of training
        kept: pairs of the formats' part
        batches: of the pass
    """

    shape: str
    pairs: int
    kept: int
    batches: int
    repetitions: int


SCALES = {
    "tiny": Scale("tiny", 60, 60, 4, 5),
    "quick": Scale("small", 30_000, 3000, 6, 5),
    "full": Scale("small", 30_000, 30_000, 60, 5),
}


@torch.inference_mode()
def states_of(bench: Bench, rows: Dataset, batches: list[list[int]]) -> Iterator[torch.Tensor]:
    """The encoder's own states of every batch, padding at zero."""
    composition = bench.fused(GATED)[1]
    part = composition.model.encoder_parts["bert"].to(DEVICE)
    for indices in batches:
        batch = composition.processor.pad(rows.select_columns(COLUMN).__getitems__(indices))
        ids, mask = (batch[f"bert_{kind}"].to(DEVICE) for kind in ("input_ids", "attention_mask"))
        yield (part(ids, mask).states * mask.unsqueeze(-1)).float().cpu()


COLUMN = ["bert_input_ids"]


def formats(bench: Bench, rows: Dataset, repetitions: int) -> dict[str, Any]:
    """Per format: bytes per token, error, and seconds of every repetition."""
    batches = list(batches_of(bench, rows))
    exact = list(states_of(bench, rows, batches))
    real = torch.cat([states[states.abs().sum(-1) > 0] for states in exact])
    found: dict[str, Any] = {}
    for name in FORMATS:
        recipe, composition = bench.fused(GATED, name)
        began = time.perf_counter()
        tokens = Tokens.of(recipe, composition, rows, bf16=False)
        filled = time.perf_counter() - began
        assert isinstance(tokens.collate, CachedBatches)
        reader = tokens.collate.readers["bert"]
        shape = {"tokens": int(reader.tokens.sum()), "bytes": reader.layout.token_bytes}
        read = [reader.gather(indices).float() for indices in batches]
        found[name] = shape | error(read, exact) | {"filled": filled, "coding": [], "reading": []}

        def reading(number: int, reader: Any = reader) -> float:
            return timed(lambda: [reader.gather(indices) for indices in batches])

        def coding(number: int, name: str = name) -> float:
            return timed(lambda: FORMATS[name].encode(real))

        found[name] |= {"runs": {"coding": coding, "reading": reading}}
    for kind in ("coding", "reading"):
        runs = {name: content["runs"][kind] for name, content in found.items()}
        for name, seconds in in_turn(runs, repetitions).items():
            found[name][kind] = [one / found[name]["tokens"] for one in seconds]
    for content in found.values():
        del content["runs"]
    return found


def error(read: list[torch.Tensor], exact: list[torch.Tensor]) -> dict[str, float]:
    """Root mean square against that of the states, and the largest error."""
    squares = [float((a - b).double().square().sum()) for a, b in zip(read, exact, strict=True)]
    whole = [float(states.double().square().sum()) for states in exact]
    largest = max(float((a - b).abs().max()) for a, b in zip(read, exact, strict=True))
    return {"relative": float(np.sqrt(sum(squares) / sum(whole))), "largest": largest}


def timed(work: Callable[[], Any]) -> float:
    """Seconds of some work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def first_pass(
    bench: Bench, rows: Dataset, batches: list[list[int]], repetitions: int
) -> dict[str, list[float]]:
    """Seconds of a pass, the encoding included, of each way in turn."""

    def one(cache: str | None) -> Callable[[int], float]:
        recipe, composition = bench.fused(GATED, cache)
        side = fused_side(composition.model, Tokens.of(recipe, composition, rows))

        def one_round(number: int) -> float:
            began = time.perf_counter()
            if cache is not None:
                shutil.rmtree(bench.folder / "memory")
                side.tokens = Tokens.of(recipe, composition, rows)
            return time.perf_counter() - began + len(batches) * side.timed(batches)

        return one_round

    ways = {ON_THE_FLY: one(None)}
    ways |= {f"cached {name}, encoding included": one(name) for name in ("bf16", "fp32")}
    return in_turn(ways, repetitions)


def measure(scale: Scale, folder: Path) -> dict[str, Any]:
    """Both parts."""
    bench = Bench(folder, SHAPES[scale.shape], scale.pairs)
    whole = tokenised(bench, bench.fused(GATED)[1])
    rows = whole.select(range(min(scale.kept, len(whole))))
    found = formats(bench, rows, scale.repetitions)
    some, batches, padding = some_batches(bench, whole, scale.batches)
    return {
        "text": bench.corpus,
        "pairs": [len(rows), len(some)],
        "padding": padding,
        "formats": found,
        "first_pass": first_pass(bench, some, batches, scale.repetitions),
    }


def sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The tables, and what they say."""
    pairs, some = content["pairs"]
    head = ["format", "bytes per token", "of fp16", "coding, tokens/s", "reading, tokens/s"]
    lines = [[*head, "relative error", "largest error"]]
    fp16 = content["formats"]["fp16"]["bytes"]
    for name, one in content["formats"].items():
        speeds = [Spread.of([1 / value for value in one[kind]]) for kind in ("coding", "reading")]
        size = [str(one["bytes"]), f"{one['bytes'] / fp16:.3f}"]
        wrong = [f"{one['relative']:.2g}", f"{one['largest']:.2g}"]
        lines.append([name, *size, *(f"{speed.median:,.0f}" for speed in speeds), *wrong])
    passes = [["pass", "seconds", "against on the fly"]]
    ratios = against(content["first_pass"], ON_THE_FLY)
    for name, seconds in content["first_pass"].items():
        passes.append([name, str(Spread.of(seconds)), str(ratios[name])])
    return [
        (f"Formats; {content['text']}, {pairs:,} pairs; medians.", table(lines)),
        (
            f"The first pass over {some:,} pairs of training in bf16 autocast, gated glue, batches "
            f"with {content['padding']:.1%} padding; medians of interleaved rounds with smallest "
            "and largest.",
            table(passes),
        ),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache_", ignore_cleanup_errors=True) as folder:
        found = measure(SCALES[arguments.scale], Path(folder))
    where = {"scale": arguments.scale, "folder": arguments.results}
    print_record(PROGRAM, found, sections(found), **where)


if __name__ == "__main__":
    main()
