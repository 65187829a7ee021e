"""Which modules of an encoder are its layers, where glue inside it can sit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_encoders import ENCODERS, WIDTH
from transformers import AutoConfig

from fusion.encoders.auto import build_auto_encoder, memory_config
from fusion.encoders.part import EncoderPart
from fusion.glue.base import Place
from fusion.glue.bottleneck import Bottleneck
from fusion.hosts.site import attach, detach
from fusion.placement import Reader, sites_of

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 3], [8, 9, 10, 11, 12, 13, 3, 0, 0]])
# shared layers are one; these write their layers out in another layout
FEWER = {"albert": 1, "squeezebert": 0}


class _Host:
    """A host without sites."""

    def find_sites(self, host: Any) -> dict[str, Any]:
        return {}


def part_of(kind: str) -> EncoderPart:
    torch.manual_seed(0)
    model = build_auto_encoder(AutoConfig.for_model(kind, **ENCODERS[kind][0])).eval()
    return EncoderPart(model, layer=-1, freeze=True, dropout=False, limit=60)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_layer_of_every_encoder_is_a_site_and_glue_there_is_trained(kind: str) -> None:
    part = part_of(kind)
    count = memory_config(part.config).num_hidden_layers
    sites = sites_of(None, _Host(), {"bert": part})  # type: ignore[arg-type]
    assert len(sites) == FEWER.get(kind, count)
    mask = (IDS != 0).long()
    before = part(IDS, mask).states
    part.glued = True
    adapters = {}
    for site, seat in sites.items():
        glue = Bottleneck(Place(site, width=WIDTH, heads=1, memory_width=0), width=4)
        torch.nn.init.zeros_(glue.up.weight)
        torch.nn.init.zeros_(glue.up.bias)
        attach(seat, Reader({}, [(glue, None)]))
        adapters[site] = glue
    assert torch.equal(part(IDS, mask).states, before)
    for glue in adapters.values():
        torch.nn.init.normal_(glue.up.weight)
    if not sites:
        return
    changed = part(IDS, mask).states
    assert not torch.allclose(changed, before)
    changed[mask.bool()].square().sum().backward()
    for site, glue in adapters.items():
        assert glue.up.weight.grad.any(), site
    for seat in sites.values():
        detach(seat)
    assert torch.equal(part(IDS, mask).states, before)
