"""An encoder's memory as the host's embeddings, or added to them (BiBERT and its kin)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from fusion.errors import RecipeError
from fusion.glue.align import Aligned
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class EncoderEmbedding(Glue):
    """`mode: add`: E + P H~; `mode: replace`: P H~ in place of E. H~: see `fusion.glue.align`.

    E is the output at the site, by default the token embeddings before scale, positions and norm.
    `start: neutral` (add only): P and its bias start at 0.
    `last: K`: H_B is one of the encoder's last K hidden states, in training drawn once per batch,
    at evaluation their mean; the recipe sets `encoders.NAME.layer: all`. 0: the memory as it is.

    Shapes:  E [B, T, D], memory [B, S, M] or layers [L, B, S, M], P [D, M] -> [B, T, D]
    Raises:  RecipeError if an option has another value, `replace` is to start neutral, or there
             are not K layers; ShapeError, see Aligned
    Source:  Clinchant et al. 2019 (arXiv:1909.12744); Xu et al. 2021 (BiBERT, arXiv:2109.04588),
             section 4 (stochastic layer selection)
    Differs: in BiBERT the encoder reads the host's tokens (`align: tokens`, `mode: replace`);
             `add`, `align: attention` and `start: neutral` are ours. The draw is a function of
             seed, update and site, so it is the same on all ranks
    """

    default_sites = ("encoder.embeddings",)
    causal_sites = ("decoder.embeddings",)

    def __init__(
        self,
        place: Place,
        *,
        mode: Literal["add", "replace"] = "add",
        align: Literal["attention", "tokens"] = "attention",
        start: Literal["paper", "neutral"] = "paper",
        last: int = 0,
    ) -> None:
        super().__init__(place)
        if mode not in ("add", "replace"):
            raise RecipeError(f'mode: "add" or "replace"; found {mode!r}')
        if start not in ("paper", "neutral"):
            raise RecipeError(f'start: "paper" or "neutral"; found {start!r}')
        if start == "neutral" and mode == "replace":
            raise RecipeError("start: neutral keeps the host's embeddings: mode: add")
        layers = max(0, place.memory_layers - 1)
        if last < 0 or (layers and last > layers):
            raise RecipeError(f"last: 0 (off) to the encoder's {layers} layers; found {last}")
        self.mode, self.start, self.last = mode, start, last
        self.reads_layers = last > 0
        self.align = Aligned(place, align)
        self.project = nn.Linear(place.memory_width, place.width)
        self._drawn = 1

    def initial(self) -> dict[str, str]:
        return {"project.{p}": "zeros"} if self.neutral else {}

    @property
    def neutral(self) -> bool:
        return self.start == "neutral"

    def draw(self, rng: random.Random) -> None:
        if self.last:
            self._drawn = rng.randint(1, self.last)

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        read: Tensor = self.project(self.align(x, self._picked(memory)))
        return host() + read if self.mode == "add" else read

    def _picked(self, memory: Memory) -> Memory:
        """One of the last K layers in training, else their mean; the memory itself where K is 0."""
        if not self.last:
            return memory
        assert memory.layers is not None
        layers = memory.layers
        states = layers[-self._drawn] if self.training else layers[-self.last :].mean(dim=0)
        return Memory(
            states,
            memory.mask,
            memory.reusable,
            memory.projected,
            source_mask=memory.source_mask,
        )
