"""Sites: how they are named, and glue put into a host's module and taken out again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from fusion.errors import SiteError
from fusion.hosts.families import MARIAN, T5
from fusion.hosts.family import family_of, select_sites
from fusion.hosts.site import attach, detach
from fusion.registry import HOSTS

SITES = [
    f"{side}_attention".replace("#", str(layer))
    for side in ("encoder.#.self", "decoder.#.self", "decoder.#.cross")
    for layer in (0, 1, 10)
]
TINY = {
    **{"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    **{"d_model": 16, "max_position_embeddings": 32},
    **{"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    **{"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 16},
    **{"num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "d_kv": 8, "d_ff": 16},
}


def tiny(name: str) -> tuple[Any, Any]:
    family = HOSTS.get(name)
    known = {*family.new_config({}).to_dict()}
    config = family.new_config({k: v for k, v in TINY.items() if k in known})
    torch.manual_seed(0)
    return family, family.build(config).eval()


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["encoder.*.self_attention"], SITES[:3]),
        (["encoder.1.self_attention"], ["encoder.1.self_attention"]),
        (["encoder.{0,10}.self_attention"], [SITES[0], SITES[2]]),
        (["encoder.{0, 1}.self_attention"], SITES[:2]),
        (["decoder.{0,1}.*"], ["decoder.0.", "decoder.1."]),
        (["{encoder,decoder}.0.self_attention"], [SITES[0], SITES[3]]),
        (["{encoder,decoder}.{0,1}.self_attention"], [*SITES[:2], *SITES[3:5]]),
        (["*.*.*"], SITES),
        (["decoder.0.cross_attention", "encoder.0.self_attention"], [SITES[0], SITES[6]]),
        (["encoder.0.self_attention", "encoder.*.self_attention"], SITES[:3]),
    ],
    ids=str,
)
def test_patterns_choose_sites_once_in_the_hosts_order(
    patterns: list[str], expected: list[str]
) -> None:
    expected = [site for site in SITES if site.startswith(tuple(expected))]
    assert select_sites(patterns, SITES) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("encoder.2.self_attention", "encoder.*.cross_attention", "encoder.{2,3}.self_attention"),
        *("encoder.self_attention", "encoder.*", "self_attention", "", "encoder.0.self.x"),
    ],
)
def test_a_pattern_that_matches_nothing_lists_the_hosts_sites(text: str) -> None:
    with pytest.raises(SiteError) as caught:
        select_sites(["encoder.*.self_attention", text], SITES)
    assert str(caught.value) == f'no site "{text}"; this host has: {", ".join(SITES)}'


@pytest.mark.parametrize("name", HOSTS.names())
def test_every_family_finds_the_sites_of_every_layer(name: str) -> None:
    family, host = tiny(name)
    assert family_of(host.config) == (name, family)
    found = family.find_sites(host)
    expected = [f"encoder.{i}.self_attention" for i in range(2)]
    expected += [f"decoder.{i}.{kind}_attention" for i in range(3) for kind in ("self", "cross")]
    assert sorted(found) == sorted(expected)
    assert len({id(module) for module in found.values()}) == len(expected)
    heads = 2 if "T5" in family.model_class else 4
    assert family.heads(host.config, "encoder.0.self_attention") == 2
    assert family.heads(host.config, "decoder.0.cross_attention") == heads


def test_a_model_type_without_family_lists_those_there_are() -> None:
    with pytest.raises(SiteError, match=r'no host family for model type "bert"; known: .*marian'):
        family_of(AutoConfig.for_model("bert"))


def run(host: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])
    with torch.no_grad():
        output = host(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=ids)
    logits: torch.Tensor = output.logits
    return logits


@pytest.mark.parametrize("name", HOSTS.names())
def test_a_reader_that_returns_the_hosts_output_changes_no_bit(name: str) -> None:
    family, host = tiny(name)
    before = run(host)
    for module in family.find_sites(host).values():
        attach(module, lambda x, own: own(), family.rest)
    assert torch.equal(run(host), before)


@pytest.mark.parametrize("name", HOSTS.names())
@pytest.mark.parametrize("kind", ["encoder.0.self", "decoder.1.self", "decoder.2.cross"])
def test_a_reader_at_any_site_changes_the_output_and_detaching_restores_it(
    name: str, kind: str
) -> None:
    family, host = tiny(name)
    before, keys = run(host), list(host.state_dict())
    types = [type(module) for module in host.modules()]
    module = family.find_sites(host)[f"{kind}_attention"]
    own_type, attributes = type(module), set(module.__dict__)
    attach(module, lambda x, own: own() + x + 1, family.rest)
    assert isinstance(module, own_type)
    assert list(host.state_dict()) == keys
    assert not torch.allclose(run(host), before)
    detach(module)
    assert [type(module) for module in host.modules()] == types
    assert set(module.__dict__) == attributes
    assert torch.equal(run(host), before)


@pytest.mark.parametrize("name", HOSTS.names())
def test_every_family_runs_where_a_reader_leaves_the_hosts_branch_out(name: str) -> None:
    family, host = tiny(name)
    sites = family.find_sites(host)
    for site in ("encoder.0.self_attention", "decoder.0.cross_attention"):
        attach(sites[site], lambda x, own: torch.zeros_like(x), family.rest)
    assert torch.isfinite(run(host)).all()


@pytest.mark.parametrize(("family", "name", "computed"), [(MARIAN, "marian", 0), (T5, "t5", 1)])
def test_a_branch_left_out_is_computed_only_where_the_host_needs_it(
    family: Any, name: str, computed: int
) -> None:
    _, host = tiny(name)
    module = family.find_sites(host)["encoder.0.self_attention"]
    runs: list[int] = []
    next(module.children()).register_forward_hook(lambda *_: runs.append(1))
    attach(module, lambda x, own: torch.zeros_like(x), family.rest)
    run(host)
    assert len(runs) == computed


def test_a_branch_asked_for_twice_is_computed_once() -> None:
    family, host = tiny("marian")
    before = run(host)
    module = family.find_sites(host)["encoder.0.self_attention"]
    runs: list[int] = []
    module.q_proj.register_forward_hook(lambda *_: runs.append(1))
    attach(module, lambda x, own: 0.5 * own() + 0.5 * own(), family.rest)
    assert torch.allclose(run(host), before, atol=1e-6)
    assert len(runs) == 1


def test_a_second_reader_is_refused_and_detaching_twice_does_nothing() -> None:
    family, host = tiny("marian")
    module = family.find_sites(host)["encoder.0.self_attention"]
    attach(module, lambda x, own: own(), family.rest)
    with pytest.raises(SiteError, match="MarianAttention: glue is attached to this site already"):
        attach(module, lambda x, own: own(), family.rest)
    detach(module)
    detach(module)
    attach(module, lambda x, own: own(), family.rest)


def test_a_host_whose_glue_was_removed_saves_as_a_plain_one(tmp_path: Path) -> None:
    family, host = tiny("bart")
    untouched = copy.deepcopy(host)
    module = family.find_sites(host)["decoder.0.cross_attention"]
    attach(module, lambda x, own: own(), family.rest)
    detach(module)
    host.save_pretrained(tmp_path)
    assert torch.equal(run(AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()), run(untouched))
