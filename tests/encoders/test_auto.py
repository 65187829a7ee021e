"""Every text encoder of transformers gives memory through a recipe, without code that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import ENCODERS, WIDTH, save_encoder
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

import fusion
from fusion.composition import Composition, compose, plan
from fusion.encoders.auto import BY_LENGTH, ONE_MEMORY, UNSUPPORTED, build_auto_encoder
from fusion.errors import DataError, RecipeError
from fusion.ledger import Origin
from fusion.model import FusedModel

EncoderDir = Callable[[str], Path]
NAMES = list(ENCODERS)
TEXTS = ["i", "a cat sees the old dog .", "the dog sleeps"]


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> EncoderDir:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_encoder(kind, tmp_path_factory.mktemp("encoder") / kind)
        return made[kind]

    return make


@pytest.fixture
def composed(make_recipe: Any, encoder_dir: EncoderDir) -> Callable[..., Composition]:
    def make(kind: str, **settings: Any) -> Composition:
        encoders = {"bert": {"source": str(encoder_dir(kind))} | settings}
        return compose(make_recipe(encoders=encoders))

    return make


def plain(directory: Path, text: str, **options: Any) -> Any:
    """What transformers alone computes for one sentence."""
    model = AutoModel.from_pretrained(directory).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model.config, "attention_type", None) == "block_sparse":
        model.set_attention_type("original_full")
    ids = torch.tensor([AutoTokenizer.from_pretrained(directory)(text)["input_ids"]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **options)


@pytest.fixture(scope="session")
def once(make_recipe: Any, encoder_dir: EncoderDir) -> Callable[[str], Composition]:
    """`once("bert")` -> the same composition for every test that changes no encoder of it."""
    made: dict[str, Composition] = {}

    def make(kind: str) -> Composition:
        if kind not in made:
            made[kind] = compose(make_recipe(encoders={"bert": {"source": str(encoder_dir(kind))}}))
        return made[kind]

    return make


@pytest.mark.parametrize("kind", NAMES)
def test_a_sentence_has_its_own_memory_which_is_what_transformers_computes(
    once: Any, encoder_dir: EncoderDir, kind: str
) -> None:
    composition = once(kind)
    model, processor = composition.model, composition.processor
    with torch.no_grad():
        together = model.memories(processor(TEXTS))["bert"]
        assert together.states.shape[-1] == model.encoder_parts["bert"].width == WIDTH
        for index, text in enumerate(TEXTS):
            alone = model.memories(processor([text]))["bert"]
            assert alone.mask is None
            length = alone.states.shape[1]
            assert together.mask[index].tolist() == [
                position < length for position in range(together.mask.shape[1])
            ]
            found = together.states[index, :length]
            assert torch.allclose(found, alone.states[0], atol=1e-5), text
    expected = plain(encoder_dir(kind), TEXTS[1]).last_hidden_state
    assert torch.allclose(model.memories(processor(TEXTS[1:2]))["bert"].states, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [name for name in NAMES if name not in ONE_MEMORY])
def test_a_hidden_layer_or_the_mix_of_all_is_transformers_own(
    composed: Any, encoder_dir: EncoderDir, kind: str
) -> None:
    composition = composed(kind, layer="mix")
    model, batch = composition.model, composition.processor(TEXTS)
    hidden = plain(encoder_dir(kind), TEXTS[2], output_hidden_states=True).hidden_states
    mean = torch.stack(hidden).mean(dim=0)
    part = model.encoder_parts["bert"]
    with torch.no_grad():
        found = model.memories(batch)["bert"].states[2, : mean.shape[1]]
        assert torch.allclose(found, mean[0], atol=1e-5)
        part.layer = 1
        single = part(batch["bert_input_ids"], batch["bert_attention_mask"]).states
        assert torch.allclose(single[2, : mean.shape[1]], hidden[1][0], atol=1e-5)
    assert part.layers == len(hidden)


@pytest.mark.parametrize("kind", ONE_MEMORY)
@pytest.mark.parametrize("layer", [1, "mix"])
def test_an_encoder_with_shorter_hidden_layers_gives_the_last_one_alone(
    composed: Any, kind: str, layer: Any
) -> None:
    with pytest.raises(RecipeError, match=rf"encoders\.bert\.layer: {kind} has .*only -1"):
        composed(kind, layer=layer)


@pytest.mark.parametrize("kind", NAMES)
def test_every_encoder_is_frozen_accounted_for_trains_glue_and_is_read_back(
    once: Any, open_glue: Any, kind: str, tmp_path: Path
) -> None:
    composition = once(kind)
    model, processor = open_glue(composition.model), composition.processor
    entries = [e for e in composition.ledger if e.name.startswith("encoders.")]
    assert {e.origin for e in entries} <= {Origin.LOADED, Origin.COMPUTED, Origin.TIED}
    assert all(e.frozen for e in entries if e.kind == "parameter")
    assert composition.ledger.parameters(entries)[0] == 0
    batch = processor(TEXTS, ["ein", "Hund", "schläft"])
    model.train()
    assert not any(module.training for module in model.encoders["bert"].model.modules())
    model(**batch).loss.backward()
    assert all(p.grad is None for p in model.encoders.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.glue.parameters())
    model.eval()
    model.save_pretrained(tmp_path / "model")
    again = FusedModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    reading: dict[str, Tensor] = processor(TEXTS)
    assert model.generate(**reading, num_beams=2).shape[0] == 3


@pytest.mark.parametrize("kind", NAMES)
def test_the_longest_input_is_read_and_one_more_token_is_an_error(once: Any, kind: str) -> None:
    composition = once(kind)
    limit = ENCODERS[kind][1]
    encoder = composition.processor.encoders["bert"]
    assert encoder.limit == (limit or 1000)
    longest = limit or 90
    special = len(encoder.tokenizer("")["input_ids"])
    text = "a" * (longest - special)
    batch = composition.processor([text])
    assert batch["bert_input_ids"].shape == (1, longest)
    with torch.no_grad():
        states = composition.model.memories(batch)["bert"].states
    assert states.shape == (1, longest, WIDTH) and torch.isfinite(states).all()
    if limit is not None:
        with pytest.raises(DataError, match=f"{limit + 1} tokens for encoder bert, which reads"):
            composition.processor([text + "a"])


def test_a_plan_counts_what_compose_does_for_an_encoder_without_its_decoder(
    make_recipe: Any, encoder_dir: EncoderDir
) -> None:
    recipe = make_recipe(encoders={"bert": {"source": str(encoder_dir("t5"))}})
    planned, ledger = plan(recipe), compose(recipe).ledger
    assert planned.problems == []
    part = next(part for part in planned.parts if part.name == "encoders.bert.model")
    left_out = {k: w for k, w in ledger.ignored.items() if k.startswith("encoders.bert")}
    assert part.tensors["ignored"] == len(left_out)
    reasons = {why for key, why in left_out.items() if ".decoder." in key}
    assert reasons == {"the memory is the encoder's; the decoder is not built"}
    assert not any(".decoder." in name for name in ledger.entries if name.startswith("encoders."))


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_encoder_that_gives_no_memory_says_why(kind: str) -> None:
    with pytest.raises(RecipeError, match=f'"{kind}" cannot be an encoder: {UNSUPPORTED[kind]}'):
        build_auto_encoder(AutoConfig.for_model(kind))


def test_a_model_that_automodel_does_not_know_says_so() -> None:
    with pytest.raises(
        RecipeError, match='"encoder-decoder" cannot be an encoder: AutoModel does not'
    ):
        bert = AutoConfig.for_model("bert").to_dict()
        build_auto_encoder(AutoConfig.for_model("encoder-decoder", encoder=bert, decoder=bert))


def test_most_encoders_are_not_named_by_any_code_of_ours() -> None:
    root = Path(fusion.__file__).parent
    words = "\n".join(path.read_text(encoding="utf-8") for path in root.rglob("*.py"))
    unnamed = [kind for kind in NAMES if f'"{kind}"' not in words]
    assert {"gte", "neomme", "ultrabert", "eurobert", "luke", "mpnet"} <= set(unnamed)
    assert set(BY_LENGTH) <= set(NAMES)


def test_long_and_short_sentences_of_bigbird_do_not_change_each_other(once: Any) -> None:
    composition = once("big_bird")
    processor, model = composition.processor, composition.model
    with torch.no_grad():
        before = model.memories(processor(["a cat"]))["bert"].states
        long = model.memories(processor(["a" * 57, "a cat"]))["bert"].states
        after = model.memories(processor(["a cat"]))["bert"].states
    assert torch.equal(before, after)
    assert torch.allclose(long[1, : before.shape[1]], before[0], atol=1e-5)


def test_two_frozen_encoders_with_their_own_glue_train_and_generate(
    make_recipe: Any, encoder_dir: EncoderDir, open_glue: Any, tmp_path: Path
) -> None:
    encoders = {
        "xlm_r": {"source": str(encoder_dir("xlm-roberta"))},
        "t5": {"source": str(encoder_dir("t5")), "layer": "mix"},
    }
    glue = [
        {"method": "bert-fused", "encoder": "xlm_r", "sites": ["encoder.*.self_attention"]},
        {"method": "gated", "encoder": "t5", "sites": ["decoder.-1.cross_attention"]},
        {
            **{"name": "both", "method": "gated", "encoder": "xlm_r"},
            "sites": ["decoder.*.cross_attention"],
        },
    ]
    composition = compose(make_recipe(encoders=encoders, glue=glue))
    model, processor = open_glue(composition.model), composition.processor
    batch = processor(TEXTS, ["ein", "Hund", "schläft"])
    model.train()
    model(**batch).loss.backward()
    trained = {n.split(".")[0] for n, p in model.glue.named_parameters() if p.grad is not None}
    assert trained == {spec["name"] for spec in model.config.glue} and len(trained) == 3
    model.eval()
    reading = processor(TEXTS)
    cached = model.generate(**reading, num_beams=4)
    assert torch.equal(model.generate(**reading, num_beams=4, use_cache=False), cached)
    model.save_pretrained(tmp_path / "model")
    again = FusedModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
