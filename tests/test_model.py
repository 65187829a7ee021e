"""The fused model: its neutral start, generation, what is frozen, and what is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, MarianMTModel

from fusion.composition import Composition, compose
from fusion.errors import FusionError, RecipeError, SiteError
from fusion.model import FusedModel
from fusion.processor import FusionProcessor
from fusion.recipe import LearningRates
from fusion.verify import verify_model

HOSTS = ["marian", "bart", "t5"]
TARGETS = ["ein Hund .", "die sehr alte Katze schläft", "er liest"]
Opener = Callable[[Any], Any]


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def host_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "labels")}


@contextmanager
def calls(*modules: torch.nn.Module) -> Iterator[list[int]]:
    """Counts forward calls, per module."""
    counts = [0] * len(modules)

    def counter(index: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[index] += 1

        return count

    hooks = [m.register_forward_hook(counter(i)) for i, m in enumerate(modules)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture
def fused(make_recipe: Any, open_glue: Opener) -> Callable[..., Composition]:
    """A composition whose gates and projections are open."""

    def make(*args: Any, **options: Any) -> Composition:
        composition = compose(make_recipe(*args, **options))
        open_glue(composition.model)
        return composition

    return make


# --- the start -----------------------------------------------------------------------------------

NEUTRAL = [
    {"method": "gated"},
    {"method": "gated", "feed_forward": 2.0},
    {"method": "bert-fused", "start": "neutral"},
    {"method": "gated", "encoder": {"layer": "mix"}},
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("options", NEUTRAL, ids=str)
def test_neutral_glue_leaves_the_host_bitwise_unchanged(
    make_recipe: Any,
    host_dirs: dict[str, Path],
    sentences: list[str],
    host: str,
    options: dict[str, Any],
) -> None:
    every = ["encoder.*.self_attention", "decoder.*.self_attention", "decoder.*.cross_attention"]
    composition = compose(make_recipe(host, sites=every, **options))
    assert composition.model.is_neutral
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dirs[host])
    batch = composition.processor(sentences, TARGETS)
    assert torch.equal(logits(composition.model, batch), logits(plain, host_batch(batch)))


@pytest.mark.parametrize("options", [{"method": "gated"}, {"method": "bert-fused"}], ids=str)
@pytest.mark.parametrize("host", HOSTS)
def test_open_glue_makes_the_output_depend_on_the_memory(
    fused: Any, sentences: list[str], host: str, options: dict[str, Any]
) -> None:
    composition = fused(host, **options)
    batch = composition.processor(sentences, TARGETS)
    other = batch | {"bert_input_ids": batch["bert_input_ids"].clone()}
    other["bert_input_ids"][:, 1] = 5
    assert not torch.allclose(logits(composition.model, batch), logits(composition.model, other))


def test_the_published_start_of_bert_fused_is_not_neutral(make_recipe: Any) -> None:
    assert not compose(make_recipe(method="bert-fused")).model.is_neutral


@pytest.mark.parametrize("host", HOSTS)
def test_removing_glue_gives_the_host_back_bit_for_bit(
    fused: Any, host_dirs: dict[str, Path], sentences: list[str], host: str
) -> None:
    composition = fused(host)
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dirs[host])
    batch = host_batch(composition.processor(sentences, TARGETS))
    freed = composition.model.remove_glue()
    assert torch.equal(logits(freed, batch), logits(plain, batch))
    assert [type(m) for m in freed.modules()] == [type(m) for m in plain.modules()]
    assert freed.state_dict().keys() == plain.state_dict().keys()


def test_adding_glue_or_an_encoder_leaves_the_values_of_all_other_tensors(
    make_recipe: Any, bert_dir: Path, make_bert: Callable[[int], Path]
) -> None:
    small = compose(make_recipe(method="bert-fused")).ledger
    glue = [
        {"method": "gated", "encoder": "other", "feed_forward": 1.0},
        {"method": "bert-fused", "encoder": "bert"},
        {"method": "gated", "encoder": "bert", "name": "again", "sites": ["encoder.0.*"]},
    ]
    encoders = {
        "other": {"source": str(make_bert(32)), "layer": "mix"},
        "bert": {"source": str(bert_dir)},
    }
    large = compose(make_recipe(encoders=encoders, glue=glue)).ledger
    assert len(large) > len(small)
    assert {e.name: e.digest for e in small} == {e.name: large[e.name].digest for e in small}


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("options", [{"method": "gated"}, {"method": "bert-fused"}], ids=str)
@pytest.mark.parametrize("host", HOSTS)
def test_generation_is_the_same_with_and_without_cache(
    fused: Any, sentences: list[str], host: str, options: dict[str, Any], beams: int
) -> None:
    composition = fused(host, **options)
    batch = composition.processor(sentences)
    made = [
        composition.model.generate(**batch, num_beams=beams, use_cache=cache)
        for cache in (True, False)
    ]
    assert made[0].shape[0] == len(sentences)
    assert torch.equal(*made)


def test_several_returned_sequences_come_with_and_without_cache_alike(
    fused: Any, sentences: list[str]
) -> None:
    composition = fused()
    batch = composition.processor(sentences)
    options = {"num_beams": 4, "num_return_sequences": 3}
    made = [composition.model.generate(**batch, **options, use_cache=c) for c in (True, False)]
    assert made[0].shape[0] == 3 * len(sentences)
    assert torch.equal(*made)


@pytest.mark.parametrize("several", [1, 3])
def test_sampling_with_a_seed_is_the_same_with_and_without_cache(
    fused: Any, sentences: list[str], several: int
) -> None:
    composition = fused("bart")
    batch = composition.processor(sentences)
    made = []
    for cache in (True, False):
        torch.manual_seed(5)
        options = {"do_sample": True, "num_beams": 1, "num_return_sequences": several}
        made.append(composition.model.generate(**batch, **options, use_cache=cache))
    assert torch.equal(*made)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_sentence_is_translated_alike_alone_and_in_a_batch(
    fused: Any, sentences: list[str], beams: int
) -> None:
    composition = fused(method="bert-fused")
    model, processor = composition.model, composition.processor
    together = processor.decode(model.generate(**processor(sentences), num_beams=beams))
    alone = [processor.decode(model.generate(**processor([s]), num_beams=beams)) for s in sentences]
    assert together == [texts[0] for texts in alone]


def test_neutral_generation_is_the_hosts(
    make_recipe: Any, host_dirs: dict[str, Path], sentences: list[str]
) -> None:
    composition = compose(make_recipe())
    plain = MarianMTModel.from_pretrained(host_dirs["marian"])
    batch = composition.processor(sentences)
    options = {"num_beams": 4, "max_new_tokens": 8}
    own = composition.model.generate(**batch, **options)
    assert torch.equal(own, plain.generate(**host_batch(batch), **options))


@pytest.mark.parametrize("host", HOSTS)
def test_decoding_step_by_step_equals_the_full_pass(
    fused: Any, sentences: list[str], host: str
) -> None:
    composition = fused(host, method="bert-fused")
    model = composition.model
    batch = composition.processor(sentences)
    decoder_ids = model.generate(**batch, num_beams=1)[:, :6]
    with torch.no_grad():
        full = model(**batch, decoder_input_ids=decoder_ids).logits
        encoded = model.get_encoder()(**batch)
        mask, cache, steps = batch["attention_mask"], None, []
        for position in range(decoder_ids.shape[1]):
            output = model(
                attention_mask=mask,
                decoder_input_ids=decoder_ids[:, position : position + 1],
                encoder_outputs=encoded,
                cache=cache,
                use_cache=True,
            )
            cache = output.cache
            steps.append(output.logits)
    assert torch.allclose(torch.cat(steps, 1), full, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_generation_computes_memory_keys_and_values_once(
    fused: Any, sentences: list[str], beams: int
) -> None:
    composition = fused(method="bert-fused")
    model = composition.model
    batch = composition.processor(sentences)
    sites = list(model.glue_modules.values())
    projections = [p for m in sites for p in (m.attention.k_proj, m.attention.v_proj)]
    queries = [m.attention.q_proj for name, m in model.glue_modules.items() if "cross" in name]
    widths: set[int] = set()
    hooks = [
        p.register_forward_hook(lambda _, args, out: widths.add(args[0].shape[0]))
        for p in projections
    ]
    with calls(model.encoders["bert"].model, *projections, *queries) as counts:
        model.generate(**batch, num_beams=beams, min_new_tokens=5)
    for hook in hooks:
        hook.remove()
    assert counts[: 1 + len(projections)] == [1] * (1 + len(projections))
    assert all(count >= 5 for count in counts[1 + len(projections) :])
    assert widths == {len(sentences)}  # nothing of the memory is repeated per beam


def test_a_later_batch_never_reads_an_earlier_memory(fused: Any, sentences: list[str]) -> None:
    composition = fused()
    model, processor = composition.model, composition.processor
    expected = [model.generate(**processor([s])) for s in sentences]
    again = [model.generate(**processor([s])) for s in reversed(sentences)]
    assert all(torch.equal(a, b) for a, b in zip(expected, reversed(again), strict=True))
    batch = processor(sentences[:1], TARGETS[:1])
    before = logits(model, batch)
    model.generate(**processor(sentences[1:]))
    assert torch.equal(logits(model, batch), before)


def test_a_missing_encoder_input_gives_one_clear_error(fused: Any, sentences: list[str]) -> None:
    composition = fused()
    batch = host_batch(composition.processor(sentences, TARGETS))
    for run in (composition.model.forward, composition.model.generate):
        with pytest.raises(FusionError, match=r"^bert_input_ids is missing: .*FusionProcessor$"):
            run(**batch)


# --- what is frozen, and what is trained ---------------------------------------------------------


def train_step(model: FusedModel, batch: dict[str, torch.Tensor]) -> None:
    model.train()
    model.clock.next_update(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**batch).loss.backward()
    optimizer.step()


def test_a_frozen_encoder_has_no_gradient_stays_in_eval_mode_and_keeps_its_bytes(
    fused: Any, sentences: list[str]
) -> None:
    composition = fused(method="bert-fused", drop_net=0.0)
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    before = {n: t.clone() for n, t in model.encoders.state_dict().items()}
    host_before = model.host.get_input_embeddings().weight.clone()
    train_step(model, batch)
    assert not any(m.training for m in model.encoders["bert"].model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.encoders.parameters())
    assert all(p.grad is not None for p in model.glue.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.encoders.state_dict().items())
    assert not torch.equal(model.host.get_input_embeddings().weight, host_before)
    assert model.host.training


def test_a_frozen_encoder_is_not_in_the_optimizer(
    make_recipe: Any, tmp_path: Path, sentences: list[str]
) -> None:
    from datasets import Dataset
    from transformers import Seq2SeqTrainingArguments

    from fusion.data import tokenise
    from fusion.trainer import FusionTrainer

    composition = compose(make_recipe())
    pairs = Dataset.from_dict({"source": sentences, "target": TARGETS})
    tokens, _ = tokenise(pairs, composition.processor)
    trainer = FusionTrainer(
        composition.model,
        composition.processor,
        Seq2SeqTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False
        ),
        train=tokens,
        dev=tokens,
        batch_tokens=256,
        learning_rates=LearningRates(glue=0.1),
        label_smoothing=0.0,
        compute_metrics=lambda prediction: {},
    )
    optimizer = trainer.create_optimizer()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert not {id(p) for p in composition.model.encoders.parameters()} & set(held)
    assert {id(p) for p in composition.model.glue.parameters()} <= set(held)


def test_encoder_dropout_keeps_a_frozen_encoders_dropout_on_in_training_only(
    make_recipe: Any, sentences: list[str]
) -> None:
    for dropout in (False, True):
        composition = compose(make_recipe(encoder={"encoder_dropout": dropout}))
        model, batch = composition.model, composition.processor(sentences)
        torch.manual_seed(0)
        for training, random in ((True, dropout), (False, False)):
            model.train(training)
            one, two = (model.memories(batch)["bert"].states for _ in range(2))
            assert torch.equal(one, two) is not random
            assert not one.requires_grad


def test_an_encoder_that_is_not_frozen_is_trained(fused: Any, sentences: list[str]) -> None:
    composition = fused(encoder={"freeze": False})
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    train_step(model, batch)
    assert model.encoders["bert"].model.training
    assert all(p.grad is not None for p in model.encoders.parameters())


def test_a_frozen_host_stays_in_eval_mode_without_gradients(
    fused: Any, host_dirs: dict[str, Path], sentences: list[str]
) -> None:
    composition = fused(host_settings={"source": str(host_dirs["marian"]), "freeze": True})
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    train_step(model, batch)
    assert not model.host.training
    assert all(p.grad is None for p in model.host.parameters())
    assert all(p.grad is not None for p in model.glue.parameters())
    assert all(m.training for m in model.glue_modules.values())


def test_a_layer_mix_starts_as_the_mean_and_trains(fused: Any, sentences: list[str]) -> None:
    composition = fused(encoder={"layer": "mix"})
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    mix, encoder = model.mixes["bert"], model.encoders["bert"]
    with torch.no_grad():
        mix.scores.zero_()
        mix.gamma.fill_(1.0)
        states = encoder.model(
            input_ids=batch["bert_input_ids"],
            attention_mask=batch["bert_attention_mask"],
            output_hidden_states=True,
        ).hidden_states
        memory = model.memories(batch)["bert"].states
    assert len(states) == mix.scores.numel() == 3
    assert torch.allclose(memory, torch.stack(states).mean(0), atol=1e-6)
    train_step(model, batch)
    assert mix.scores.grad.abs().max() > 0
    assert mix.gamma.grad.abs().max() > 0
    assert mix.scores.abs().max() > 0


@pytest.mark.parametrize("layer", [0, 1, 2, -1])
def test_a_layer_gives_that_hidden_state_as_memory(
    make_recipe: Any, sentences: list[str], layer: int
) -> None:
    composition = compose(make_recipe(encoder={"layer": layer}))
    model, batch = composition.model, composition.processor(sentences)
    with torch.no_grad():
        states = (
            model.encoders["bert"]
            .model(
                input_ids=batch["bert_input_ids"],
                attention_mask=batch["bert_attention_mask"],
                output_hidden_states=True,
            )
            .hidden_states
        )
        assert torch.equal(model.memories(batch)["bert"].states, states[layer])


@pytest.mark.parametrize("layer", [3, -2])
def test_a_layer_that_the_encoder_lacks_is_refused(make_recipe: Any, layer: int) -> None:
    with pytest.raises(RecipeError, match=r"encoders\.bert\.layer: .* 0 to 2 .*found"):
        compose(make_recipe(encoder={"layer": layer}))


def test_two_encoders_are_read_at_once(
    fused: Any, bert_dir: Path, make_bert: Callable[[int], Path], sentences: list[str]
) -> None:
    encoders = {"bert": {"source": str(bert_dir)}, "wide": {"source": str(make_bert(32))}}
    glue = [
        {"method": "bert-fused", "encoder": "bert"},
        {"method": "gated", "encoder": "wide", "sites": ["encoder.1.*", "decoder.*.*"]},
    ]
    composition = fused(encoders=encoders, glue=glue)
    model, processor = composition.model, composition.processor
    batch = processor(sentences, TARGETS)
    before = logits(model, batch)
    for name in encoders:
        other = batch | {f"{name}_input_ids": batch[f"{name}_input_ids"].clone()}
        other[f"{name}_input_ids"][:, 1] = 5
        assert not torch.allclose(logits(model, other), before)
    source = processor(sentences)
    made = [model.generate(**source, num_beams=2, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*made)


def test_gradient_checkpointing_gives_the_same_gradients(fused: Any, sentences: list[str]) -> None:
    composition = fused(method="bert-fused", drop_net=0.5)
    model, batch = composition.model, composition.processor(sentences, TARGETS)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model.train()
        model.clock.next_update(0)
        torch.manual_seed(3)
        model(**batch).loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append([grad.clone() for grad in grads])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


# --- mistakes ------------------------------------------------------------------------------------


def test_an_unknown_site_lists_the_hosts_sites(make_recipe: Any) -> None:
    with pytest.raises(
        SiteError, match=r'no site "encoder\.7\.x".*decoder\.{0..1}\.cross_attention'
    ):
        compose(make_recipe(sites=["encoder.7.x"]))


def test_a_wrong_option_value_names_the_glue(make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r'glue "bert_fused": drop_net: .*found 3'):
        compose(make_recipe(method="bert-fused", drop_net=3.0))


# --- saving --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(make_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Composition, Path]:
    """A saved composition with a layer mix and open glue."""
    from fusion.saved import save_model

    composition = compose(make_recipe(encoder={"layer": "mix"}, feed_forward=1.0))
    with torch.no_grad():
        for number, tensor in enumerate(composition.model.glue.parameters()):
            tensor.add_(0.1 + 0.01 * number)
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(composition.model, directory, composition.processor, full=True)
    return composition, directory


def test_a_loaded_model_gives_the_same_logits_and_translations(
    saved: tuple[Composition, Path], sentences: list[str]
) -> None:
    composition, directory = saved
    model = FusedModel.from_pretrained(directory)
    processor = FusionProcessor.from_pretrained(directory)
    batch, again = (p(sentences, TARGETS) for p in (composition.processor, processor))
    assert batch.keys() == again.keys()
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert torch.equal(logits(model, again), logits(composition.model, batch))
    source = processor(sentences)
    assert torch.equal(model.generate(**source), composition.model.generate(**source))
    assert not model.training
    assert not any(p.requires_grad for p in model.encoders.parameters())
    assert verify_model(directory) == []


@pytest.mark.parametrize("host", HOSTS)
def test_save_pretrained_and_from_pretrained_keep_the_logits_of_every_host(
    fused: Any, sentences: list[str], tmp_path: Path, host: str
) -> None:
    composition = fused(host, method="bert-fused")
    batch = composition.processor(sentences, TARGETS)
    composition.model.save_pretrained(tmp_path / "model")
    again = FusedModel.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again, batch), logits(composition.model, batch))


def test_plain_transformers_loads_every_saved_part(
    saved: tuple[Composition, Path], sentences: list[str]
) -> None:
    composition, directory = saved
    assert AutoConfig.from_pretrained(directory / "host").model_type == "marian"
    host, loading = MarianMTModel.from_pretrained(directory / "host", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    encoder = transformers.AutoModel.from_pretrained(
        directory / "encoders" / "bert", add_pooling_layer=False
    )
    batch = composition.processor(sentences, TARGETS)
    with torch.no_grad():
        mine = composition.model.encoders["bert"].model
        inputs = {"input_ids": batch["bert_input_ids"], "attention_mask": None}
        assert torch.equal(encoder(**inputs)[0], mine(**inputs)[0])
    assert torch.equal(host.model.shared.weight, composition.model.host.model.shared.weight)
    tokenizer = AutoTokenizer.from_pretrained(directory / "host")
    assert tokenizer(sentences)["input_ids"] == composition.processor.tokenizer(sentences).input_ids
    tokenizer = AutoTokenizer.from_pretrained(directory / "encoders" / "bert")
    own = composition.processor.encoders["bert"].tokenizer
    assert tokenizer(sentences)["input_ids"] == own(sentences)["input_ids"]


def test_a_model_loads_in_another_dtype(
    saved: tuple[Composition, Path], sentences: list[str]
) -> None:
    composition, directory = saved
    model = FusedModel.from_pretrained(directory, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    batch = composition.processor(sentences, TARGETS)
    assert torch.isfinite(logits(model, batch)).all()
