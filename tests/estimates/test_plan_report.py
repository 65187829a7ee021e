"""`fusion plan` with --data, --hardware, --memory and --fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.recipe import Recipe

RecipeFile = Callable[[Recipe], Path]


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], recipe_file: RecipeFile) -> Path:
    return recipe_file(make_recipe(encoder={"freeze": False}))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::UserWarning", "-m", "fusion", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_plan_says_the_memory_of_every_part_and_in_all(recipe: Path) -> None:
    done = run(str(recipe), "--data", "multi30k", "--hardware", "cpu2")
    assert done.returncode == 0, done.stderr
    for word in ("weights", "gradients", "moments", "activations", "encoders.bert", "in all"):
        assert word in done.stdout
    for word in ("29,000 pairs", "encoders in every step *", "training checkpoint", "cpu2"):
        assert word in done.stdout


@pytest.mark.slow
def test_everything_is_there_as_json(recipe: Path) -> None:
    options = ["--data", "100M", "--hardware", "h100", "--memory", "--fit", "10GB", "--json"]
    done = run(str(recipe), *options)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["scale"]["corpus"]["pairs"] == 100_000_000
    assert content["fit"]["fits"] is True and content["fit"]["overrides"] == []
    assert content["memory"]["total"] == content["choices"][0]["memory"]["total"]
    assert set(content["memory"]["parts"]) == {"host", "encoders.bert", "glue"}


@pytest.mark.slow
def test_what_cannot_fit_is_one_message_and_exit_2(recipe: Path) -> None:
    done = run(str(recipe), "--fit", "1MB", "--hardware", "cpu2")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("fusion: --fit: nothing that is known here fits 1.0 MB; the least that")
    assert "train.bf16=true" in line and "host frozen" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit", "16GB"], "--fit: whether training fits 16.0 GB is not known: it needs at least"),
        (["--data", "29k"], "--data: steps are not counted, as the model asks for values"),
    ],
)
def test_what_cannot_be_counted_is_one_message_and_exit_2(
    experts: Recipe, recipe_file: RecipeFile, options: list[str], message: str
) -> None:
    done = run(str(recipe_file(experts)), *options, "--hardware", "a100")
    assert done.returncode == 2 and "fits 16.0 GB as it is" not in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"fusion: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit", "much"], "--fit: a number of bytes, or such as 20GB"),
        (["--data", "wmt13"], '--data: no corpus "wmt13"'),
        (["--hardware", "h10"], '--hardware: no "h10"; nearest: "h100"'),
    ],
)
def test_a_mistake_is_one_message(recipe: Path, options: list[str], message: str) -> None:
    done = run(str(recipe), *options)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr
