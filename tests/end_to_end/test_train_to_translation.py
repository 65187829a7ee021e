"""One recipe from nothing to a translated line, by the commands that a user types."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from fusion.saved import load_model

if TYPE_CHECKING:
    from .conftest import Trained, Workspace


def test_training_trains_the_host_first_and_leaves_scores_and_translations(
    trained: Trained,
) -> None:
    folder = trained.workspace.folder
    assert "tiny-fused: its host comes from" in trained.said
    assert trained.said.index("tiny-host: saved in") < trained.said.index("tiny-fused: saved in")
    for run in ("host", "fused"):
        record = json.loads((folder / "runs" / run / "run.json").read_text(encoding="utf-8"))
        assert record["updates"] == 12
        assert set(record["tests"]) == {"small"}
        assert [h["step"] for h in record["history"] if "eval_bleu" in h] == [4, 8, 12]
    translations = folder / "runs" / "fused" / "translations" / "small.txt"
    assert len(translations.read_text(encoding="utf-8").split("\n")) == 4
    assert "tiny-host" in trained.printed and "tiny-fused" in trained.printed


def test_a_trained_model_verifies(trained: Trained) -> None:
    done = trained.workspace.run("verify", "runs/fused")
    assert done.returncode == 0, done.stderr.decode()
    assert b"are what the ledger says" in done.stdout


def test_training_moves_host_and_glue_and_leaves_the_encoder(trained: Trained) -> None:
    workspace = trained.workspace
    host, fused = workspace.tensors("runs/host/model"), workspace.tensors("runs/fused/model")
    loaded = load_model(workspace.folder / "runs/fused/model").state_dict()
    for key, tensor in workspace.tensors("bert").items():
        name = key.removeprefix("model.safetensors:")
        assert torch.equal(loaded[f"encoders.bert.model.{name}"], tensor), name
    assert not any(key.startswith("encoders/") for key in fused)  # the source has it
    moved = [k for k, tensor in host.items() if not torch.equal(fused[f"host/{k}"], tensor)]
    assert len(moved) > len(host) / 2
    gates = [t for k, t in fused.items() if "gated" in k and k.endswith("gate")]
    assert gates and all(gate.abs().max() > 0 for gate in gates)


def test_translate_keeps_order_and_empty_lines_and_reads_unicode(trained: Trained) -> None:
    lines = ["The dog sleeps.", "", "Ein Übermut – 猫 🐈 naïve\u2028end", "   ", "A child sees."]
    text = ("\n".join(lines) + "\n").encode()
    done = trained.workspace.run("translate", "runs/fused", stdin=text)
    assert done.returncode == 0, done.stderr.decode()
    whole = done.stdout.decode("utf-8").split("\n")
    assert len(whole) == len(lines) + 1 and whole[-1] == ""
    assert whole[1] == "" and whole[3] == ""

    small = trained.workspace.run("translate", "runs/fused", "--buffer-size", "2", stdin=text)
    pieces = small.stdout.decode("utf-8").split("\n")
    assert [bool(piece) for piece in pieces] == [bool(line) for line in whole]
    turned = ("\n".join(reversed(lines)) + "\n").encode()
    back = trained.workspace.run("translate", "runs/fused/model", stdin=turned)
    assert back.stdout.decode("utf-8").split("\n")[:-1] == list(reversed(whole[:-1]))


def test_evaluate_gives_both_scores_with_signatures_as_json(trained: Trained) -> None:
    files = ("--source", "small.en", "--reference", "small.de")
    done = trained.workspace.run("evaluate", "runs/fused", *files, "--json")
    assert done.returncode == 0, done.stderr.decode()
    scores = json.loads(done.stdout)
    record = trained.workspace.folder / "runs" / "fused" / "run.json"
    recorded = json.loads(record.read_text(encoding="utf-8"))["tests"]["small"]
    for metric in ("bleu", "chrf"):
        assert "version:" in scores[metric]["signature"]
        assert scores[metric]["score"] == recorded[metric]["score"]


def test_a_second_train_does_nothing(trained: Trained) -> None:
    model = trained.workspace.folder / "runs" / "fused" / "model" / "glue.safetensors"
    before = model.stat().st_mtime_ns
    done = trained.workspace.run("train", "fused.yaml")
    assert done.returncode == 0, done.stderr.decode()
    assert b"already trained" in done.stderr
    assert model.stat().st_mtime_ns == before


def test_a_place_that_a_check_left_a_tokenizer_in_is_trained_in_with_one_of_its_own(
    workspace: Workspace,
) -> None:
    place = workspace.folder / "runs" / "checked"
    recipe = ("host.yaml", "output=runs/checked")
    checked = workspace.run("check", *recipe, "host.tokenizer.vocab_size=300")
    assert checked.returncode == 0, checked.stderr.decode()
    assert [path.name for path in place.iterdir()] == ["tokenizer"]
    trained = workspace.run("train", *recipe, "train.max_steps=1", "train.eval_steps=1")
    assert trained.returncode == 0, trained.stderr.decode()
    vocabulary = json.loads((place / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == 400
    for command in ("check", "build"):
        output = ("-o", "runs/built") if command == "build" else ()
        done = workspace.run(command, *recipe, "host.tokenizer.vocab_size=300", *output)
        assert done.returncode == 2 and "holds the run of another recipe" in done.stderr.decode()


def test_the_output_of_another_recipe_is_refused(trained: Trained) -> None:
    record = trained.workspace.folder / "runs" / "fused" / "recipe.json"
    before = record.read_bytes()
    done = trained.workspace.run("train", "fused.yaml", "seed=4")
    message = done.stderr.decode()
    assert done.returncode == 2
    assert "holds the run of another recipe" in message and "Traceback" not in message
    assert record.read_bytes() == before
