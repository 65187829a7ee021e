"""Runs that a benchmark needs: recipes derived from shipped ones, trained several at a time.

Every run is an ordinary recipe in FOLDER/recipes, so that `fusion train FILE` would do the same;
a finished one is not trained again, an interrupted one is resumed. At which commit it was finished
stands in its directory.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import commit

COMMIT = "commit.txt"  # in a run's directory


@dataclass(frozen=True)
class Job:
    """A run to be.

    Attributes:
        row: what it is called in tables, `host` for the one that others start from
        changes: to the recipe `base`, as nested keys
        host: the run that its host comes from; None: the host is new
    """

    row: str
    seed: int
    base: Path
    changes: dict[str, Any] = field(default_factory=dict)
    host: Job | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.row.replace(' ', '-')}-{self.seed}"

    def recipe(self, folder: Path) -> Path:
        """Its recipe's file."""
        return folder / "recipes" / f"{self.name}.yaml"

    def output(self, folder: Path) -> Path:
        """Where it is trained."""
        return folder / self.name

    def log(self, folder: Path) -> Path:
        """What its training says."""
        return folder / f"{self.name}.log"


def merged(*several: dict[str, Any]) -> dict[str, Any]:
    """Nested keys of all, the later ones first."""
    result: dict[str, Any] = {}
    for one in several:
        for key, value in one.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = merged(old or {}, value) if both else value
    return result


def write_recipe(job: Job, folder: Path) -> None:
    """Write a job's recipe: the base, its changes, and places below the folder."""
    from fusion.recipe import load_recipe

    own: dict[str, Any] = {
        "extends": str(job.base.resolve()),
        "name": job.name,
        "seed": job.seed,
        "output": str(job.output(folder)),
        "train": {"disable_tqdm": True},
    }
    if job.host is not None:
        own["host"] = {"source": f"recipe:{job.host.recipe(folder)}"}
    if load_recipe(job.base).memory_cache is not None:
        own["memory_cache"] = {"dir": str(folder / "memory")}
    path = job.recipe(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(merged(own, job.changes), sort_keys=False), encoding="utf-8")


def train_all(jobs: list[Job], folder: Path, workers: int) -> None:
    """Train every job, in order where hosts allow it; `workers` processes share the cores.

    Raises:
        RuntimeError: a run failed; says which, and where its log is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        write_recipe(job, folder)
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    waiting, done = list(jobs), set[str]()
    running: dict[Future[None], Job] = {}
    with processes(workers) as pool:
        while waiting or running:
            for job in [job for job in waiting if job.host is None or job.host.name in done]:
                waiting.remove(job)
                running[pool.submit(_train, job.recipe(folder), job.log(folder), threads)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if (error := future.exception()) is not None:
                    raise RuntimeError(f"{job.name}: {error}; see {job.log(folder)}") from error
                done.add(job.name)
                print(f"{job.name}: trained", file=sys.stderr, flush=True)


@contextmanager
def processes(
    workers: int, before: Callable[[], None] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Workers that end when this block fails, without the work that has not begun.

    Args:
        before: what each does first
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=before)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _train(recipe: Path, log: Path, threads: int) -> None:
    """In a worker: train one recipe; what it says goes to a file."""
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        import torch

        from fusion.recipe import load_recipe
        from fusion.train import run

        torch.set_num_threads(threads)
        loaded, now = load_recipe(recipe), commit()
        place = Path(loaded.output)
        finished = (place / "run.json").is_file()
        run(loaded, lambda text: print(text, flush=True))
        if not finished:
            (place / COMMIT).write_text(f"{now}\n", encoding="utf-8")
