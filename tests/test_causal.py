"""Decoder-only hosts: the source is a prompt, and everything around the model is the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion.causal import CausalFusedModel, left_padded, positions
from fusion.check import check_model
from fusion.composition import Composition, compose, plan
from fusion.configuration import FusedConfig
from fusion.errors import FusionError, RecipeError
from fusion.model import FusedModel
from fusion.processor import FusionProcessor
from fusion.recipe import Recipe
from fusion.saved import load_model, save_model
from fusion.translate import translate
from fusion.verify import verify_model

sys.path.insert(0, str(Path(__file__).parent / "hosts"))
from tiny_causal import CAUSAL, batch, tiny_config

PROMPT = "the source {source} the target"


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_and_translations_are_those_of_the_language_model_alone(name: str) -> None:
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(tiny_config(name)).eval()
    model = CausalFusedModel(FusedConfig(host=plain.config.to_dict())).eval()
    model.host.load_state_dict(plain.state_dict())
    ids, mask, labels = batch()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            whole = torch.cat([ids[row, :length], labels[row, :-1]])[None]
            expected = plain(whole).logits[0, length - 1 :]
            torch.testing.assert_close(logits[row], expected, atol=1e-6, rtol=0)
    for beams in (1, 4):
        found = model.generate(ids, mask, max_length=6, num_beams=beams)
        again = model.generate(ids, mask, max_length=6, num_beams=beams, use_cache=False)
        assert torch.equal(found, again)
        alone = plain.generate(ids[:1], max_new_tokens=6, num_beams=beams)[0, 7:]
        assert found[0, : len(alone)].tolist() == alone.tolist()


def test_padding_moves_to_the_left_and_positions_count_real_tokens() -> None:
    ids, mask = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    moved, moved_mask = left_padded(ids, mask)
    assert moved.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert moved_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions(moved_mask).tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.fixture(scope="module")
def language_model(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with the joint tokenizer."""
    directory = tmp_path_factory.mktemp("language") / "llama"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = tiny_config("llama")
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, None
    config.max_position_embeddings = 256
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def composed(
    make_recipe: Callable[..., Recipe], host: Path, method: str, layer: Any = -1, **options: Any
) -> Composition:
    recipe = make_recipe(
        host_settings={"source": str(host), "prompt": PROMPT},
        method=method,
        encoder={"layer": layer},
        **options,
    )
    assert plan(recipe).problems == []
    return compose(recipe)


METHODS = [
    *(("gated", -1), ("bert-fused", -1), ("stacked", -1), ("joint-attention", -1)),
    *(("calm", "all"), ("soft-prefix", -1)),
]


@pytest.mark.parametrize(("method", "layer"), METHODS)
def test_glue_in_a_language_model_trains_translates_and_loads(
    method: str,
    layer: Any,
    make_recipe: Callable[..., Recipe],
    language_model: Path,
    open_glue: Callable[[Any], Any],
    sentences: list[str],
    tmp_path: Path,
) -> None:
    made = composed(make_recipe, language_model, method, layer)
    model, processor = made.model, made.processor
    assert isinstance(model, CausalFusedModel)
    found = check_model(model, processor(sentences, text_target=sentences[::-1]))
    assert found.problems == []
    before = translate(model, processor, sentences, num_beams=1)
    open_glue(model)
    first = translate(model, processor, sentences, num_beams=4)
    assert first == translate(model, processor, sentences, num_beams=4, use_cache=False)
    for number, sentence in enumerate(sentences):  # whatever else is in the batch
        assert translate(model, processor, [sentence], num_beams=4)[0] == first[number]
    assert first != before
    save_model(model, tmp_path / "saved", processor)
    assert verify_model(tmp_path / "saved") == []
    loaded = load_model(tmp_path / "saved")
    reader = FusionProcessor.from_pretrained(tmp_path / "saved")
    assert translate(loaded, reader, sentences, num_beams=4) == first


def test_taking_glue_out_of_a_language_model_gives_it_back_bit_for_bit(
    make_recipe: Callable[..., Recipe],
    language_model: Path,
    open_glue: Callable[[Any], Any],
    sentences: list[str],
) -> None:
    made = composed(make_recipe, language_model, "gated")
    inputs = made.processor(sentences, text_target=sentences)
    host = AutoModelForCausalLM.from_pretrained(language_model).eval()
    open_glue(made.model)
    with torch.no_grad():
        fused = made.model(**inputs).logits
        alone = made.model.remove_glue()
        ids = made.processor(sentences)["input_ids"]
        assert torch.equal(alone(ids).logits, host(ids).logits)
        assert not torch.equal(made.model(**inputs).logits, fused)


def test_a_language_model_without_a_prompt_is_an_error_that_shows_one(
    make_recipe: Callable[..., Recipe], language_model: Path
) -> None:
    with pytest.raises(
        RecipeError, match=r"host.prompt: llama is a decoder-only model.*\{source\}"
    ):
        plan(make_recipe(host_settings={"source": str(language_model)}))


def test_a_prompt_without_a_place_for_the_source_is_an_error(
    make_recipe: Callable[..., Recipe], language_model: Path
) -> None:
    with pytest.raises(FusionError, match=r"prompt needs \{source\}"):
        make_recipe(host_settings={"source": str(language_model), "prompt": "translate"})


def test_the_prompt_is_read_and_the_translation_ends_with_the_end_mark(
    make_recipe: Callable[..., Recipe], language_model: Path
) -> None:
    processor = composed(make_recipe, language_model, "gated").processor
    columns = processor.encode_pairs(["the cat sleeps ."], ["a dog ."])
    text = processor.tokenizer.decode(columns["input_ids"][0], skip_special_tokens=True)
    assert text == "the source the cat sleeps . the target"
    assert columns["labels"][0][-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.eos_token_id not in columns["labels"][0][:-1]


def test_a_prompt_goes_before_the_source_of_a_seq2seq_host_too(
    make_recipe: Callable[..., Recipe], host_dirs: dict[str, Path]
) -> None:
    settings = {"source": str(host_dirs["t5"]), "prompt": "the {source}"}
    made = compose(make_recipe(host_settings=settings))
    assert type(made.model) is FusedModel
    ids = made.processor.encode_sources(["the cat"])["input_ids"][0]
    assert made.processor.tokenizer.decode(ids, skip_special_tokens=True) == "the the cat"
