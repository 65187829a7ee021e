"""Parts that are configs and headers alone, and recipes in files."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from transformers import BertConfig, BertTokenizerFast, MarianConfig, PretrainedConfig

from fusion.recipe import Recipe

RecipeFile = Callable[[Recipe], Path]


def write_headers(model_class: str, config: PretrainedConfig, folder: Path) -> Path:
    """A directory whose weights are a valid safetensors header and nothing behind it but a hole."""
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    left_out = [*(model._keys_to_ignore_on_save or ())]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in model.state_dict().items():
        if name in (model._tied_weights_keys or {}) or any(re.search(p, name) for p in left_out):
            continue
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [*tensor.shape], "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    config.architectures = [model_class]
    config.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base host (512, 6+6) and a base encoder (12 x 768), all tuned, in batches of 16,384."""
    folder = tmp_path_factory.mktemp("base")
    sides = ("encoder", "decoder")
    host = MarianConfig(
        vocab_size=32000,
        d_model=512,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        **{f"{side}_layers": 6 for side in sides},
        **{f"{side}_ffn_dim": 2048 for side in sides},
        **{f"{side}_attention_heads": 8 for side in sides},
    )
    write_headers("MarianMTModel", host, folder / "host")
    write_headers("BertModel", BertConfig(), folder / "bert")
    text = {"source": "train.en", "target": "train.de"}
    raw = {
        "name": "base",
        "output": "out",
        "host": {"source": "host"},
        "encoders": {"bert": {"source": "bert", "freeze": False}},
        "glue": [{"method": "gated", "encoder": "bert"}],
        "data": {"train": text, "dev": text, "batch_tokens": 16384},
    }
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


@pytest.fixture
def recipe_file(tmp_path: Path) -> RecipeFile:
    """Write a recipe into a file."""

    def write(recipe: Recipe) -> Path:
        path = tmp_path / "recipe.yaml"
        content = recipe.model_dump(mode="json", exclude_defaults=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def experts(make_recipe: Callable[..., Recipe]) -> Recipe:
    """A new host whose tokens are routed to experts, which takes their values."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    sides = ("encoder", "decoder")
    layers = {f"num_sparse_{side}_layers": 1 for side in sides}
    layers |= {"num_layers": 2, "num_decoder_layers": 2, "num_experts": 4}
    new = {"family": "switch_transformers", **sizes, **layers}
    host = {"new": new, "tokenizer": {"vocab_size": 400}}
    return make_recipe(host_settings=host, encoders={}, glue=[])
