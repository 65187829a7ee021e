"""Do smaller formats of the memory cache cost quality?

One small host is trained once. From it, for every seed, a gated model whose memory is computed in
every step and one for every format of the cache train alike: same start, text, batches and passes.
Each is set against the one without a cache of the same seed.

    python -m benchmarks.cache_quality --scale quick
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, table
from benchmarks.jobs import Job, merged, train_all
from benchmarks.records import print_record
from benchmarks.runs import mean, read_run, shown, trained_at
from benchmarks.small import SCALES, TESTS, Small
from fusion.memory_cache.formats import FORMATS

PROGRAM = "cache_quality"
RECIPES = ROOT / "recipes" / "quickstart"
ON_THE_FLY = "on the fly"
SEEDS = {"tiny": [1], "quick": [1, 2, 3], "full": [1, 2, 3, 4, 5]}


def host_job(small: Small, folder: Path) -> Job:
    """The shared host."""
    changes = merged(small.common(folder / "text"), small.host())
    return Job("host", 1, RECIPES / "host.yaml", changes)


def fused_job(row: str, seed: int, small: Small, folder: Path) -> Job:
    """A gated model with the memory of a row."""
    cache = None if row == ON_THE_FLY else {"format": row}
    changes = merged(small.common(folder / "text"), small.warm(), {"memory_cache": cache})
    return Job(row, seed, RECIPES / "fused.yaml", changes, host_job(small, folder))


def quality_table(rows: dict[str, dict[str, Any]]) -> str:
    """Mean over seeds with smallest and largest; what differs is taken seed by seed."""
    scores = ("dev", *TESTS)
    lines = [["memory", "seeds", *(f"{score} BLEU" for score in scores), "mean, less on the fly"]]
    for row, seeds in rows.items():
        apart = [
            mean(run[score] - rows[ON_THE_FLY][seed][score] for score in scores)
            for seed, run in seeds.items()
        ]
        several = (shown(run[score] for run in seeds.values()) for score in scores)
        lines.append([row, str(len(seeds)), *several, shown(apart)])
    return table(lines)


def main() -> None:
    """Train all, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SEEDS), default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 1 2 3, at full scale to 5")
    parser.add_argument("--runs", type=Path, help="where runs are trained, or were")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    scale, small = arguments.scale, SCALES.get(arguments.scale, SCALES["quick"])
    folder = (arguments.runs or ROOT / "runs" / "benchmarks" / f"{PROGRAM}-{scale}").resolve()
    small.write_text(folder / "text")
    jobs = [
        fused_job(row, seed, small, folder)
        for seed in arguments.seeds or SEEDS[scale]
        for row in (ON_THE_FLY, *FORMATS)
    ]
    train_all([host_job(small, folder), *jobs], folder, arguments.workers)
    rows: dict[str, dict[str, Any]] = {}
    commits = []
    for job in jobs:
        run = read_run(job.output(folder))
        scores = {test: run.tests[test]["bleu"] for test in TESTS} | {"dev": run.best.bleu}
        rows.setdefault(job.row, {})[str(job.seed)] = scores
        commits.append(run.commit)
    section = (SAYS + trained_at(commits), quality_table(rows))
    print_record(PROGRAM, rows, [section], scale=scale, folder=arguments.results)


SAYS = (
    "Gated models from one host, alike but for where their frozen encoder's memory comes from. "
    "Mean over seeds with smallest and largest; the last column is the mean over the four sets of "
    "the difference from the run of the same seed without a cache."
)


if __name__ == "__main__":
    main()
