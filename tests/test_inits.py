"""Init rules: what they fill, and that a seed and a name are all they depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fusion.inits import default, generator_for, normal, ones, transformer, xavier, zeros
from fusion.planning import FROM_ANOTHER
from fusion.registry import INITS


def filled(rule: object, tensor: Tensor, owner: nn.Module, seed: int = 0) -> Tensor:
    with torch.no_grad():
        rule(tensor, owner, generator_for(seed, "tensor"))  # type: ignore[operator]
    return tensor


def test_a_generator_depends_on_seed_and_name_only() -> None:
    def draw(seed: int, name: str) -> list[float]:
        return torch.rand(4, generator=generator_for(seed, name)).tolist()

    assert draw(1, "a") == draw(1, "a")
    assert len({tuple(draw(s, n)) for s in (1, 2, 11) for n in ("a", "b", "1a")}) == 9


def test_a_generator_gives_the_same_values_in_every_version() -> None:
    assert (
        generator_for(1, "host.weight").initial_seed()
        == generator_for(1, "host.weight").initial_seed()
    )
    assert 0 <= generator_for(2**40, "x").initial_seed() < 2**63


def test_transformer_starts_embeddings_by_width_with_a_zero_padding_row() -> None:
    embedding = nn.Embedding(2000, 64, padding_idx=3)
    filled(transformer, embedding.weight, embedding)
    assert embedding.weight[3].abs().sum() == 0
    assert embedding.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_transformer_starts_matrices_within_the_xavier_bound_and_biases_at_zero() -> None:
    linear = nn.Linear(30, 60)
    filled(transformer, linear.weight, linear)
    filled(transformer, linear.bias, linear)
    bound = math.sqrt(6 / 90)
    assert 0.9 * bound < linear.weight.abs().max().item() <= bound
    assert linear.bias.abs().sum() == 0


def test_transformer_starts_norms_as_the_identity() -> None:
    norm = nn.LayerNorm(5)
    filled(zeros, norm.weight, norm)
    filled(ones, norm.bias, norm)
    filled(transformer, norm.weight, norm)
    filled(transformer, norm.bias, norm)
    assert norm.weight.tolist() == [1.0] * 5 and norm.bias.tolist() == [0.0] * 5


def test_constants_and_normal() -> None:
    owner = nn.Linear(2, 2)
    assert filled(zeros, torch.ones(3), owner).tolist() == [0.0] * 3
    assert filled(ones, torch.zeros(3), owner).tolist() == [1.0] * 3
    assert filled(xavier, torch.ones(3), owner).tolist() == [0.0] * 3
    assert filled(normal, torch.zeros(100, 100), owner).std().item() == pytest.approx(0.02, 0.05)


def test_default_is_what_the_module_gives_under_its_own_seed() -> None:
    owner = nn.Linear(4, 4)
    first = filled(default, owner.weight, owner, seed=1).clone()
    torch.rand(3)
    assert torch.equal(filled(default, owner.weight, owner, seed=1), first)
    assert not torch.equal(filled(default, owner.weight, owner, seed=2), first)


def test_default_refuses_a_module_without_reset_parameters() -> None:
    with pytest.raises(NotImplementedError, match="reset_parameters"):
        filled(default, torch.zeros(2), nn.ReLU())


def test_every_listed_rule_fills_a_matrix() -> None:
    for name in INITS.names():
        if name in FROM_ANOTHER:
            continue
        owner = nn.Linear(3, 3)
        tensor = owner.weight
        with torch.no_grad():
            tensor.fill_(math.nan)
        filled(INITS.get(name), tensor, owner)
        assert not tensor.isnan().any(), name
