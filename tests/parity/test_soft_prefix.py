"""The soft prefix against its equation in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import glue_at
from outputs import check_decoder
from reference import gelu, linear
from torch import Tensor

from fusion.errors import RecipeError
from fusion.glue.base import Place
from fusion.glue.soft_prefix import SoftPrefix
from fusion.memory import Memory


def projected(p: dict[str, Tensor], memory: Tensor) -> Tensor:
    if "project.weight" in p:
        return linear(p, "project", memory)
    return linear(p, "project.2", gelu(linear(p, "project.0", memory)))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("width", [24, 32])
@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("boundary", [True, False])
def test_the_decoder_attends_to_memory_boundary_and_source(
    make_bench: Any, norm: str, width: int, projector: str, boundary: bool
) -> None:
    bench = make_bench(
        norm=norm,
        memory_width=width,
        method="soft-prefix",
        projector=projector,
        boundary=boundary,
    )
    glue = glue_at(bench, "encoder.output")
    p = dict(glue.state_dict())
    assert ("project.weight" in p) == (projector == "linear")
    source = bench.batch["attention_mask"].bool()
    with torch.no_grad(), bench.model.without_glue():
        own = bench.model.host.get_encoder()(bench.batch["input_ids"], source.long())[0]
    parts, masks = [projected(p, bench.memory), own], [bench.memory_mask, source]
    if boundary:
        parts.insert(1, p["boundary"][None, None].expand(len(own), 1, -1))
        masks.insert(1, torch.ones(len(own), 1, dtype=torch.bool))
    check_decoder(bench, torch.cat(parts, 1), torch.cat(masks, 1))


def test_a_source_without_a_mask_is_a_source_without_padding(make_bench: Any) -> None:
    bench = make_bench(method="soft-prefix")
    batch = {k: v[1:2] for k, v in bench.batch.items()}  # the longest sentence
    assert batch["attention_mask"].all()
    with torch.no_grad():
        whole = bench.model(**batch).logits
        del batch["attention_mask"]
        assert torch.equal(bench.model(**batch).logits, whole)


def test_the_mask_is_the_memorys_the_boundarys_and_the_sources() -> None:
    mask, read = torch.tensor([[1, 1], [1, 0]]).bool(), torch.tensor([[1, 0, 0], [1, 1, 0]]).bool()
    states = torch.randn(2, 3, 6)
    place = Place("encoder.output", 4, 2, 6)
    with_one = SoftPrefix(place).mask_of(mask, Memory(states, read))
    assert with_one.int().tolist() == [[1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 0]]
    without = SoftPrefix(place, boundary=False).mask_of(mask, Memory(states, None))
    assert without.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_another_projector_is_refused() -> None:
    with pytest.raises(RecipeError, match="'conv'"):
        SoftPrefix(Place("encoder.output", 4, 2, 6), projector="conv")  # type: ignore[arg-type]


def test_another_site_and_a_second_change_of_the_sequence_are_refused(make_recipe: Any) -> None:
    from fusion.composition import compose

    with pytest.raises(RecipeError, match=r"only encoder\.output can be its site"):
        compose(make_recipe(method="soft-prefix", sites=["encoder.0.output"]))
    glue = [{"method": m, "encoder": "bert"} for m in ("soft-prefix", "replace-encoder")]
    with pytest.raises(RecipeError, match="other glue changes the sequence already"):
        compose(make_recipe(glue=glue))
