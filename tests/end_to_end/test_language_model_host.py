"""A decoder-only host by the commands that a user types: trained, fused, translating."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from .conftest import Workspace

HOST = """
name: tiny-lm
seed: 3
output: runs/lm
host:
  new:
    family: gpt2
    n_embd: 16
    n_layer: 2
    n_head: 2
    n_positions: 192
    resid_pdrop: 0.1
  tokenizer: {vocab_size: 400}
  prompt: "{source}"
data:
  train: {synthetic: train}
  dev: {synthetic: dev}
  synthetic_pairs: 2000
  batch_tokens: 512
train:
  max_steps: 8
  learning_rate: 0.003
  eval_strategy: steps
  eval_steps: 4
  dev_sentences: 8
"""
FUSED = """
extends: lm.yaml
name: tiny-fused-lm
output: runs/fused-lm
host: {source: "recipe:lm.yaml", new: null, tokenizer: null}
encoders:
  bert: {source: bert, overflow: truncate}
glue:
  - {method: gated, encoder: bert}
memory_cache: {dir: memory}
"""


@pytest.mark.slow
def test_a_language_model_host_trains_fuses_verifies_and_translates(workspace: Workspace) -> None:
    folder = workspace.folder
    (folder / "lm.yaml").write_text(HOST, encoding="utf-8")
    (folder / "fused-lm.yaml").write_text(FUSED, encoding="utf-8")
    done = workspace.run("train", "fused-lm.yaml")
    assert done.returncode == 0, done.stderr.decode()
    record = json.loads((folder / "runs/fused-lm/run.json").read_text(encoding="utf-8"))
    assert record["updates"] == 8
    assert [entry["step"] for entry in record["history"] if "eval_bleu" in entry] == [4, 8]
    assert workspace.run("verify", "runs/fused-lm").returncode == 0
    text = b"The old teacher reads a book.\n\nA child sees the garden.\n"
    done = workspace.run("translate", "runs/fused-lm", stdin=text)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n")[1] == ""
    host = AutoModelForCausalLM.from_pretrained(folder / "runs/fused-lm/model/host")
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs/fused-lm/model/host")
    with torch.no_grad():
        assert torch.isfinite(host(**tokenizer(["A child."], return_tensors="pt")).logits).all()
