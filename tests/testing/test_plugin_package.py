"""A package of one's own: installed by pip, listed, checked by the kit, used by a recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fusion

PACKAGE = Path(__file__).parents[1] / "plugin_package"
CHECKS = """
from pathlib import Path
from fusion.testing import EncoderChoice, check_encoder, check_glue, check_host
from fusion.testing.hosts import BART
from fusion_example import BagConfig

skip = ["compile"]
bag = EncoderChoice(BagConfig(vocab_size=110), builder="bag")
reports = [
    *check_glue("pooled", hosts=["marian"], skip=skip),
    *check_host("my-marian", BART, skip=skip),
    *check_encoder(bag, skip=skip),
]
print([len(report.passed) for report in reports])
bag.save(Path("bag"))
"""
SAVED = """
from pathlib import Path
from fusion.registry import ENCODERS
from fusion.testing.bench import Bench, EncoderChoice, HostChoice

ENCODERS.get("bag")
from fusion_example import BagConfig

bag = {"bag": EncoderChoice(BagConfig(vocab_size=110), builder="bag")}
Bench(Path("bench"), HostChoice("marian"), bag, [{"method": "gated", "encoder": "bag"}]).saved
"""
RECIPE = """
name: mine
output: runs/mine
host:
  new:
    family: my-marian
    d_model: 16
    encoder_layers: 1
    decoder_layers: 1
    encoder_attention_heads: 2
    decoder_attention_heads: 2
    encoder_ffn_dim: 16
    decoder_ffn_dim: 16
    max_position_embeddings: 96
  tokenizer: {vocab_size: 400}
encoders:
  bag: {source: bag, builder: bag}
glue:
  - {method: pooled, encoder: bag, bias: false}
data:
  train: {synthetic: train}
  dev: {synthetic: dev}
  synthetic_pairs: 2000
  batch_tokens: 512
train: {max_steps: 2, eval_strategy: "no", load_best_model_at_end: false}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that sees this one's packages, with the plug-in installed by pip."""
    root = tmp_path_factory.mktemp("plugin")
    place = root / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    ours = [sysconfig.get_paths()["purelib"], str(Path(fusion.__file__).parents[1])]
    lines = [f"import site; site.addsitedir({path!r})" for path in ours]
    (packages / "ours.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copytree(PACKAGE, root / "package", ignore=shutil.ignore_patterns("__pycache__"))
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(place, "-m", "pip", *install, str(root / "package"))
    return place


def run(environment: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(environment / "bin" / "python"), *arguments],
        cwd=environment.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_is_listed_with_its_name_and_version(environment: Path) -> None:
    listed = run(environment, "-m", "fusion", "list")
    for name in ("bag", "pooled", "my-marian"):
        (line,) = [line for line in listed.split("\n") if f" {name} " in line]
        assert "fusion_example" in line and "fusion-example 1.0" in line


def test_a_new_process_reads_a_model_that_has_only_its_encoder_from_the_package(
    environment: Path,
) -> None:
    run(environment, "-W", "ignore", "-c", SAVED)
    assert "are what the ledger says" in run(environment, "-m", "fusion", "verify", "bench/saved")


@pytest.mark.slow
def test_the_kit_passes_and_a_recipe_trains_verifies_and_translates(environment: Path) -> None:
    assert run(environment, "-W", "ignore", "-c", CHECKS).startswith("[16, 19, 18]")
    (environment.parent / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    run(environment, "-m", "fusion", "train", "mine.yaml")
    run(environment, "-m", "fusion", "verify", "runs/mine")
    (environment.parent / "text.en").write_text("The dog sleeps.\n", encoding="utf-8")
    assert run(environment, "-m", "fusion", "translate", "runs/mine", "text.en").count("\n") == 1


def test_the_package_is_short() -> None:
    code = (PACKAGE / "fusion_example.py").read_text(encoding="utf-8").split("\n")
    assert len([line for line in code if line.strip()]) <= 70
