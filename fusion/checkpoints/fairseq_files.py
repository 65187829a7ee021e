"""fairseq's dictionaries read, and its checkpoints written.

Checked: what is written is read back tensor for tensor; fairseq itself has not loaded it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.errors import SourceError
from fusion.writing import whole

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def read_dictionary(path: Path) -> list[str]:
    """Tokens by id of a `dict.LANG.txt`: four special ones, then a token and its count a line.

    Raises:
        SourceError: a line without a count, or a token that is there twice.
    """
    tokens, seen = list(SPECIAL), set(SPECIAL)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        token, _, count = line.rstrip().removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not count.isdigit():
            raise SourceError(f"{path}:{number}: a token and its count were expected: {line!r}")
        if token in seen and not line.endswith("#fairseq:overwrite"):
            raise SourceError(f"{path}:{number}: {token!r} is there twice")
        tokens.append(token)
        seen.add(token)
    return tokens


def write_fairseq(
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    path: str | Path,
    copies: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint that fairseq loads for generation (`args` style).

    Args:
        tensors: by fairseq's names, as rules run backwards give them; what is no parameter
            (`version`, `_float_tensor`) and shared embeddings are added where they are missing
        arguments: the options, as `Foreign.arguments` has them
        copies: as `Foreign.copies`
    """
    state = dict(tensors)
    for name, of in (copies or {}).items():
        state.setdefault(name, state[of])
    if arguments.get("share_all_embeddings"):
        state.setdefault("decoder.embed_tokens.weight", state["encoder.embed_tokens.weight"])
    for side in ("encoder", "decoder"):
        state.setdefault(f"{side}.version", torch.tensor([3.0]))
        if f"{side}.embed_positions.weight" not in state:
            state.setdefault(f"{side}.embed_positions._float_tensor", torch.zeros(1))
    content = {
        "args": argparse.Namespace(**arguments),
        "model": state,
        "optimizer_history": [
            {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }
    with whole(Path(path)) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
