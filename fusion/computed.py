"""Tensors that a transformers class computes, such as sinusoidal positions: each made once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def computing(model: PreTrainedModel) -> Callable[[nn.Module], None]:
    """A model's `_init_weights`, which fills modules that are alike by a copy of the first one.

    Transformers leaves out of a checkpoint what a class computes, so that depends on nothing but
    the class and a module's attributes. Marian's table of positions is slow to make, and encoder
    and decoder have the same one. Only for such tensors: two alike modules that are initialised at
    random would become equal.
    """
    made: dict[Any, Tensor] = {}

    def fill(module: nn.Module) -> None:
        alike = _likeness(module)
        if alike in made:
            _only_tensor(module).copy_(made[alike])
            return
        if isinstance(module, nn.Embedding) and _is_half_sines(module):
            module.weight.copy_(half_sines(*module.weight.shape))
        else:
            model._init_weights(module)
        if alike is not None:
            made[alike] = _only_tensor(module).detach().clone()

    return fill


def half_sines(positions: int, width: int) -> Tensor:
    """Sinusoids, sines in the first half of the columns and cosines in the second.

    (positions, width) float32, bit for bit what `create_weight` of Marian's position embedding
    computes number by number in Python, about thirty times as fast.
    """
    scales = numpy.array([numpy.power(10000, 2 * (j // 2) / width) for j in range(width)])
    angles = numpy.arange(positions)[:, None] / scales
    halves = numpy.sin(angles[:, 0::2]), numpy.cos(angles[:, 1::2])
    return torch.cat([torch.from_numpy(half).float() for half in halves], dim=1)


def _is_half_sines(module: nn.Embedding) -> bool:
    """Whether a module's table is made so; its class makes one of a few rows, to be compared.

    Only by a method of transformers: another may draw a table at random.
    """
    make = getattr(type(module), "create_weight", None)
    if make is None or not make.__module__.startswith("transformers.") or module.weight.is_meta:
        return False
    few = copy.copy(module)
    rows = torch.empty(8, module.embedding_dim)
    few._parameters = {"weight": nn.Parameter(rows, requires_grad=False)}
    return torch.equal(make(few), half_sines(8, module.embedding_dim))


def _only_tensor(module: nn.Module) -> Tensor:
    return next(iter([*module.parameters(recurse=False), *module.buffers(recurse=False)]))


def _likeness(module: nn.Module) -> Any:
    """Equal for modules of a class with one tensor and the same attributes; None: not for sure."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if len(tensors) != 1 or next(module.children(), None) is not None:
        return None
    usual = nn.Module().__dict__
    own = {name: value for name, value in module.__dict__.items() if name not in usual}
    if not all(isinstance(value, int | float | str | type(None)) for value in own.values()):
        return None
    return type(module), tensors[0].shape, tensors[0].dtype, tuple(sorted(own.items()))
