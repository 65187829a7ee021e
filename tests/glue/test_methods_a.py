"""From recipe to saved model: stacked, joint attention, CALM, bottleneck and LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from fusion.composition import Composition, compose
from fusion.errors import SiteError
from fusion.model import FusedModel
from fusion.verify import verify_model

BETWEEN = ["encoder.*.after_self_attention", "decoder.*.after_cross_attention"]
ATTENTION = ["encoder.*.self_attention", "decoder.*.self_attention", "decoder.*.cross_attention"]
GATED = {"method": "gated", "encoder": "bert"}
OF_BERT = "bert:encoder.layer.*.attention.self.query"

RECIPES: dict[str, list[dict[str, Any]]] = {
    "stacked": [{"method": "stacked", "encoder": "bert"}],
    "stacked-between": [{"method": "stacked", "encoder": "bert", "sites": BETWEEN}],
    "stacked-neutral": [{"method": "stacked", "encoder": "bert", "start": "neutral"}],
    "joint": [{"method": "joint-attention", "encoder": "bert", "sites": ATTENTION}],
    "joint-neutral": [
        {"method": "joint-attention", "encoder": "bert", "sites": ATTENTION, "start": "neutral"}
    ],
    "calm": [{"method": "calm", "encoder": "bert"}],
    "bottleneck": [{"method": "bottleneck", "width": 8}],
    "bottleneck-in-bert": [{"method": "bottleneck", "sites": ["bert.*.output"]}, GATED],
    "lora": [{"method": "lora", "r": 4}],
    "lora-in-bert": [{"method": "lora", "sites": [OF_BERT]}, GATED],
}
PAPER = ("stacked", "stacked-between", "joint")


@pytest.fixture
def composed(make_recipe: Any, host_dirs: dict[str, Path], bert_dir: Path) -> Any:
    """`composed("lora", "t5")` -> the composition; the host is frozen, as LoRA and adapters are
    published."""

    def make(name: str, host: str) -> Composition:
        glue = RECIPES[name]
        layer = "all" if name == "calm" else -1
        encoders = {"bert": {"source": str(bert_dir), "layer": layer}}
        if not any("encoder" in one for one in glue):
            encoders = {}
        settings = {"source": str(host_dirs[host]), "freeze": name in ("lora", "bottleneck")}
        return compose(make_recipe(encoders=encoders, glue=glue, host_settings=settings))

    return make


def own(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if not key.startswith("bert_")}


@pytest.mark.parametrize("host", ["marian", "bart", "t5"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_neutral_start_is_the_host_bit_for_bit_and_a_published_one_is_not(
    composed: Any, host_dirs: dict[str, Path], sentences: list[str], name: str, host: str
) -> None:
    composition = composed(name, host)
    model = composition.model
    batch = composition.processor(sentences, ["ein Hund .", "die Katze schläft", "er liest"])
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dirs[host]).eval()
    with torch.no_grad():
        expected = plain(**own(batch)).logits
        assert torch.equal(model(**batch).logits, expected) == (name not in PAPER)
        assert model.is_neutral == (name not in PAPER)
        with model.without_glue():
            assert torch.equal(model(**batch).logits, expected)
        assert torch.equal(model(**batch).logits, expected) == (name not in PAPER)
        assert torch.equal(model.remove_glue()(**own(batch)).logits, expected)
    settings = {"num_beams": 3, "max_new_tokens": 6}
    if name not in PAPER:
        model.placement.attach()
        found = model.generate(**batch, **settings, pad_token_id=plain.config.pad_token_id)
        assert torch.equal(found, plain.generate(**own(batch), **settings))


@pytest.mark.parametrize("host", ["marian", "t5"])
@pytest.mark.parametrize("name", RECIPES)
def test_open_glue_gets_gradients_generates_alike_with_and_without_cache_and_is_saved(
    composed: Any,
    open_glue: Any,
    sentences: list[str],
    name: str,
    host: str,
    tmp_path: Path,
) -> None:
    composition = composed(name, host)
    model = composition.model
    batch = composition.processor(sentences, ["ein Hund .", "die Katze schläft", "er liest"])
    with torch.no_grad():
        before = model(**batch).logits
        open_glue(model)
        logits = model(**batch).logits
    assert not torch.allclose(logits, before)
    model.train()
    model(**batch).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
        elif parameter_name.startswith("glue."):
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
            # a bias of all keys changes no softmax
            assert parameter.grad.any() or "attention.k_proj.bias" in parameter_name
    model.eval()
    texts = {key: value for key, value in batch.items() if key != "labels"}
    for beams in (1, 4):
        settings = {"num_beams": beams, "max_new_tokens": 7, "min_new_tokens": 5}
        cached = model.generate(**texts, **settings, use_cache=True)
        assert torch.equal(model.generate(**texts, **settings, use_cache=False), cached)
    model.save_pretrained(tmp_path / "model")
    assert verify_model(tmp_path / "model") == []
    with torch.no_grad():
        again = FusedModel.from_pretrained(tmp_path / "model")
        assert torch.equal(again(**batch).logits, logits)


@pytest.mark.parametrize("name", RECIPES)
def test_step_by_step_with_a_cache_gives_the_logits_of_the_full_pass(
    composed: Any, open_glue: Any, sentences: list[str], name: str
) -> None:
    composition = composed(name, "marian")
    model = open_glue(composition.model.double())
    batch = composition.processor(sentences, ["ein Hund .", "die Katze schläft", "er liest"])
    labels = batch.pop("labels").clamp(min=0)
    ids = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():
        full = model(**batch, decoder_input_ids=ids).logits
        encoded = model.get_encoder()(**batch)
        cache = None
        for step in range(ids.shape[1]):
            output = model(
                attention_mask=batch["attention_mask"],
                encoder_outputs=encoded,
                decoder_input_ids=ids[:, step : step + 1],
                cache=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            assert (output.logits[:, 0] - full[:, step]).abs().max() < 1e-10


def test_joint_attention_says_where_a_host_cannot_have_it(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe(
        method="joint-attention",
        host_settings={
            "new": {"family": "fsmt", "src_vocab_size": 150, "tgt_vocab_size": 150, "d_model": 32}
            | {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers",)}
            | {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
            "tokenizer": make_recipe().host.source,
        },
    )
    with pytest.raises(
        SiteError, match=r"encoder\.0\.self_attention: Attention does not go through.*bert-fused"
    ):
        compose(recipe)
