"""Every encoder that the tests can build passes the conformance kit."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_encoders import ENCODERS, tokenizer_of
from transformers import AutoConfig, PreTrainedTokenizerBase

from fusion.testing import check_encoder
from fusion.testing.bench import EncoderChoice

# encoder -> the check that transformers' own model fails by itself, and why
LIMITS = {
    "canine": ("dtype", "in float64 its states are not finite"),
    "deberta": ("autocast", "it fills masks with float32's smallest number"),
    "fnet": ("dtype", "its Fourier transform has no bfloat16"),
    "ibert": ("checkpointing", "its embeddings are a tuple"),
    "prophetnet": ("dtype", "in float64 its states are not finite"),
    "t5gemma": ("dtype", "its mask is infinite in its own float32 softmax"),
    "xmod": ("autocast", "it collects its languages' bfloat16 states in a float32 tensor"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_every_encoder_passes(kind: str) -> None:
    def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
        return tokenizer_of(kind, folder)

    choice = EncoderChoice(AutoConfig.for_model(kind, **ENCODERS[kind][0]), tokenizer=tokenizer)
    check_encoder(choice, skip={"compile", LIMITS.get(kind, ("compile", ""))[0]})
