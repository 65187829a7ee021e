"""A finished run, read from its directory: dev scores against updates, seconds and tokens.

`run.json` has the dev scores of a run and its seconds in all. The seconds at each score come from
them: those of training without dev evaluations, spread evenly over the updates, after the seconds
in which the frozen encoder's memory was computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.jobs import COMMIT
from fusion.data import read_corpus, tokenise
from fusion.errors import TrainingError
from fusion.evaluate import compare
from fusion.processor import FusionProcessor
from fusion.recipe import Recipe, validate_recipe
from fusion.saved import read_json


@dataclass(frozen=True)
class Point:
    """A dev score, and what had been spent when it was taken.

    Attributes:
        tokens: target tokens trained on
        bleu: greedy, 0 to 100
    """

    updates: int
    passes: float
    seconds: float
    tokens: float
    bleu: float


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        trainable: parameters
        size: parameters of host and glue, without the encoders'
        seconds: of training, without dev evaluations and without the memory
        memory: where frozen memory was read from -> seconds to compute it there
        points: one for each dev evaluation; averaged checkpoints, where kept, give one at the end
        tests: test set -> {"bleu", "chrf"}
        commit: at which a benchmark trained it
    """

    directory: Path
    seed: int
    trainable: int
    size: int
    updates: int
    seconds: float
    memory: dict[str, float]
    points: list[Point]
    tests: dict[str, dict[str, float]]
    commit: str
    recipe: Recipe = field(repr=False)

    @property
    def best(self) -> Point:
        """The first of the highest dev scores."""
        return max(self.points, key=lambda point: point.bleu)

    @property
    def total_seconds(self) -> float:
        """Of training and of computing the memory."""
        return self.seconds + sum(self.memory.values())

    def reach(self, bleu: float) -> Point | None:
        """The first dev evaluation that gave at least this score."""
        return next((point for point in self.points if point.bleu >= bleu), None)

    def translations(self, test: str) -> list[str]:
        """Of a test set."""
        path = self.directory / "translations" / f"{test}.txt"
        return path.read_text(encoding="utf-8").split("\n")[:-1]


def read_run(directory: Path) -> Run:
    """Read a run.

    Raises:
        TrainingError: there is no finished one.
    """
    if not (directory / "run.json").is_file():
        raise TrainingError(f"{directory}: no finished run (no run.json)")
    record: dict[str, Any] = read_json(directory / "run.json")
    recipe = recipe_of(directory)
    scores = [entry for entry in record["history"] if "eval_bleu" in entry]
    seconds = record["seconds"] - sum(entry["eval_runtime"] for entry in scores)
    trainable, size = _parameters(directory / "model" / "ledger.json")
    points = [
        Point(
            updates=entry["step"],
            passes=entry["epoch"],
            seconds=seconds * entry["step"] / record["updates"],
            tokens=0.0,
            bleu=entry["eval_bleu"],
        )
        for entry in scores
    ]
    if record["dev_bleu"] > max(point.bleu for point in points):  # of averaged checkpoints
        end = {"updates": record["updates"], "seconds": seconds, "bleu": record["dev_bleu"]}
        points.append(replace(points[-1], **end))
    reports = record.get("memory_cache") or {}
    return Run(
        directory=directory,
        seed=recipe.seed,
        trainable=trainable,
        size=size,
        updates=record["updates"],
        seconds=seconds,
        memory={r["directory"]: r["seconds"] for r in reports.values() if r["directory"]},
        points=points,
        tests={
            name: {metric: scores[metric]["score"] for metric in ("bleu", "chrf")}
            for name, scores in record["tests"].items()
        },
        commit=commit_of(directory),
        recipe=recipe,
    )


def commit_of(directory: Path) -> str:
    """At which commit a benchmark finished a run."""
    path = directory / COMMIT
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "unknown"


def trained_at(commits: Iterable[str]) -> str:
    """What a table says of the commits of its runs, which may be older than the table."""
    return f" Runs trained at commit {', '.join(dict.fromkeys(commits))}."


def recipe_of(directory: Path) -> Recipe:
    """What a run was trained by."""
    saved: dict[str, Any] = read_json(directory / "recipe.json")
    return validate_recipe(saved["recipe"], directory / "recipe.json")


def _parameters(ledger: Path) -> tuple[int, int]:
    """(trainable, outside the encoders), from a ledger of whichever release."""
    entries: Any = read_json(ledger)["entries"]
    trainable = size = 0
    for entry in entries:
        if entry["kind"] == "parameter" and entry["origin"] != "tied":
            count = math.prod(entry.get("shape", ()))
            trainable += 0 if entry.get("frozen") else count
            size += 0 if entry["name"].startswith("encoders.") else count
    return trainable, size


def in_full(runs: list[Run]) -> list[Run]:
    """The same runs, with tokens, and each with the seconds of the memory that it reads.

    Memory that several runs share was computed by the first of them: each is charged in full, as
    if it had been alone. All runs have the text and the host tokenizer of the first.
    """
    cost: dict[str, float] = {}
    for run in runs:
        for place, seconds in run.memory.items():
            cost[place] = max(seconds, cost.get(place, 0.0))
    tokens = target_tokens(runs[0])
    whole = []
    for run in runs:
        memory = {place: cost[place] for place in run.memory}
        before = sum(memory.values())
        points = [
            replace(point, seconds=before + point.seconds, tokens=tokens * point.passes)
            for point in run.points
        ]
        whole.append(replace(run, memory=memory, points=points))
    return whole


def target_tokens(run: Run) -> int:
    """Target tokens of one pass over a run's training text."""
    data = run.recipe.data
    corpus = read_corpus(data.train, data, "data.train", empty=data.filters.empty)
    processor = FusionProcessor.from_pretrained(run.directory / "model")
    processor.encoders = {}
    rows, _ = tokenise(corpus, processor, data.filters)
    return sum(target for _, target in rows["lengths"])


def references(run: Run, test: str) -> list[str]:
    """The reference translations of a run's test set."""
    data = run.recipe.data
    return list(read_corpus(data.tests[test], data, f"data.tests.{test}")["target"])


def bootstrap(run: Run, baseline: Run, test: str, samples: int) -> dict[str, float]:
    """BLEU of a run above another one on a test set, with p of the paired bootstrap."""
    found = compare(
        run.translations(test),
        baseline.translations(test),
        references(run, test),
        samples=samples,
        target_lang=run.recipe.data.target_lang,
    )
    return {"difference": found.bleu.difference, "p": found.bleu.p_value}


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    numbers = list(values)
    return sum(numbers) / len(numbers)


def shown(values: Iterable[float], digits: int = 2) -> str:
    """Mean of one value per seed, with smallest and largest where they differ."""
    numbers = list(values)
    if not numbers:
        return "-"
    text = f"{mean(numbers):,.{digits}f}"
    if min(numbers) < max(numbers):
        text += f" ({min(numbers):,.{digits}f} to {max(numbers):,.{digits}f})"
    return text
