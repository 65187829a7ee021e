"""Methods at embeddings, at the encoder's output, in its place, and in the loss: a whole life."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from fusion.check import check_model
from fusion.composition import Composition, compose, plan
from fusion.errors import RecipeError
from fusion.glue.base import Glue
from fusion.model import FusedModel
from fusion.processor import FusionProcessor
from fusion.saved import load_model, save_model
from fusion.verify import verify_model

HOSTS = ["marian", "bart", "t5"]
TARGETS = ["ein Hund .", "die sehr alte Katze schläft", "er liest"]
# name -> (method, its options, the encoder's layer)
METHODS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "switch": ("dynamic-switch", {}, -1),
    "switch-neutral": ("dynamic-switch", {"start": "neutral"}, "mix"),
    "added": ("embedding", {}, -1),
    "added-neutral": ("embedding", {"start": "neutral"}, -1),
    "in-place": ("embedding", {"mode": "replace", "last": 2}, "all"),
    "distill": ("distill", {"weight": 0.2}, -1),
    "distill-trained": ("distill", {"align": "mean", "projection": "trained"}, "mix"),
    "prefix": ("soft-prefix", {}, -1),
    "prefix-mlp": ("soft-prefix", {"projector": "mlp", "boundary": False}, "mix"),
    "replaced": ("replace-encoder", {}, -1),
}
NEUTRAL = ["switch-neutral", "added-neutral", "distill", "distill-trained"]
IN_THE_OUTPUT = [name for name in METHODS if not name.startswith("distill")]
Maker = Callable[..., Composition]


@pytest.fixture
def make(make_recipe: Any) -> Maker:
    """`make("prefix", "bart")`: a composition."""

    def composed(name: str, host: str = "marian", **more: Any) -> Composition:
        method, options, layer = METHODS[name]
        return compose(
            make_recipe(host, method=method, encoder={"layer": layer}, **options, **more)
        )

    return composed


@pytest.fixture
def opened(make: Maker, open_glue: Callable[[Any], Any]) -> Maker:
    """The same, with no gate or projection closed."""

    def composed(*args: Any, **more: Any) -> Composition:
        composition = make(*args, **more)
        open_glue(composition.model)
        return composition

    return composed


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", METHODS)
def test_from_a_recipe_to_a_training_step_to_a_saved_model_that_verifies(
    make_recipe: Any, make: Maker, sentences: list[str], tmp_path: Path, name: str, host: str
) -> None:
    method, options, layer = METHODS[name]
    recipe = make_recipe(host, method=method, encoder={"layer": layer}, **options)
    assert plan(recipe).problems == []
    composition = compose(recipe)
    model, processor = composition.model, composition.processor
    batch = processor(sentences, TARGETS)
    assert check_model(model, batch).problems == []
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("glue.") for n in moved)
    assert any(n.startswith("host.") for n in moved)
    assert not any(n.startswith("encoders.") for n in moved)
    made = model.eval().generate(**batch, num_beams=4)

    save_model(model, tmp_path / "saved", processor)
    assert verify_model(tmp_path / "saved") == []
    loaded = load_model(tmp_path / "saved")
    again = FusionProcessor.from_pretrained(tmp_path / "saved")(sentences, TARGETS)
    assert torch.equal(logits(loaded, again), logits(model, batch))
    assert torch.equal(loaded.generate(**again, num_beams=4), made)
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == wanted


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_start_is_the_host_bit_for_bit(
    make: Maker, host_dirs: dict[str, Path], sentences: list[str], name: str, host: str
) -> None:
    composition = make(name, host)
    assert composition.model.is_neutral
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dirs[host]).eval()
    batch = composition.processor(sentences, TARGETS)
    own = {k: v for k, v in batch.items() if not k.startswith("bert_")}
    assert torch.equal(logits(composition.model, batch), logits(plain, own))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_neutral_says_so(make: Maker, name: str) -> None:
    assert make(name).model.is_neutral == (name in NEUTRAL)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", IN_THE_OUTPUT)
def test_the_memory_reaches_the_output_and_removing_the_glue_gives_the_host_back(
    opened: Maker, host_dirs: dict[str, Path], sentences: list[str], name: str, host: str
) -> None:
    composition = opened(name, host)
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    other = batch | {"bert_input_ids": batch["bert_input_ids"].clone()}
    other["bert_input_ids"][:, 1] = 5
    assert not torch.allclose(logits(model, batch), logits(model, other))
    assert "_fusion_reader" not in vars(model.host.get_decoder().embed_tokens)
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dirs[host]).eval()
    own = {k: v for k, v in batch.items() if not k.startswith("bert_")}
    assert torch.equal(logits(model.remove_glue(), own), logits(plain, own))


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", METHODS)
def test_generation_is_the_same_with_and_without_cache_alone_and_in_a_batch(
    opened: Maker, sentences: list[str], name: str, host: str, beams: int
) -> None:
    composition = opened(name, host)
    model, processor = composition.model.double(), composition.processor
    batch = processor(sentences)
    made = [model.generate(**batch, num_beams=beams, use_cache=c) for c in (True, False)]
    assert torch.equal(*made)
    for sentence, row in zip(sentences, made[0], strict=True):
        alone = model.generate(**processor([sentence]), num_beams=beams)[0]
        assert row[: len(alone)].tolist() == alone.tolist()
        assert set(row[len(alone) :].tolist()) <= {model.config.pad_token_id}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", METHODS)
def test_step_by_step_decoding_with_a_cache_is_the_full_pass(
    opened: Maker, sentences: list[str], name: str, host: str
) -> None:
    composition = opened(name, host)
    model, batch = composition.model.double(), composition.processor(sentences)
    decoder_ids = model.generate(**batch, num_beams=1)[:, :6]
    with torch.no_grad():
        full = model(**batch, decoder_input_ids=decoder_ids).logits
        encoded, cache, steps = model.get_encoder()(**batch), None, []
        for position in range(decoder_ids.shape[1]):
            output = model(
                attention_mask=batch["attention_mask"],
                decoder_input_ids=decoder_ids[:, position : position + 1],
                encoder_outputs=encoded,
                cache=cache,
                use_cache=True,
            )
            cache = output.cache
            steps.append(output.logits)
    assert (torch.cat(steps, 1) - full).abs().max() < 1e-10


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_sampling_with_a_seed_is_the_same_with_and_without_cache(
    opened: Maker, sentences: list[str], name: str, several: int
) -> None:
    composition = opened(name, "bart")
    model, batch = composition.model, composition.processor(sentences)
    made = []
    for cache in (True, False):
        torch.manual_seed(5)
        options = {"do_sample": True, "num_beams": 1, "num_return_sequences": several}
        made.append(model.generate(**batch, **options, use_cache=cache))
    assert made[0].shape[0] == several * len(sentences)
    assert torch.equal(*made)


@pytest.mark.parametrize("name", METHODS)
def test_logits_do_not_depend_on_padding_or_on_the_rest_of_the_batch(
    opened: Maker, sentences: list[str], name: str
) -> None:
    composition = opened(name)
    model, processor = composition.model.double(), composition.processor
    together = logits(model, processor(sentences, TARGETS))
    for row, (sentence, target) in enumerate(zip(sentences, TARGETS, strict=True)):
        alone = logits(model, processor([sentence], [target]))[0]
        assert (together[row, : len(alone)] - alone).abs().max() < 1e-10


def test_the_encoders_of_a_host_are_read_token_by_token(
    make_recipe: Any, host_dirs: dict[str, Path], sentences: list[str], open_glue: Any
) -> None:
    """The host's own tokenizer in the encoder: here another host's encoder."""
    encoders = {"other": {"source": str(host_dirs["t5"])}}
    glue = [
        {"method": "dynamic-switch", "encoder": "other", "align": "tokens", "start": "neutral"},
        {"method": "distill", "encoder": "other", "align": "tokens"},
    ]
    composition = compose(make_recipe(encoders=encoders, glue=glue))
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    assert check_model(model, batch).problems == []
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dirs["marian"]).eval()
    own = {k: v for k, v in batch.items() if not k.startswith("other_")}
    assert torch.equal(logits(model, batch), logits(plain, own))
    open_glue(model)
    made = [model.generate(**batch, num_beams=4, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*made)


# --- several encoders, and memory that was computed before ---------------------------------------


@pytest.mark.parametrize("name", IN_THE_OUTPUT)
def test_memory_given_beforehand_is_memory_computed_on_the_fly(
    opened: Maker, sentences: list[str], name: str
) -> None:
    composition = opened(name)
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    part = model.encoders["bert"]
    states = part(batch["bert_input_ids"], batch["bert_attention_mask"]).states
    assert states.dim() == (3 if METHODS[name][2] == -1 else 4)
    expected, made = logits(model, batch), model.generate(**batch, num_beams=4)
    whole = {k: v for k, v in batch.items() if k != "bert_input_ids"}
    assert torch.allclose(logits(model, whole | {"bert_memory": states}), expected, atol=1e-6)
    assert torch.equal(model.generate(**whole, bert_memory=states, num_beams=4), made)
    cached = torch.tensor([True, False, True])
    holes = states.clone()
    holes[..., ~cached, :, :] = 0
    some = batch | {"bert_memory": holes, "bert_cached": cached}
    assert torch.allclose(logits(model, some), expected, atol=1e-5)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", ["gated", *(n for n in IN_THE_OUTPUT if n != "in-place")])
def test_two_encoders_read_together_generate_alike_with_and_without_cache(
    make_recipe: Any,
    make_bert: Callable[[int], Path],
    open_glue: Any,
    sentences: list[str],
    name: str,
    host: str,
) -> None:
    method, options, layer = METHODS.get(name, ("gated", {}, -1))
    encoders = {n: {"source": str(make_bert(w)), "layer": layer} for n, w in (("a", 24), ("b", 32))}
    glue = [{"method": method, "encoder": ["a", "b"], **options}]
    composition = compose(make_recipe(host, encoders=encoders, glue=glue))
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    assert check_model(model, batch).problems == []
    open_glue(model)
    for of in ("a", "b"):
        other = batch | {f"{of}_input_ids": batch[f"{of}_input_ids"].clone()}
        other[f"{of}_input_ids"][:, 1] = 5
        assert not torch.allclose(logits(model, batch), logits(model, other))
    for beams in (1, 4):
        made = [model.generate(**batch, num_beams=beams, use_cache=c) for c in (True, False)]
        assert torch.equal(*made)


def test_the_last_layers_of_two_encoders_are_refused(
    make_recipe: Any, make_bert: Callable[[int], Path]
) -> None:
    encoders = {n: {"source": str(make_bert(24)), "layer": "all"} for n in ("a", "b")}
    glue = [{"method": "embedding", "encoder": ["a", "b"], "last": 2}]
    with pytest.raises(RecipeError, match="reads the layers of one encoder; found 2"):
        compose(make_recipe(encoders=encoders, glue=glue))


def test_glue_at_the_embeddings_in_the_loss_and_at_the_output_work_together(
    make_recipe: Any, sentences: list[str], open_glue: Any
) -> None:
    glue = [
        {"method": method, "encoder": "bert"}
        for method in ("soft-prefix", "distill", "dynamic-switch", "gated")
    ]
    composition = compose(make_recipe(glue=glue))
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    assert isinstance(model, FusedModel)
    assert check_model(model, batch).problems == []
    assert all(isinstance(module, Glue) for module in model.glue_modules.values())
    open_glue(model)
    made = [model.generate(**batch, num_beams=4, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*made)
