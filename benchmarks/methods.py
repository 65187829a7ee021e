"""Which glue method is worth it: all of them on the quickstart corpus, with equal budgets?

One host is trained once and shared. From it start the host trained on and every recipe in
recipes/quickstart/ that has glue, for the same passes with the same learning rates; only the glue
differs. The deeper host, with about as many parameters, trains from nothing for the budget of both.
Results are merged into the JSON file, so that the table can be made in pieces.

    python -m benchmarks.methods --scale quick
    python -m benchmarks.methods --scale full --methods fused,bert-fused --seeds 1
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, Spread, table
from benchmarks.jobs import Job, merged, train_all
from benchmarks.records import record_name, write_record
from benchmarks.runs import mean, read_run, shown, trained_at
from benchmarks.small import SCALES, Small
from fusion.recipe import load_recipe
from fusion.saved import read_json

PROGRAM = "methods"
RECIPES = ROOT / "recipes" / "quickstart"
CONTROLS = ("host-continued", "deeper-host")
SEEDS = {"tiny": [1], "quick": [1], "full": [1, 2, 3]}
ROUNDS = {"tiny": (1, 1), "quick": (5, 2), "full": (5, 10)}  # of step times: rounds, steps of each
SHOWN = {"host-continued": "host trained on", "fused": "gated"}


def recipes() -> list[str]:
    """Every recipe of the quickstart with glue and a trained host."""
    loaded = {path.stem: load_recipe(path) for path in RECIPES.glob("*.yaml")}
    return sorted(name for name, r in loaded.items() if r.glue and r.host.new is None)


@dataclass(frozen=True)
class Plan:
    """What is trained, and where."""

    small: Small | None
    folder: Path

    @property
    def host(self) -> Job:
        """The shared one."""
        small = self.small
        changes = merged(self._common(), small.host()) if small else {}
        return Job("host", 1, RECIPES / "host.yaml", changes)

    def job(self, row: str, seed: int) -> Job:
        """One row's run."""
        base, small = RECIPES / f"{row}.yaml", self.small
        if row == "deeper-host":
            changes = small.deeper_host() if small is not None else {}
            return Job(row, seed, base, merged(self._common(), changes))
        changes: dict[str, Any] = {}
        if small is not None:
            changes = small.staged() if load_recipe(base).stages else small.warm()
        return Job(row, seed, base, merged(self._common(), changes), self.host)

    def _common(self) -> dict[str, Any]:
        return self.small.common(self.folder / "text") if self.small is not None else {}


def measured(job: Job, folder: Path) -> dict[str, Any]:
    """A finished run for the JSON file."""
    run = read_run(job.output(folder))
    return {
        "size": run.size,
        "trainable": run.trainable,
        "updates": run.updates,
        "seconds": run.total_seconds,
        "dev": run.best.bleu,
        "tests": run.tests,
        "commit": run.commit,
    }


def methods_table(results: dict[str, Any], order: list[str]) -> str:
    """A line per row: mean over seeds, with smallest and largest."""
    host = results["rows"]["host"]["1"]
    tests = list(host["tests"])
    head = ["method", "seeds", "parameters added (M)", "trained (M)", "step, host's = 1", "updates"]
    lines = [[*head, *(f"{test} BLEU" for test in tests), *(f"{test} chrF" for test in tests)]]
    for row in ["host", *order]:
        runs = list(results["rows"].get(row, {}).values())
        if not runs:
            continue
        step = results["steps"].get(row)
        lines.append(
            [
                SHOWN.get(row, row),
                str(len(runs)),
                f"{(runs[0]['size'] - host['size']) / 1e6:.3f}",
                f"{runs[0]['trainable'] / 1e6:.3f}",
                str(Spread(**step)) if step else "-",
                shown((run["updates"] for run in runs), 0),
                *(shown(run["tests"][test]["bleu"] for run in runs) for test in tests),
                *(shown(run["tests"][test]["chrf"] for run in runs) for test in tests),
            ]
        )
    return table(lines)


def bars(results: dict[str, Any], order: list[str], path: Path) -> Path:
    """BLEU of every row on every test set, above or below the host trained on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = results["rows"]
    names = [row for row in order if row in rows and row != "host-continued"]
    tests = list(rows["host"]["1"]["tests"])
    size = (9, 1.5 + 0.3 * len(names))
    figure, panels = pyplot.subplots(1, len(tests), figsize=size, sharey=True, layout="constrained")
    for panel, test in zip(panels, tests, strict=True):
        base = mean(run["tests"][test]["bleu"] for run in rows["host-continued"].values())
        for place, row in enumerate(reversed(names)):
            values = [run["tests"][test]["bleu"] - base for run in rows[row].values()]
            panel.barh(place, mean(values), color="#56B4E9" if mean(values) > 0 else "#E69F00")
            panel.plot(values, [place] * len(values), "k.", markersize=4)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(test, fontsize=10)
        panel.grid(axis="x", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), [SHOWN.get(row, row) for row in reversed(names)])
    figure.supxlabel("BLEU above the host trained on: mean, and a dot per seed", fontsize=10)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.rename(path)
    pyplot.close(figure)
    return path


def before(path: Path) -> dict[str, Any]:
    """Results of earlier pieces."""
    if not path.is_file():
        return {"rows": {}, "steps": {}}
    content: Any = read_json(path)
    results: dict[str, Any] = content["results"]
    return results


def main() -> None:
    """Train what is asked for, merge, print the whole table."""
    known = recipes()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SEEDS), default="quick")
    parser.add_argument("--methods", help="recipes, with commas; default: all", metavar="A,B")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 1; at full scale 1 2 3")
    parser.add_argument("--runs", type=Path, help="where runs are trained, or were")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chosen = arguments.methods.split(",") if arguments.methods else known
    for method in chosen:
        if method not in known:
            parser.error(f"--methods: no recipe {method}; there are: {', '.join(known)}")
    scale, small = arguments.scale, SCALES.get(arguments.scale)
    folder = (arguments.runs or ROOT / "runs" / "benchmarks" / f"{PROGRAM}-{scale}").resolve()
    if small is not None:
        small.write_text(folder / "text")
    plan = Plan(small, folder)
    seeds = arguments.seeds or SEEDS[scale]
    jobs = [plan.job(row, seed) for seed in seeds for row in (*CONTROLS, *chosen)]
    train_all([plan.host, *jobs], folder, arguments.workers)
    record = arguments.results / f"{record_name(PROGRAM, scale)}.json"
    results = before(record)
    for job in (plan.host, *jobs):
        results["rows"].setdefault(job.row, {})[str(job.seed)] = measured(job, folder)
    results["steps"] |= steps({job.row: job.output(folder) for job in jobs}, ROUNDS[scale])
    report(results, [*CONTROLS, *known], scale, arguments.results)


def steps(runs: dict[str, Path], rounds: tuple[int, int]) -> dict[str, Any]:
    """Step times against the host's, on one thread."""
    import torch

    from benchmarks.step_time import step_times

    torch.set_num_threads(1)
    return {row: vars(spread) for row, spread in step_times(runs, *rounds).items()}


def report(results: dict[str, Any], order: list[str], scale: str, folder: Path) -> None:
    """Print the table; write JSON and plot."""
    commits = [run["commit"] for runs in results["rows"].values() for run in runs.values()]
    section = (SAYS + trained_at(commits), methods_table(results, order))
    folder.mkdir(parents=True, exist_ok=True)
    plot = bars(results, order, folder / f"{record_name(PROGRAM, scale)}.png")
    path = write_record(PROGRAM, results, [section], scale=scale, folder=folder, plots=[plot])
    print("\n\n".join([*section, str(path)]))


SAYS = (
    "Mean over seeds with smallest and largest. All but host and deeper host start from that host, "
    "with equal passes, batches and learning rates; deeper host: the budget of both, from nothing, "
    "with an init (at quick scale a schedule too) of its own: with the host's it hardly learns. "
    "bottleneck and lora train the adapters alone, in a frozen host, as published. Step: median of "
    "rounds in which every method takes the same batches in turn, frozen memory read from disk."
)


if __name__ == "__main__":
    main()
