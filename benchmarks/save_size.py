"""How large is a saved model, and how long does saving it take, by delta and in full.

A delta leaves out what is bit for bit its source's. A trained host of 90 MB beside a frozen encoder
of about the same size, saved in turn.

    python -m benchmarks.save_size
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Spread, table, write_result
from benchmarks.load_time import SIZES, composed_recipe, make


def measure(folder: Path, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """Seconds and bytes of each way to save, in turn; the first round warms the page cache."""
    import torch

    from fusion.composition import compose
    from fusion.saved import load_model, save_model

    composed = compose(composed_recipe(folder))
    with torch.no_grad():
        for parameter in composed.model.host.parameters():
            parameter.add_(1e-3)  # as training does
    found: dict[str, list[dict[str, float]]] = {"without": [], "full": []}
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="100 MB")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="save_size_"))
    try:
        make(folder, arguments.size)
        found: dict[str, Any] = measure(folder, arguments.repetitions)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [["saved", "MB", "seconds to save", "seconds to load"]]
    for way, results in found.items():
        size = results[0]["bytes"] / 1e6
        spreads = [str(Spread.of([one[key] for one in results])) for key in ("save", "load")]
        rows.append([way, f"{size:.0f}", *spreads])
    print(table(rows))
    print(write_result("save_size", {"results": found}))


if __name__ == "__main__":
    main()
