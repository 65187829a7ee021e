"""Five real models, tiny, as `save_pretrained` writes them, and their files written anew."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging

from fusion.checkpoints.directory import open_source
from fusion.warmstart import parameters_on_meta

State = dict[str, Tensor]

IDS = {"pad_token_id": 0, "eos_token_id": 1}
SEQ2SEQ = {
    **IDS,
    **{"bos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None},
    **{"vocab_size": 23, "d_model": 8, "max_position_embeddings": 16, "decoder_layers": 2},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 12 for side in ("encoder", "decoder")},
}
T5 = {
    **IDS,
    **{"vocab_size": 23, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_heads": 2},
    **{"num_decoder_layers": 2, "decoder_start_token_id": 0},
}
BERT = {
    "pad_token_id": 0,
    **{"vocab_size": 23, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12},
    "max_position_embeddings": 16,
}


@dataclass(frozen=True)
class Kind:
    """A model class, the option that sets its depth, and where its layers are."""

    model_class: str
    options: dict[str, object]
    depth: str
    layers: str


KINDS = {
    "marian": Kind("MarianMTModel", SEQ2SEQ, "encoder_layers", "model.encoder.layers"),
    "bart": Kind("BartForConditionalGeneration", SEQ2SEQ, "encoder_layers", "model.encoder.layers"),
    "t5": Kind("T5ForConditionalGeneration", T5, "num_layers", "encoder.block"),
    "bert": Kind("BertForMaskedLM", BERT, "num_hidden_layers", "bert.encoder.layer"),
    "roberta": Kind("RobertaForMaskedLM", BERT, "num_hidden_layers", "roberta.encoder.layer"),
}


@dataclass(frozen=True)
class Tiny:
    """A model's tensors as saved.

    Attributes:
        empty: the model on meta
        state: what is in the file
        digests: of the file's tensors, recorded before any fault
        ties: name in the file -> names of the same tensor that are not in it
        layers: prefix of the layers, without the number
    """

    empty: nn.Module
    state: State
    digests: dict[str, str]
    ties: dict[str, list[str]]
    layers: str

    def fresh(self) -> nn.Module:
        """Another one on meta."""
        return copy.deepcopy(self.empty)


@functools.cache
def tiny(name: str, depth: int = 3) -> Tiny:
    """Build a model with no tensor at a special value, and save it."""
    kind = KINDS[name]
    model_class = getattr(transformers, kind.model_class)
    config = model_class.config_class(**kind.options, **{kind.depth: depth})
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = model_class(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if "embed_positions" not in key:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        state = load_file(Path(folder) / "model.safetensors")
        source = open_source(folder)
        digests = {key: source.digest(key) for key in source.tensors()}
    with parameters_on_meta():
        empty = model_class(config)
    names: dict[int, list[str]] = {}
    for key, parameter in empty.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(key)
    ties = {
        key: [other for other in group if other != key]
        for group in names.values()
        for key in group
        if key in state and len(group) > 1
    }
    return Tiny(empty, state, digests, ties, kind.layers)


def _safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def _torch(state: State, folder: Path) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def _torch_legacy(state: State, folder: Path) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def _shards(state: State, folder: Path) -> Path:
    keys, placed = list(state), {}
    half = len(keys) // 2
    for number, part in enumerate((keys[:half], keys[half:]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder / "model-00002-of-00002.safetensors"


# each writes a state into a folder, and gives one of the files that hold tensors
WRITERS: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": _safetensors,
    "sharded safetensors": _shards,
    "torch": _torch,
    "legacy torch": _torch_legacy,
}
