"""Does a warm start pay: fused from a trained host, against fused from scratch and plain hosts?

Six rows on the same text with the same evaluation: the host; the host trained on for the budget of
the fused rows; fused from the trained host, with gated glue (neutral start) and with BERT-fused
glue (published start); fused from scratch and a deeper host with about as many parameters, both
from nothing and for the budget of host and fused together.

    python -m benchmarks.warm_vs_scratch --scale quick
    FUSION_DATA=... python -m benchmarks.warm_vs_scratch --scale full
    python -m benchmarks.warm_vs_scratch --scale full --host DIR --fused DIR ...  # existing runs
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, table
from benchmarks.jobs import Job, merged, train_all
from benchmarks.plots import learning_curves
from benchmarks.records import record_name, write_record
from benchmarks.runs import Run, bootstrap, in_full, mean, read_run, shown, trained_at
from benchmarks.small import SCALES, Small

PROGRAM = "warm_vs_scratch"
ROWS = {
    "host": "host from scratch",
    "continued": "host trained on",
    "fused": "fused, warm, neutral (gated)",
    "published": "fused, warm, published (bert-fused)",
    "scratch": "fused from scratch (bert-fused)",
    "deeper": "deeper host from scratch",
}
WARM = ("continued", "fused", "published")
PAIRS = [("fused", "continued"), ("fused", "scratch"), ("fused", "deeper"), ("fused", "published")]
PAIRS += [("published", "continued"), ("published", "scratch")]
SCORES = {"tiny": (0.0,), "quick": (20.0, 40.0, 60.0), "full": (30.0, 35.0, 38.0)}


@dataclass(frozen=True)
class Plan:
    """What is trained, and where.

    Attributes:
        recipes: the folder that they are derived from
    """

    recipes: Path
    small: Small | None
    folder: Path

    def jobs(self, seeds: list[int]) -> list[Job]:
        """All runs, seed after seed."""
        base = {"host": "host", "continued": "host-continued", "fused": "fused"}
        base |= {"published": "bert-fused", "scratch": "fused-from-scratch"}
        base |= {"deeper": "deeper-host"}
        jobs: list[Job] = []
        for seed in seeds:
            host = Job("host", seed, self._base("host"), self._changes("host"))
            jobs.append(host)
            for row in ("scratch", "deeper", *WARM):
                below = host if row in WARM else None
                jobs.append(Job(row, seed, self._base(base[row]), self._changes(row), below))
        return jobs

    def _base(self, name: str) -> Path:
        return self.recipes / f"{name}.yaml"

    def _changes(self, row: str) -> dict[str, Any]:
        if self.small is None:
            return FULL.get(row, {})
        small, text = self.small, self.folder / "text"
        if row in WARM:
            return merged(small.common(text), small.warm())
        new = {"host": small.host, "scratch": small.scratch, "deeper": small.deeper_host}
        return merged(small.common(text), new[row]())


# Multi30k's hosts have 24 passes and what starts from them 8; early stopping may end both
FULL: dict[str, dict[str, Any]] = {
    "scratch": {"train": {"num_train_epochs": 32}, "memory_cache": {"format": "bf16"}},
    "deeper": {"train": {"num_train_epochs": 32}},
}


def quality(rows: dict[str, list[Run]], hosts: dict[str, list[Run]]) -> str:
    """A line per row: what it cost and what it scores."""
    tests = list(next(iter(rows.values()))[0].tests)
    head = ["model", "parameters (M)", "updates", "seconds, host left out", "seconds, host counted"]
    lines = [[*head, "best dev BLEU", *(f"{test} BLEU / chrF" for test in tests)]]
    for row, runs in rows.items():
        counted = [
            run.total_seconds + (hosts[row][n].total_seconds if row in hosts else 0.0)
            for n, run in enumerate(runs)
        ]
        scores = [
            f"{shown(run.tests[test]['bleu'] for run in runs)} / "
            f"{shown(run.tests[test]['chrf'] for run in runs)}"
            for test in tests
        ]
        cost = [shown((run.total_seconds for run in runs), 0), shown(counted, 0)]
        sizes = [f"{mean(run.size for run in runs) / 1e6:.2f}", f"{shown_updates(runs)}"]
        lines.append([ROWS[row], *sizes, *cost, shown(run.best.bleu for run in runs), *scores])
    return table(lines)


def shown_updates(runs: list[Run]) -> str:
    """Updates, without a decimal."""
    return shown((run.updates for run in runs), 0)


@dataclass(frozen=True)
class Reached:
    """What it took one run to reach a score; None: it did not.

    `host` are the seconds of the host's own training, 0 where there was none.
    """

    updates: int | None
    seconds: float | None
    host: float
    share: float | None  # of the updates that fused from scratch took to its best score


def reach(run: Run, host: Run | None, goal: float, whole: int | None, neutral: bool) -> Reached:
    """When a run reached a dev score; what starts as the host bit for bit has its score at 0."""
    before = host.total_seconds if host is not None else 0.0
    if neutral and host is not None and host.best.bleu >= goal:
        return Reached(0, 0.0, before, 0.0 if whole else None)
    point = run.reach(goal)
    if point is None:
        return Reached(None, None, before, None)
    share = point.updates / whole if whole else None
    return Reached(point.updates, point.seconds, before, share)


def goals(rows: dict[str, list[Run]], scores: tuple[float, ...]) -> dict[str, list[float]]:
    """Goal -> the score of each seed."""
    found: dict[str, list[float]] = {}
    if "scratch" in rows:
        found["best of fused from scratch"] = [run.best.bleu for run in rows["scratch"]]
    seeds = max(len(runs) for runs in rows.values())
    return found | {f"{score:g}": [score] * seeds for score in scores}


def reached(
    rows: dict[str, list[Run]], hosts: dict[str, list[Run]], scores: tuple[float, ...]
) -> tuple[str, dict[str, Any]]:
    """A line per goal and row, and the same for the JSON file."""
    head = ["dev BLEU", "model", "seeds that reach it", "updates", "of scratch's updates"]
    lines = [[*head, "seconds, host left out", "seconds, host counted"]]
    record: dict[str, Any] = {}
    for goal, of_seed in goals(rows, scores).items():
        told = f"{goal} ({mean(of_seed):.2f})" if goal.startswith("best") else goal
        for place, (row, runs) in enumerate(rows.items()):
            found = []
            for n, run in enumerate(runs):
                host = hosts[row][n] if row in hosts else None
                whole = rows["scratch"][n].best.updates if goal.startswith("best") else None
                found.append(reach(run, host, of_seed[n], whole, row in ("continued", "fused")))
            hits = [one for one in found if one.seconds is not None]
            share = [one.share for one in hits if one.share is not None]
            lines.append(
                [
                    "" if place else told,
                    ROWS[row],
                    f"{len(hits)} of {len(found)}",
                    shown((one.updates or 0 for one in hits), 0),
                    shown(share),
                    shown((one.seconds or 0.0 for one in hits), 1),
                    shown(((one.seconds or 0.0) + one.host for one in hits), 1),
                ]
            )
            record.setdefault(goal, {})[row] = [vars(one) for one in found]
    return table(lines), record


def compared(rows: dict[str, list[Run]], samples: int) -> tuple[str, dict[str, Any]]:
    """Paired bootstrap, seed by seed, on every test set."""
    tests = list(next(iter(rows.values()))[0].tests)
    lines = [["model", "against", *(f"{test}: BLEU (p)" for test in tests)]]
    record: dict[str, Any] = {}
    for ours, theirs in PAIRS:
        if ours not in rows or theirs not in rows:
            continue
        cells = []
        for test in tests:
            found = [
                bootstrap(run, other, test, samples)
                for run, other in zip(rows[ours], rows[theirs], strict=True)
            ]
            record.setdefault(f"{ours} against {theirs}", {})[test] = found
            average = mean(one["difference"] for one in found)
            chances = ", ".join(f"{one['p']:.3f}" for one in found)
            cells.append(f"{average:+.2f} ({chances})")
        lines.append([ROWS[ours], ROWS[theirs], *cells])
    return table(lines), record


def of_deeper(rows: dict[str, list[Run]]) -> str:
    """What is said of the deeper host's start and schedule, from its recipe."""
    if "deeper" not in rows:
        return ""

    def settings(row: str) -> str:
        recipe = rows[row][0].recipe
        rate, warm = (recipe.train.arguments[name] for name in ("learning_rate", "warmup_steps"))
        return f"init `{recipe.host.init}`, peak {rate:g}, warm-up of {warm:,} updates"

    mine, *others = (settings(row) for row in ("deeper", "host", "scratch") if row in rows)
    if set(others) <= {mine}:
        return f" The deeper host has the start and schedule of the others: {mine}."
    return (
        " The deeper host has a start and schedule of its own, chosen for it on one seed: "
        f"{mine}; theirs: {'; '.join(dict.fromkeys(others))}."
    )


def record_of(run: Run) -> dict[str, Any]:
    """A run for the JSON file."""
    plain = {key: value for key, value in vars(run).items() if key != "recipe"}
    plain["memory"] = {Path(place).name: seconds for place, seconds in run.memory.items()}
    return plain | {"directory": run.directory.name, "points": [vars(p) for p in run.points]}


def report(rows: dict[str, list[Run]], scale: str, samples: int, folder: Path) -> None:
    """Print the tables, write JSON and plot."""
    everything = in_full([run for runs in rows.values() for run in runs])
    whole = iter(everything)
    rows = {row: [next(whole) for _ in runs] for row, runs in rows.items()}
    hosts = {}
    if "host" in rows:
        for row in set(rows).intersection(WARM):
            several = rows["host"] if len(rows["host"]) > 1 else rows["host"] * len(rows[row])
            hosts[row] = several[: len(rows[row])]
    goals_table, goals_record = reached(rows, hosts, SCORES[scale])
    bootstrap_table, bootstrap_record = compared(rows, samples)
    sections = [
        (
            QUALITY.format(seeds=max(len(runs) for runs in rows.values()))
            + of_deeper(rows)
            + trained_at(run.commit for run in everything),
            quality(rows, hosts),
        ),
        (REACHED, goals_table),
        (COMPARED.format(samples=samples), bootstrap_table),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / f"{record_name(PROGRAM, scale)}.png"
    learning_curves({ROWS[row]: runs for row, runs in rows.items()},
                    {ROWS[row]: runs for row, runs in hosts.items()}, plot)  # fmt: skip
    results = {
        "runs": {row: [record_of(run) for run in runs] for row, runs in rows.items()},
        "reached": goals_record,
        "bootstrap": bootstrap_record,
    }
    path = write_record(PROGRAM, results, sections, scale=scale, folder=folder, plots=[plot])
    for says, text in sections:
        print(f"{says}\n\n{text}\n")
    print(path)


QUALITY = (
    "Quality and cost; seeds: {seeds}, mean with smallest and largest. Seconds are those of "
    "training without dev evaluations, and of computing the frozen encoder's memory; one column "
    "counts the host's own training for what starts from a trained host, the other leaves it out."
)
REACHED = (
    "When a dev score is reached, by the seeds that reach it. What starts as the trained host, bit "
    "for bit, has that host's score after 0 updates; host counted: all of the host's training."
)
COMPARED = (
    "Paired bootstrap, {samples:,} samples: mean difference in BLEU, and p of each seed in turn."
)


def trained(scale: str, seeds: list[int], folder: Path, workers: int) -> dict[str, list[Run]]:
    """Train what is not trained yet."""
    small = SCALES.get(scale)
    if small is not None:
        small.write_text(folder / "text")
    recipes = ROOT / "recipes" / ("quickstart" if small else "multi30k")
    jobs = Plan(recipes, small, folder).jobs(seeds)
    train_all(jobs, folder, workers)
    return {row: [read_run(j.output(folder)) for j in jobs if j.row == row] for row in ROWS}


def main() -> None:
    """Train or read the runs, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCORES), default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 1 2 3; at tiny scale 1")
    parser.add_argument("--runs", type=Path, help="where runs are trained, or were")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--samples", type=int, default=1000, help="of the paired bootstrap")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for row, label in ROWS.items():
        parser.add_argument(f"--{row}", type=Path, nargs="+", help=f"finished runs: {label}")
    arguments = parser.parse_args()
    given = {row: getattr(arguments, row) for row in ROWS if getattr(arguments, row)}
    if given:
        rows = {row: [read_run(path) for path in paths] for row, paths in given.items()}
    else:
        folder = arguments.runs or ROOT / "runs" / "benchmarks" / f"{PROGRAM}-{arguments.scale}"
        seeds = arguments.seeds or ([1] if arguments.scale == "tiny" else [1, 2, 3])
        rows = trained(arguments.scale, seeds, folder.resolve(), arguments.workers)
    report(rows, arguments.scale, arguments.samples, arguments.results)


if __name__ == "__main__":
    main()
