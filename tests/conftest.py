"""Tiny real parts in temporary directories: hosts, encoders, and recipes that put them together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoTokenizer,
    BartConfig,
    MarianConfig,
    PretrainedConfig,
    T5Config,
)

from fusion.recipe import Recipe, SentencePieceSpec, validate_recipe
from fusion.subwords import train_tokenizer
from fusion.synthetic import generate

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: every core has a worker


LONG = {"end_to_end", "testing", "benchmarks", "memory_cache", "estimates", "proposals"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the workers end at about the same time."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))


SENTENCES = [
    "the cat sleeps .",
    "a very old dog sees the small cat near the house .",
    "the teacher reads .",
]
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORD_PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "?", "!", "'"),
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *(word for word in WORDS if word not in LETTERS),
]
RecipeMaker = Callable[..., Recipe]
EncoderMaker = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece tokenizer of 150 pieces, trained on synthetic sentences."""
    pairs = generate(seed=1, train_pairs=2000).splits["train"][:300]
    text = [line for pair in pairs for line in pair] + SENTENCES
    directory = tmp_path_factory.mktemp("tokenizer") / "joint"
    train_tokenizer(SentencePieceSpec(vocab_size=150), text, directory, "en", "de")
    return directory


def _save(model_class: str, config: PretrainedConfig, tokenizer: Any, directory: Path) -> Path:
    """A plain transformers directory with random weights, none of them at a special value.

    The weights do not depend on the tests that ran before.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = getattr(transformers, model_class)(config).eval()
    computed = "embed_positions"  # sinusoids stay what they are
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad and not (computed in name and config.model_type == "marian"):
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.15)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def host_dirs(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Marian, BART and T5 hosts: width 32, 2+2 layers, 4 heads, one tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    size, eos, pad = len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = {"vocab_size": size, "pad_token_id": pad, "eos_token_id": eos}
    ids |= {"decoder_start_token_id": pad, "bos_token_id": None}
    like_bart = {
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
        **{"d_model": 32, "max_position_embeddings": 128, "forced_eos_token_id": None},
    }
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    configs = {
        "marian": ("MarianMTModel", MarianConfig(**ids, **like_bart)),
        "bart": ("BartForConditionalGeneration", BartConfig(**ids, **like_bart)),
        "t5": ("T5ForConditionalGeneration", T5Config(**ids, **t5, num_decoder_layers=2)),
    }
    root = tmp_path_factory.mktemp("hosts")
    return {
        name: _save(model_class, config, tokenizer, root / name)
        for name, (model_class, config) in configs.items()
    }


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderMaker:
    """`make_encoder("RobertaModel", hidden_size=24, ...)` -> a directory with its tokenizer.

    `pad` is the id of [PAD]. The vocabulary is written by hand; any Latin word can be spelled.
    """
    made: dict[str, Path] = {}

    def make(model_class: str, *, pad: int = 0, model_max_length: int = 64, **options: Any) -> Path:
        key = repr((model_class, pad, model_max_length, sorted(options.items())))
        if key not in made:
            root = tmp_path_factory.mktemp("encoder")
            pieces = [piece for piece in WORD_PIECES if piece != "[PAD]"]
            pieces.insert(pad, "[PAD]")
            (root / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
            tokenizer = transformers.BertTokenizerFast(
                vocab=str(root / "vocab.txt"), model_max_length=model_max_length
            )
            config_class = getattr(transformers, model_class).config_class
            config = config_class(vocab_size=len(pieces), pad_token_id=pad, **options)
            made[key] = _save(model_class, config, tokenizer, root / "saved")
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_bert(make_encoder: EncoderMaker) -> Callable[[int], Path]:
    """`make_bert(width)` -> a BERT with 2 layers and 64 positions."""
    return lambda width: make_encoder(
        "BertModel",
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="session")
def bert_dir(make_bert: Callable[[int], Path]) -> Path:
    """A BERT of width 24."""
    return make_bert(24)


@pytest.fixture(scope="session")
def make_recipe(host_dirs: dict[str, Path], bert_dir: Path) -> RecipeMaker:
    """`make_recipe(host="marian", glue=[...], encoders={name: {...}})` -> a Recipe.

    By default BERT is the encoder, read by gated glue in the usual sites. `encoder=` adds settings
    to that default, `method=` and further keywords make its glue; `host_settings=` is a whole host.
    """

    def make(
        host: str = "marian",
        *,
        method: str = "gated",
        encoder: dict[str, Any] | None = None,
        encoders: dict[str, dict[str, Any]] | None = None,
        glue: list[dict[str, Any]] | None = None,
        host_settings: dict[str, Any] | None = None,
        seed: int = 1,
        generate: dict[str, Any] | None = None,
        **options: Any,
    ) -> Recipe:
        if encoders is None:
            encoders = {"bert": {"source": str(bert_dir)} | (encoder or {})}
        if glue is None:
            glue = [{"method": method, "encoder": name, **options} for name in encoders]
        raw = {
            "name": "test",
            "seed": seed,
            "output": "never-written",
            "host": host_settings or {"source": str(host_dirs[host])},
            "encoders": encoders,
            "glue": glue,
            "data": {"train": {"synthetic": "train"}, "dev": {"synthetic": "dev"}},
            "generate": {"max_new_tokens": 8} | (generate or {}),
        }
        return validate_recipe(raw, Path("test.yaml"))

    return make


@pytest.fixture
def open_glue() -> Callable[[Any], Any]:
    """Give every glue tensor of a model random values, so that no gate or projection is closed."""

    def open_all(model: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for tensor in [*model.glue.parameters(), *model.mixes.parameters()]:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(noise.to(tensor.dtype), alpha=0.5)
        return model

    return open_all
