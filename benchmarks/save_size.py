"""How large is a saved model, and how long does saving it take, by delta and in full.

A delta leaves out what is bit for bit its source's. A trained host (90 MB, at full scale 600 MB as
well) beside a frozen encoder of about the same size, saved in turn.

    python -m benchmarks.save_size --scale quick
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.harness import RESULTS, Spread, table
from benchmarks.load_time import SCALES, composed_recipe, make
from benchmarks.records import print_record

PROGRAM = "save_size"
Rows = list[dict[str, float]]


def measure(folder: Path, repetitions: int) -> dict[str, Rows]:
    """Seconds and bytes of each way to save, in turn; the first round warms the page cache."""
    import torch

    from fusion.composition import compose
    from fusion.saved import load_model, save_model

    composed = compose(composed_recipe(folder))
    with torch.no_grad():
        for parameter in composed.model.host.parameters():
            parameter.add_(1e-3)  # as training does
    found: dict[str, Rows] = {"without": [], "full": []}
    for repetition in range(repetitions + 1):
        for way, rows in found.items():
            place = folder / "saved"
            shutil.rmtree(place, ignore_errors=True)
            start = time.perf_counter()
            save_model(composed.model, place, composed.processor, full=way == "full")
            saved = time.perf_counter()
            load_model(place)
            loaded = time.perf_counter()
            if repetition:
                size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
                rows.append({"save": saved - start, "load": loaded - saved, "bytes": size})
    return found


def compare(size: str, repetitions: int) -> dict[str, Rows]:
    """Both ways to save a model of some size."""
    folder = Path(tempfile.mkdtemp(prefix="save_size_"))
    try:
        make(folder, size)
        return measure(folder, repetitions)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def section(results: dict[str, dict[str, Rows]], repetitions: int) -> tuple[str, str]:
    """The table, and what it says."""
    rows = [["saved", "MB", "seconds to save", "seconds to load"]]
    for found in results.values():
        for way, several in found.items():
            size = several[0]["bytes"] / 1e6
            spreads = [str(Spread.of([one[key] for one in several])) for key in ("save", "load")]
            rows.append([way, f"{size:.0f}" if size > 10 else f"{size:.2f}", *spreads])
    says = (
        "A model without what is bit for bit its sources', and in full; medians of interleaved "
        f"rounds ({repetitions}) with smallest and largest."
    )
    return says, table(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="quick")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    results = {size: compare(size, scale.repetitions) for size in scale.sizes}
    shown = section(results, scale.repetitions)
    where = {"scale": arguments.scale, "folder": arguments.results}
    print_record(PROGRAM, results, [shown], **where)


if __name__ == "__main__":
    main()
