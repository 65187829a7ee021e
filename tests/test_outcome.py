"""What a run leaves: its best checkpoint by the recipe's metric, or the mean of the last ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fusion.recipe import Recipe, validate_recipe
from fusion.train import run

TARGETS = ["die katze schläft .", "ein hund sieht die katze .", "der lehrer liest ."]


@dataclass
class Trained:
    """A finished run of three evaluations."""

    folder: Path
    said: str

    @property
    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "run.json").read_text("utf-8"))
        return content

    def dev(self, metric: str) -> dict[int, float]:
        key = f"eval_{metric}"
        return {e["step"]: e[key] for e in self.record["history"] if key in e}

    def model(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model" / "glue.safetensors")

    def checkpoint(self, step: int) -> dict[str, Tensor]:
        return load_file(self.folder / "checkpoints" / f"checkpoint-{step}" / "glue.safetensors")


@pytest.fixture
def train(
    make_recipe: Callable[..., Recipe], tmp_path: Path, sentences: list[str]
) -> Callable[..., Trained]:
    """`train(learning_rate=..., ...)` -> a run of six updates."""
    for side, lines in (("en", sentences), ("de", TARGETS)):
        (tmp_path / f"text.{side}").write_text("\n".join(lines * 8) + "\n", encoding="utf-8")

    def make(**settings: Any) -> Trained:
        text = {"source": str(tmp_path / "text.en"), "target": str(tmp_path / "text.de")}
        usual = {"lr_scheduler_type": "constant", "max_steps": 6, "logging_steps": 1}
        usual |= {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 9}
        raw = make_recipe().model_dump(mode="json") | {
            "output": str(tmp_path / "out"),
            "data": {"train": text, "dev": text, "batch_tokens": 64},
            "train": usual | {"disable_tqdm": True} | settings,
        }
        said: list[str] = []
        run(validate_recipe(raw, Path("test.yaml")), said.append)
        return Trained(tmp_path / "out", "\n".join(said))

    return make


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("metric", ["loss", "eval_loss"])
def test_the_best_checkpoint_by_loss_is_the_one_of_the_lowest_loss(
    train: Callable[..., Trained], metric: str
) -> None:
    done = train(learning_rate=0.05, metric_for_best_model=metric)
    losses = done.dev("loss")
    best = min(losses, key=lambda step: losses[step])
    assert best != max(losses, key=lambda step: losses[step])
    assert same(done.model(), done.checkpoint(best))
    assert done.record["dev_bleu"] == done.dev("bleu")[best]


@pytest.mark.parametrize(("rate", "kept"), [(0.002, "the single one"), (0.3, "the mean")])
def test_the_mean_of_the_last_checkpoints_is_kept_where_dev_is_better_for_it(
    train: Callable[..., Trained], rate: float, kept: str
) -> None:
    done = train(learning_rate=rate, metric_for_best_model="loss", average_checkpoints=3)
    losses = done.dev("loss")
    found = re.search(
        r"mean of the last 3 checkpoints: dev loss (\S+), best single one (\S+); kept: (.+)",
        done.said,
    )
    assert found is not None, done.said
    mean, single = float(found[1]), float(found[2])
    assert single == pytest.approx(min(losses.values()), abs=0.01)
    assert found[3] == kept and (mean < single) == (kept == "the mean")
    several = [done.checkpoint(step) for step in losses]
    expected = {
        name: torch.stack([tensors[name].double() for tensors in several]).mean(0).float()
        for name in several[0]
    }
    best = done.checkpoint(min(losses, key=lambda step: losses[step]))
    assert same(done.model(), expected if kept == "the mean" else best)
    assert not same(expected, best)
