"""What an encoder gives and glue reads: hidden states and their mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Memory:
    """One encoder's memory of a batch.

    Attributes:
        states: `[B, S, M]`, or `[L, B, S, M]` as an encoder gives all its layers
        mask: `[B, S]` bool, True at a real token; None where no row has padding
        reusable: the same memory is read step after step (generation), so that keys and values
            projected from it are kept in `projected`, by the name of the glue that made them
        layers: all hidden states `[L, B, S, M]`, embeddings first, where the recipe asks for them
        source_mask: the mask of the host's own source `[B, T]`; None where no row has padding
    """

    states: Tensor
    mask: Tensor | None
    reusable: bool = False
    projected: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    layers: Tensor | None = None
    source_mask: Tensor | None = None
    _cast: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def hidden(self) -> Tensor | None:
        """What attention may not see `[B, 1, 1, S]`, True at padding."""
        return None if self.mask is None else ~self.mask[:, None, None, :]

    def in_type(self, dtype: torch.dtype) -> Tensor:
        """The states as modules of a type read them: under autocast, in its type; cast once."""
        kind = self.states.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        if self._cast is None or self._cast[0] is not self.states or self._cast[1].dtype != dtype:
            self._cast = self.states, self.states.to(dtype)
        return self._cast[1]


def joined(memories: list[Memory]) -> Memory:
    """One memory of several encoders: their positions one after the other.

    Each encoder has columns of its own, zero elsewhere, so that a projection of the whole is a
    projection per encoder. Shapes: `[B, S_i, M_i]` -> `[B, sum S_i, sum M_i]`.
    """
    total = sum(memory.states.shape[-1] for memory in memories)
    states, masks, before = [], [], 0
    for memory in memories:
        width = memory.states.shape[-1]
        after = total - before - width
        states.append(torch.nn.functional.pad(memory.states, (before, after)))
        mask = memory.mask
        full = memory.states.new_ones(memory.states.shape[:2], dtype=torch.bool)
        masks.append(full if mask is None else mask)
        before += width
    whole = all(memory.mask is None for memory in memories)
    return Memory(torch.cat(states, dim=1), None if whole else torch.cat(masks, dim=1))
