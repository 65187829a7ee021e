"""An encoder's memory in place of the host's encoder (Imamura & Sumita; Rothe et al.)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from fusion.errors import RecipeError
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class ReplaceEncoder(Glue):
    """The decoder attends to P H_B; the host's encoder is not run and not trained.

    P is linear; `projector: none` (M equal to D) lets the decoder read H_B itself. Never neutral.
    The papers' second stage trains the encoder too: `encoders.NAME.freeze: false`.

    Shapes:  memory [B, S, M], P [D, M] -> [B, S, D], with the memory's mask
    Raises:  RecipeError if projector is neither, or it is none and M is not D
    Source:  Imamura & Sumita 2019 (D19-5603), section 3; Rothe et al. 2020 (arXiv:1907.12461),
             section 2
    Differs: P, so that M need not be D; the decoder may be a trained host's
    """

    default_sites = ("encoder.output",)
    causal_sites = ("decoder.embeddings",)  # where the placement says that there is no encoder
    sequence = "replaced"

    def __init__(self, place: Place, *, projector: Literal["linear", "none"] = "linear") -> None:
        super().__init__(place)
        if projector not in ("linear", "none"):
            raise RecipeError(f'projector: "linear" or "none"; found {projector!r}')
        if projector == "none" and place.memory_width != place.width:
            raise RecipeError(
                f"projector: none needs memory of the host's width {place.width}; "
                f"it is {place.memory_width}"
            )
        self.project: nn.Linear | None = None
        if projector == "linear":
            self.project = nn.Linear(place.memory_width, place.width)

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        if self.project is None:
            return memory.states
        read: Tensor = self.project(memory.states.to(self.project.weight.dtype))
        return read

    def mask_of(self, mask: Tensor, memory: Memory) -> Tensor:
        if memory.mask is None:
            return mask.new_ones(memory.states.shape[:2])
        return memory.mask.to(mask.dtype)
