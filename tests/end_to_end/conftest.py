"""A tiny host, a tiny random BERT, tiny text, and the real command line on them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer

import fusion

HOST = """
name: tiny-host
seed: 3
output: runs/host
host:
  new:
    family: marian
    d_model: 16
    encoder_layers: 1
    decoder_layers: 1
    encoder_ffn_dim: 32
    decoder_ffn_dim: 32
    encoder_attention_heads: 2
    decoder_attention_heads: 2
    dropout: 0.1
    max_position_embeddings: 96
  tokenizer: {vocab_size: 400}
data:
  train: {synthetic: train}
  dev: {synthetic: dev}
  tests:
    small: {source: small.en, target: small.de}
  synthetic_pairs: 2000
  batch_tokens: 512
train:
  max_steps: 12
  learning_rate: 0.003
  warmup_steps: 2
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 4
  dev_sentences: 8
  save_total_limit: 10
generate: {num_beams: 2}
"""

FUSED = """
extends: host.yaml
name: tiny-fused
output: runs/fused
host: {source: "recipe:host.yaml", new: null, tokenizer: null}
encoders:
  bert: {source: bert, overflow: truncate}
glue:
  - {method: gated, encoder: bert}
  - {method: bert-fused, encoder: bert, drop_net: 1.0}
"""

ENGLISH = ["The old teacher reads a book.", "A child sees the garden.", "The dog sleeps."]
GERMAN = ["Der alte Lehrer liest ein Buch.", "Ein Kind sieht den Garten.", "Der Hund schläft."]


@dataclass
class Workspace:
    """A folder with recipes and text, and the command line in it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """One thread, no hub, and the package under test."""
        root = str(Path(fusion.__file__).parents[1])
        return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}

    def command(self, *arguments: str, module: tuple[str, ...] = ("-m", "fusion")) -> list[str]:
        """The command line of `python -m fusion`."""
        return [sys.executable, *module, *arguments]

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command of fusion to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=300,
        )

    def ranks(self, count: int, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command of fusion on several ranks."""
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
        return subprocess.run(
            self.command(*arguments, module=(*launch, "-m", "fusion")),
            cwd=self.folder,
            env=self.environment | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            timeout=300,
        )

    def tensors(self, model: str) -> dict[str, Tensor]:
        """Every tensor in the files of a saved model."""
        root = self.folder / model
        found = {}
        for path in sorted(root.rglob("*.safetensors")):
            for name, tensor in load_file(path).items():
                found[f"{path.relative_to(root)}:{name}"] = tensor
        assert found
        return found


def make_bert(folder: Path) -> None:
    """A random BERT that spells words letter by letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "!", "'"]
    pieces += [*letters, *(f"##{letter}" for letter in letters)]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=96,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Recipes, text and the encoder, nothing trained."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "host.yaml").write_text(HOST, encoding="utf-8")
    (folder / "fused.yaml").write_text(FUSED, encoding="utf-8")
    (folder / "small.en").write_text("\n".join(ENGLISH) + "\n", encoding="utf-8")
    (folder / "small.de").write_text("\n".join(GERMAN) + "\n", encoding="utf-8")
    make_bert(folder / "bert")
    return Workspace(folder)


@dataclass
class Trained:
    """A finished run and what its command said."""

    workspace: Workspace
    said: str
    printed: str


@pytest.fixture(scope="session")
def trained(workspace: Workspace) -> Trained:
    """`fusion train fused.yaml`, undisturbed."""
    done = workspace.run("train", "fused.yaml")
    said = done.stderr.decode()
    assert done.returncode == 0, said
    return Trained(workspace, said, done.stdout.decode())
