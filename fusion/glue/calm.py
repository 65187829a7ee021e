"""CALM: pairs of layers of encoder and host, joined by cross-attention (Bansal et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from fusion.errors import RecipeError
from fusion.glue.attention import MemoryAttention
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class Calm(Glue):
    """h_j' = h_j + XAttn(q = h_j, k = v = P h_i), for pairs (i, j) of encoder and host layers.

    P is a linear map from M to D, XAttn has the host's heads, and its W_o and bias start at 0:
    neutral. `encoder_layers: even` spreads the encoder's layers 1 to n evenly over the sites, the
    last site reading layer n; a list says the layer of each site in order, 0 being the embeddings.
    Glue at layers of the host's encoder as well is better written as glue of its own.

    Shapes:  h_j [B, T, D], memory layers [L, B, S, M] -> [B, T, D]
    Raises:  RecipeError if a listed layer does not exist, or the list's length is not that of the
             sites
    Source:  Bansal et al. 2024 (CALM, arXiv:2401.02412), section 3.1
    Differs: the host decodes after an encoder of its own, so its decoder is the anchor model; in
             the paper both models read one prompt under a causal mask, here the encoder's whole
             sentence is read; projections have biases
    """

    default_sites = ("decoder.*.output",)
    causal_sites = ("decoder.*.output",)
    reads_layers = True

    def __init__(
        self,
        place: Place,
        *,
        encoder_layers: list[int] | Literal["even"] = "even",
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(place)
        self.layer = _layer_of(place, encoder_layers)
        self.project = nn.Linear(place.memory_width, place.width)
        self.attention = MemoryAttention(place.width, place.width, place.heads, attention_dropout)

    def initial(self) -> dict[str, str]:
        return {"attention.out_proj.{p}": "zeros"}

    @property
    def neutral(self) -> bool:
        return True

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        read: Tensor = self.attention(x, self._projected(memory))
        return host() + read

    def _projected(self, memory: Memory) -> Memory:
        """P h_i; computed once for a memory that is read step after step."""
        key = f"{id(self)}:projected"
        if memory.reusable and key in memory.projected:
            states, _ = memory.projected[key]
        else:
            assert memory.layers is not None
            states = self.project(memory.layers[self.layer].to(self.project.weight.dtype))
            if memory.reusable:
                memory.projected[key] = (states, states)
        return Memory(states, memory.mask, memory.reusable, memory.projected)


def _layer_of(place: Place, encoder_layers: list[int] | Literal["even"]) -> int:
    """The encoder's hidden state that a site reads."""
    last = place.memory_layers - 1
    if encoder_layers == "even":
        return max(1, round((place.index + 1) * last / place.count))
    if not isinstance(encoder_layers, list) or len(encoder_layers) != place.count:
        raise RecipeError(
            f'encoder_layers: "even", or the layers of its {place.count} sites in order; '
            f"found {encoder_layers!r}"
        )
    layer = encoder_layers[place.index]
    if not isinstance(layer, int) or not 0 <= layer <= last:
        raise RecipeError(f"encoder_layers: 0 (embeddings) to {last}; found {layer!r}")
    return layer
