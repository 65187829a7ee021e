"""Bottleneck adapters: a small feed-forward after a layer of the host or of an encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusion.errors import RecipeError
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class Bottleneck(Glue):
    """h' = h + W_2 relu(W_1 LN h), h the output of a layer. W_2 and its bias start at 0: neutral.

    Reads no memory. In an encoder (`sites: [bert.*.output]`) it is trained whether the encoder is
    frozen or not.

    Shapes:  h [B, T, D], W_1 [width, D], W_2 [D, width] -> [B, T, D]
    Raises:  RecipeError if width is not positive
    Source:  Houlsby et al. 2019 (arXiv:1902.00751), section 2.1; Guo et al. 2020 (AB-Net,
             arXiv:2010.06138), section 3.2, whose norm and relu these are
    Differs: one adapter after each layer, as AB-Net has it; Houlsby et al. put two inside it
    """

    default_sites = ("encoder.*.output", "decoder.*.output")
    causal_sites = ("decoder.*.output",)
    reads_memory = False

    def __init__(self, place: Place, *, width: int = 64) -> None:
        super().__init__(place)
        if width < 1:
            raise RecipeError(f"width: of the bottleneck, 1 or more; found {width}")
        self.norm = nn.LayerNorm(place.width, eps=place.eps)
        self.down = nn.Linear(place.width, width)
        self.up = nn.Linear(width, place.width)

    def initial(self) -> dict[str, str]:
        return {"up.{p}": "zeros"}

    @property
    def neutral(self) -> bool:
        return True

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        added: Tensor = self.up(torch.relu(self.down(self.norm(x))))
        return host() + added
