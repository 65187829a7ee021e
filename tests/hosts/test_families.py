"""Every family of seq2seq models carries glue: unchanged while it is neutral, changed when not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import HOSTS_BY_TEST, VOCABULARY, tiny
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from fusion.composition import Composition, compose
from fusion.errors import RecipeError, SiteError
from fusion.hosts.family import family_of
from fusion.hosts.site import attach, detach
from fusion.hosts.unsupported import UNSUPPORTED
from fusion.model import FusedModel
from fusion.registry import HOSTS

HostMaker = Callable[[str], Path]
Composer = Callable[[str], Composition]
NAMES = list(HOSTS_BY_TEST)
CACHE_CHANGES = {
    "fsmt": "without a cache, transformers' generate gives the decoder no causal mask",
    "prophetnet": "in transformers, logits of a prefix change with what follows it",
}
TEXTS = ["the cat sleeps .", "a very old dog sees the small cat ."]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3], [8, 9, 3, 0, 0, 0, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="session")
def host_dir(tmp_path_factory: pytest.TempPathFactory, bert_dir: Path) -> HostMaker:
    """`host_dir("t5")` -> a plain transformers directory, read with BERT's tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            tokenizer = AutoTokenizer.from_pretrained(bert_dir)
            assert len(tokenizer) <= VOCABULARY
            _, host = tiny(name)
            made[name] = tmp_path_factory.mktemp("host") / name
            host.save_pretrained(made[name])
            settings = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2}
            GenerationConfig(**settings).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def neutral(make_recipe: Any, host_dir: HostMaker) -> Composer:
    """`neutral("t5")` -> a host with gated glue in the usual sites, its gates closed."""
    made: dict[str, Composition] = {}

    def make(name: str) -> Composition:
        if name not in made:
            made[name] = compose(make_recipe(host_settings={"source": str(host_dir(name))}))
        return made[name]

    return make


@pytest.fixture
def opened(neutral: Composer, open_glue: Any) -> Composer:
    """The same with open gates: a copy of the model, so that the other stays neutral."""

    def make(name: str) -> Composition:
        composition = neutral(name)
        model = copy.deepcopy(composition.model)
        return Composition(open_glue(model), composition.processor)

    return make


def run(host: Any) -> Tensor:
    with torch.no_grad():
        output = host(input_ids=IDS, attention_mask=(IDS != 0).long(), decoder_input_ids=IDS[:, :6])
    logits: Tensor = output.logits
    return logits


def test_every_text_model_of_transformers_is_a_host_or_has_a_reason() -> None:
    known = set(HOSTS.names()) | set(UNSUPPORTED)
    assert set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) - known == set()
    assert set(HOSTS.names()) & set(UNSUPPORTED) == set()
    tested = {family for family, _ in HOSTS_BY_TEST.values()}
    assert set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) - set(UNSUPPORTED) <= tested


def test_a_model_that_can_be_no_host_says_why(make_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match='"qwen2_audio": its encoder reads speech, not text; known'):
        family_of(AutoConfig.for_model("qwen2_audio"))
    AutoConfig.for_model("qwen2_audio").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(make_recipe().host.source).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="reads speech, not text"):
        compose(make_recipe(host_settings={"source": str(tmp_path)}))


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_every_family_has_its_sites(name: str) -> None:
    family, host = tiny(name)
    assert family_of(host.config) == (HOSTS_BY_TEST[name][0], family)
    sites = family.find_sites(host)
    options = HOSTS_BY_TEST[name][1]
    encoder = options.get("num_layers", options.get("num_encoder_layers", 2))
    expected = {"encoder.embeddings", "decoder.embeddings", "encoder.output"}
    for layer in range(encoder):
        expected |= {f"encoder.{layer}.{k}" for k in ("self_attention", "feed_forward", "output")}
    for layer in range(3):
        kinds = ("self_attention", "cross_attention", "feed_forward")
        expected |= {f"decoder.{layer}.{kind}" for kind in kinds}
    if name == "t5gemma2":
        expected -= {f"decoder.{layer}.self_attention" for layer in range(3)}
    further = {"decoder.output", *(f"decoder.{layer}.output" for layer in range(3))}
    between = {"encoder.{}.after_self_attention": encoder, "decoder.{}.after_cross_attention": 3}
    further |= {site.format(i) for site, count in between.items() for i in range(count)}
    assert expected <= set(sites) <= expected | further
    assert len({id(seat.module) for seat in sites.values()}) == len(sites)
    assert family.heads(host.config, "encoder.0.self_attention") == 2
    assert family.heads(host.config, "decoder.0.cross_attention") in (2, 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_at_any_site_sees_batches_and_its_own_output_changes_no_bit(name: str) -> None:
    family, host = tiny(name)
    before = run(host)
    keys, types = list(host.state_dict()), [type(module) for module in host.modules()]
    for site, seat in family.find_sites(host).items():
        attributes = set(seat.module.__dict__)
        shapes: list[torch.Size] = []

        def same(x: Tensor, own: Any, shapes: Any = shapes) -> Tensor:
            shapes += [x.shape, own().shape]
            result: Tensor = own() + 0.0 * x
            return result

        attach(seat, same, family.rest)
        assert torch.equal(run(host), before), site
        width = family.width(host.config, site)
        assert {(shape[0], shape[2]) for shape in shapes} == {(2, width)}, site
        assert shapes[0] == shapes[1], site
        detach(seat)
        attach(seat, lambda x, own: own() + 0.5 * x + 1, family.rest)
        assert list(host.state_dict()) == keys
        assert not torch.allclose(run(host), before), site
        detach(seat)
        attach(seat, lambda x, own: torch.zeros_like(x), family.rest)
        assert torch.isfinite(run(host)).all(), site
        detach(seat)
        assert set(seat.module.__dict__) == attributes
        assert torch.equal(run(host), before), site
    assert [type(module) for module in host.modules()] == types
    assert not any(module._forward_pre_hooks for module in host.modules())


@pytest.mark.parametrize("name", NAMES)
def test_the_query_is_the_sublayers_input_after_the_norm_that_the_row_says(name: str) -> None:
    family, host = tiny(name)
    for side in ("encoder", "decoder"):
        sites = family.find_sites(host)
        seen: dict[str, Tensor] = {}

        def note(site: str, seen: dict[str, Tensor] = seen) -> Any:
            def read(x: Tensor, own: Any) -> Tensor:
                seen[site] = x
                result: Tensor = own()
                return result

            return read

        layer, attention = f"{side}.0.output", f"{side}.1.self_attention"
        attention = attention if attention in sites else attention.replace("self", "cross")
        if layer not in sites:
            continue
        for site in (layer, attention):
            attach(sites[site], note(site), family.rest)
        run(host)
        same = seen[layer].shape == seen[attention].shape and torch.equal(
            seen[layer], seen[attention]
        )
        assert same == (family.norm_at(host.config, attention) == "post")


@pytest.mark.parametrize("name", NAMES)
def test_neutral_glue_leaves_every_host_unchanged_and_it_generates_as_before(
    neutral: Composer, host_dir: HostMaker, name: str
) -> None:
    composition = neutral(name)
    model = composition.model
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dir(name)).eval()
    batch = composition.processor(TEXTS)
    own = {key: value for key, value in batch.items() if not key.startswith("bert_")}
    start = {"decoder_input_ids": IDS[:, :6]}
    with torch.no_grad():
        assert torch.equal(model(**batch, **start).logits, plain(**own, **start).logits)
    settings = {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 5}
    expected = plain.generate(**own, **settings)
    assert torch.equal(model.generate(**batch, **settings), expected)
    names = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    names |= {n for n, _ in model.named_buffers(remove_duplicate=False)}
    assert names == set(model.ledger.entries)


# EncoderDecoderModel warns of models trained before transformers 4.12 whenever it has labels
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_open_glue_of_every_host_changes_it_trains_is_saved_and_is_taken_out(
    opened: Composer, neutral: Composer, name: str, tmp_path: Path
) -> None:
    composition = opened(name)
    model = composition.model
    batch = composition.processor(TEXTS)
    start = {"decoder_input_ids": IDS[:, :6]}
    with torch.no_grad():
        expected = neutral(name).model(**batch, **start).logits
        logits = model(**batch, **start).logits
        assert not torch.allclose(logits, expected)
        model.save_pretrained(tmp_path / "model")
        again = FusedModel.from_pretrained(tmp_path / "model")
        assert torch.equal(again(**batch, **start).logits, logits)
    model.train()
    model(**batch, labels=IDS[:, :6].contiguous()).loss.backward()
    for parameter_name, parameter in model.glue.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
        # a bias of all keys changes no softmax
        assert parameter.grad.any() or parameter_name.endswith("k_proj.bias"), parameter_name
    model.eval()
    own = {key: value for key, value in batch.items() if not key.startswith("bert_")}
    with torch.no_grad():
        assert torch.equal(model.remove_glue()(**own, **start).logits, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CACHE_CHANGES])
@pytest.mark.parametrize("beams", [1, 4])
def test_every_host_generates_the_same_with_and_without_a_cache(
    opened: Composer, name: str, beams: int
) -> None:
    composition = opened(name)
    model, batch = composition.model, composition.processor(TEXTS)
    settings: dict[str, Any] = {
        "num_beams": beams,
        "max_new_tokens": 8,
        "min_new_tokens": 5,
        "length_penalty": 0.0,
    }
    # a host that writes padding itself (no trained one does) masks it only where it is not cached
    settings["suppress_tokens"] = [0]
    cached = model.generate(**batch, **settings, use_cache=True)
    assert torch.equal(model.generate(**batch, **settings, use_cache=False), cached)
    assert cached.shape[0] == 2 and cached.shape[1] > 5


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CACHE_CHANGES])
def test_the_token_that_a_new_host_starts_from_is_the_same_with_a_cache(name: str) -> None:
    family, host = tiny(name)
    first = getattr(host.config, family.start, None)
    settings = {"decoder_start_token_id": 3 if first is None else first, "max_new_tokens": 4}
    settings |= {"pad_token_id": 0, "eos_token_id": 3, "forced_eos_token_id": 3}
    settings["min_new_tokens"] = 3  # padding after a finished sentence is masked in one of them
    source = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "suppress_tokens": [0]}
    details = {"output_logits": True, "return_dict_in_generate": True, "use_cache": True}
    cached = host.generate(**source, **settings, **details)
    whole = host.generate(**source, **settings, **details | {"use_cache": False})
    for step, logits in enumerate(whole.logits):
        assert torch.allclose(cached.logits[step], logits, atol=1e-5), step


@pytest.mark.parametrize("name", CACHE_CHANGES)
def test_hosts_left_out_above_change_with_a_cache_in_plain_transformers_too(
    host_dir: HostMaker, name: str
) -> None:
    plain = AutoModelForSeq2SeqLM.from_pretrained(host_dir(name)).eval()
    source = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "max_new_tokens": 3}
    details = {"output_logits": True, "return_dict_in_generate": True}
    cached, whole = (plain.generate(**source, **details, use_cache=c) for c in (True, False))
    assert torch.allclose(cached.logits[0], whole.logits[0], atol=1e-5)
    assert not torch.allclose(cached.logits[1], whole.logits[1], atol=1e-4)


def test_a_hosts_longest_source_is_its_encoders_position_table() -> None:
    hosts = {name: tiny(name) for name in NAMES}
    found = {name: family.source_positions(host) for name, (family, host) in hosts.items()}
    assert {name for name, limit in found.items() if limit is None} == {
        *("t5", "mt5", "umt5", "longt5", "longt5-global", "switch_transformers"),
    }
    # tables of 32 and 33 rows; RoBERTa and ProphetNet leave those up to the padding index unused
    assert found["roberta2roberta"] == 31 and found["prophetnet"] == 32
    assert {limit for name, limit in found.items() if limit not in (None, 31)} == {32}


@pytest.mark.parametrize("name", ["marian", "led", "roberta2roberta", "prophetnet", "t5gemma"])
def test_a_source_as_long_as_the_hosts_positions_is_read(name: str) -> None:
    family, host = tiny(name)
    ids = torch.full((1, family.source_positions(host) or 0), 5)
    with torch.no_grad():
        logits = host(input_ids=ids, decoder_input_ids=ids[:, :2]).logits
    assert torch.isfinite(logits).all()
