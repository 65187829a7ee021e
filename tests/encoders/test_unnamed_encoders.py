"""Encoders that the code does not name work with no change to it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from tiny_encoders import BERT, ENCODERS, tokenizer_of
from transformers import AutoConfig

import fusion
from fusion.testing import check_encoder
from fusion.testing.bench import EncoderChoice

SIZES = {**BERT, "hidden_size": 32}
# model type -> what its config needs besides, and the checks that the plain model fails as well
UNNAMED: dict[str, tuple[dict[str, Any], Collection[str]]] = {
    "bert-generation": ({}, ()),
    "esmc": ({}, ()),
    "layoutlm": ({}, ()),
    "lilt": ({"hidden_size": 48}, ()),
    "mra": ({}, ("dtype",)),  # its attention gives float32, whatever the weights are
    "roc_bert": (
        {
            **{"shape_vocab_size": 10, "shape_embed_dim": 8},
            **{"pronunciation_vocab_size": 10, "pronunciation_embed_dim": 8},
        },
        (),
    ),
    "splinter": ({}, ()),
    "tapas": ({}, ()),
}


@pytest.mark.parametrize("kind", sorted(UNNAMED))
def test_the_code_names_none_of_them(kind: str) -> None:
    files = Path(fusion.__file__).parent.rglob("*.py")
    named = [file for file in files if re.search(rf"\b{kind}\b", file.read_text(encoding="utf-8"))]
    assert named == [] and kind not in ENCODERS


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(UNNAMED))
def test_an_encoder_that_the_code_does_not_name_passes_the_kit(kind: str) -> None:
    more, skip = UNNAMED[kind]
    config = AutoConfig.for_model(kind, **(SIZES | more))
    check_encoder(
        EncoderChoice(config, tokenizer=lambda folder: tokenizer_of("bert", folder)), skip=skip
    )
