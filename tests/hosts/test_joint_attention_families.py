"""Joint attention in every family whose attention goes through transformers' interface."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from tiny_causal import CAUSAL, batch, tiny_config
from tiny_hosts import HOSTS_BY_TEST, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from fusion.errors import SiteError
from fusion.glue.joint_attention import JointAttention
from fusion.memory import Memory
from fusion.placement import Placed, Placement, place_of
from fusion.registry import HOSTS

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3], [8, 9, 3, 0, 0, 0, 0, 0, 0, 0, 0]])
ALL = ("mvp", "fsmt", "led", "prophetnet")
ENCODER = ("pegasus_x", "bigbird_pegasus", "longt5", "longt5-global")  # of these, the encoder alone


def lacking(name: str, site: str) -> bool:
    return name in ALL or (name in ENCODER and site.startswith("encoder."))


def run(host: Any, length: int = 6) -> Tensor:
    with torch.no_grad():
        mask = (IDS != 0).long()
        output = host(input_ids=IDS, attention_mask=mask, decoder_input_ids=IDS[:, :length])
    logits: Tensor = output.logits
    return logits


def causal(name: str) -> tuple[Any, Any]:
    """A family of decoder-only hosts and a random host of it."""
    torch.manual_seed(0)
    return HOSTS.get(name), AutoModelForCausalLM.from_config(tiny_config(name)).eval()


def joined(
    name: str, start: Literal["paper", "neutral"], memory: Memory
) -> tuple[Any, Placement, list[str]]:
    """A host with joint attention at every attention that can have it, those that cannot."""
    family, host = tiny(name) if name in HOSTS_BY_TEST else causal(name)
    placement, refused = Placement(), []
    placement.board["m"] = memory
    for site, seat in family.find_sites(host).items():
        if not site.endswith(".self_attention") and not site.endswith(".cross_attention"):
            continue
        glue = JointAttention(place_of(site, seat, (6,), host, family, {}), start=start).eval()
        try:
            glue.enter(seat.query or seat.module, placement.board, "m")
        except SiteError as error:
            assert type(seat.query or seat.module).__name__ in str(error)
            refused.append(site)
            continue
        glue.leave()
        placement.add(Placed(site, glue, ("m",)), seat, family.rest)
    return host, placement, refused


@pytest.mark.parametrize("name", HOSTS_BY_TEST)
def test_a_neutral_start_changes_no_bit_and_a_closed_memory_next_to_none(name: str) -> None:
    states = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    before = run(tiny(name)[1])

    host, placement, refused = joined(name, "neutral", Memory(states, real))
    sites = [placed.site for placed in placement.placed]
    assert all(lacking(name, site) for site in refused)
    assert not any(lacking(name, site) for site in sites)
    assert len(sites) + len(refused) >= 5
    if not sites:
        return
    placement.attach()
    assert torch.equal(run(host), before)
    placement.detach()

    host, placement, _ = joined(name, "paper", Memory(states, real))
    placement.attach()
    opened = run(host)
    assert not torch.allclose(opened, before)
    placement.board["m"] = Memory(states, torch.zeros_like(real))
    assert torch.allclose(run(host), before, atol=1e-5)
    placement.board["m"] = Memory(states.masked_fill(~real[..., None], 7.0), real)
    assert torch.allclose(run(host), opened, atol=1e-5)
    placement.detach()
    assert torch.equal(run(host), before)


@pytest.mark.parametrize("name", [name for name in HOSTS_BY_TEST if name not in ALL])
def test_no_token_of_the_target_sees_a_later_one(name: str) -> None:
    states = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    host, placement, _ = joined(name, "paper", Memory(states, None))
    placement.attach()
    assert torch.allclose(run(host, 6)[:, :3], run(host, 3), atol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_in_a_decoder_only_host_it_is_neutral_masked_and_causal_too(name: str) -> None:
    states = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    ids, mask, _ = batch()
    source = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        before = causal(name)[1](**source).logits
        host, placement, refused = joined(name, "neutral", Memory(states, real))
        assert len(placement.placed) == 3 and not refused
        placement.attach()
        assert torch.equal(host(**source).logits, before)
        host, placement, _ = joined(name, "paper", Memory(states, real))
        placement.attach()
        opened = host(**source).logits
        assert not torch.allclose(opened, before)
        assert torch.allclose(host(ids[:, :3]).logits, opened[:, :3], atol=1e-5)
        placement.board["m"] = Memory(states, torch.zeros_like(real))
        assert torch.allclose(host(**source).logits, before, atol=1e-5)
        placement.detach()
        assert torch.equal(host(**source).logits, before)
