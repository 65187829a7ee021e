"""Named rules that give a new tensor its first values, seeded by (seed, tensor name).

A rule fills `tensor` in place. `owner` is the module that holds it. A tensor's values depend on the
seed, its name and its rule alone: not on build order, on other parts or on the number of ranks.
"""

from __future__ import annotations

import copy as copies
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

InitRule = Callable[..., None]  # (tensor, owner, generator), and the other tensor of copy:NAME


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the tensor's name only."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def transformer(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """Xavier matrices, embeddings N(0, 1/width) with a zero padding row, norms 1, biases 0.

    Source: Vaswani et al. 2017 as fairseq's `transformer` starts it.
    """
    if isinstance(owner, nn.Embedding):
        tensor.normal_(0.0, tensor.shape[1] ** -0.5, generator=generator)
        if owner.padding_idx is not None:
            tensor[owner.padding_idx].zero_()
    elif tensor.dim() >= 2:
        xavier(tensor, owner, generator)
    elif "norm" in type(owner).__name__.lower() and tensor is not getattr(owner, "bias", None):
        tensor.fill_(1.0)
    else:
        tensor.zero_()


def xavier(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """Uniform, Glorot & Bengio 2010; vectors get 0."""
    if tensor.dim() < 2:
        tensor.zero_()
    else:
        nn.init.xavier_uniform_(tensor, generator=generator)


def normal(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """N(0, 0.02), as BERT's."""
    tensor.normal_(0.0, 0.02, generator=generator)


def zeros(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """All 0."""
    tensor.zero_()


def ones(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """All 1."""
    tensor.fill_(1.0)


def identity(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """1 on the main diagonal of a matrix, 0 elsewhere; vectors get 0."""
    if tensor.dim() == 2:
        nn.init.eye_(tensor)
    else:
        tensor.zero_()


def orthogonal(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """Saxe et al. 2014 (arXiv:1312.6120); vectors get 0."""
    if tensor.dim() < 2:
        tensor.zero_()
    else:
        nn.init.orthogonal_(tensor, generator=generator)


def copy(tensor: Tensor, owner: nn.Module, generator: torch.Generator, other: Tensor) -> None:
    """`copy:NAME`: the values of another tensor of the model."""
    tensor.copy_(other)


def mean_rows(tensor: Tensor, owner: nn.Module, generator: torch.Generator, other: Tensor) -> None:
    """`mean_rows:NAME`: every row is the mean of the rows of another tensor of the model."""
    tensor.copy_(other.double().mean(0).to(tensor.dtype).expand_as(tensor))


def default(tensor: Tensor, owner: nn.Module, generator: torch.Generator) -> None:
    """What the module's own `reset_parameters` gives, under the tensor's own seed.

    It runs on a twin of the module in which every other tensor is on meta: `reset_parameters` fills
    all of them, and some may be loaded already.

    Raises:
        NotImplementedError: the module has no `reset_parameters`.
    """
    if not hasattr(owner, "reset_parameters"):
        raise NotImplementedError(f"{type(owner).__name__} has no reset_parameters")
    memo: dict[int, object] = {id(tensor): tensor}
    for other in [*owner.parameters(), *owner.buffers()]:
        if other is not tensor:
            meta = other.detach().to("meta")
            is_parameter = isinstance(other, nn.Parameter)
            memo[id(other)] = nn.Parameter(meta, other.requires_grad) if is_parameter else meta
    twin: Any = copies.deepcopy(owner, memo)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        twin.reset_parameters()
