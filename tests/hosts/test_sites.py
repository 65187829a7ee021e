"""Glue put into a host's module and taken out again."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_hosts import tiny
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from fusion.errors import SiteError
from fusion.hosts.family import family_of
from fusion.hosts.site import attach, detach


def test_a_model_type_without_family_lists_those_there_are() -> None:
    with pytest.raises(SiteError, match=r'no host family for model type "bert"; known: .*marian'):
        family_of(AutoConfig.for_model("bert"))


def run(host: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])
    with torch.no_grad():
        output = host(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=ids)
    logits: torch.Tensor = output.logits
    return logits


@pytest.mark.parametrize(("name", "computed"), [("marian", 0), ("t5", 1)])
def test_a_branch_left_out_is_computed_only_where_the_host_needs_it(
    name: str, computed: int
) -> None:
    family, host = tiny(name)
    seat = family.find_sites(host)["encoder.0.self_attention"]
    runs = list[int]()
    next(seat.module.children()).register_forward_hook(lambda *_: runs.append(1))
    attach(seat, lambda x, own: torch.zeros_like(x), family.rest)
    run(host)
    assert len(runs) == computed


def test_a_branch_asked_for_twice_is_computed_once() -> None:
    family, host = tiny("marian")
    before = run(host)
    seat = family.find_sites(host)["encoder.0.self_attention"]
    runs = list[int]()
    seat.module.q_proj.register_forward_hook(lambda *_: runs.append(1))
    attach(seat, lambda x, own: 0.5 * own() + 0.5 * own(), family.rest)
    assert torch.allclose(run(host), before, atol=1e-6)
    assert len(runs) == 1


def test_a_second_reader_is_refused_and_detaching_twice_does_nothing() -> None:
    family, host = tiny("marian")
    seat = family.find_sites(host)["encoder.0.self_attention"]
    attach(seat, lambda x, own: own(), family.rest)
    with pytest.raises(SiteError, match="MarianAttention: glue is attached to this site already"):
        attach(seat, lambda x, own: own(), family.rest)
    detach(seat)
    detach(seat)
    attach(seat, lambda x, own: own(), family.rest)


def test_a_host_whose_glue_was_removed_saves_as_a_plain_one(tmp_path: Path) -> None:
    family, host = tiny("bart")
    untouched = copy.deepcopy(host)
    seat = family.find_sites(host)["decoder.0.cross_attention"]
    attach(seat, lambda x, own: own(), family.rest)
    detach(seat)
    host.save_pretrained(tmp_path)
    assert torch.equal(run(AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()), run(untouched))
