"""Asymptotic distillation: the host's encoder is drawn towards an encoder's memory (CTNMT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fusion.errors import RecipeError, ShapeError
from fusion.glue.align import Aligned
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class Distill(Glue):
    """Loss (1 - l) NLL + l mean_t ||x_t - P H_t||^2; the host's output x is left as it is: neutral.

    The mean is over the real tokens of the source, the norm a sum over D; l is `weight`, shared by
    the glue's sites. Nothing of it runs after training.
    `align`: what stands for H_t. `attention` and `tokens` are H~ of `fusion.glue.align`, its query
    x without gradient. `mean`: of the sentence's memory, with the mean of its x in place of x_t.
    `projection: fixed`: P is the identity where M equals D, else a random matrix with orthonormal
    rows or columns that is not trained, so the target is given by the encoder (by `attention` only
    within the memory's convex hull) and cannot collapse. `trained`: P is linear and learned. It
    can collapse: x and P H small alike, which the NLL resists only as far as the decoder cannot
    scale x up again.

    Shapes:  x [B, T, D], memory [B, S, M], P [D, M] -> x
    Raises:  RecipeError if an option has another value or the site is not a whole output of the
             host's encoder; ShapeError, see Aligned
    Source:  Yang et al. 2020 (CTNMT, arXiv:1908.05672), section "Asymptotic Distillation"
    Differs: P, `attention` and `mean` are ours; in the paper M equals D, P is the identity and the
             encoder reads the host's tokens
    """

    default_sites = ("encoder.output",)
    causal_sites = ("decoder.output",)

    def __init__(
        self,
        place: Place,
        *,
        weight: float = 0.01,
        align: Literal["attention", "tokens", "mean"] = "attention",
        projection: Literal["fixed", "trained"] = "fixed",
    ) -> None:
        super().__init__(place)
        if not (place.site.startswith("encoder.") and place.site.endswith("output")):
            raise RecipeError(
                f"distill is for outputs of the host's encoder, encoder.output or encoder.*.output;"
                f" found {place.site}"
            )
        if not 0.0 < weight < 1.0:
            raise RecipeError(f"weight: of the loss term, between 0 and 1; found {weight}")
        if align not in ("attention", "tokens", "mean"):
            raise RecipeError(f'align: "attention", "tokens" or "mean"; found {align!r}')
        if projection not in ("fixed", "trained"):
            raise RecipeError(f'projection: "fixed" or "trained"; found {projection!r}')
        self.penalty_weight = weight / place.count
        self.projection = projection
        self.align = Aligned(place, align) if align != "mean" else None
        self.project: nn.Linear | None = None
        if projection == "trained":
            self.project = nn.Linear(place.memory_width, place.width)
        elif place.memory_width != place.width:
            self.project = nn.Linear(place.memory_width, place.width, bias=False)
            self.project.requires_grad_(False)

    def initial(self) -> dict[str, str]:
        return {"project.weight": "orthogonal"} if self.projection == "fixed" else {}

    @property
    def neutral(self) -> bool:
        return True

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        self.penalty = self._distance(x, memory) if self.training else None
        return host()

    def _distance(self, x: Tensor, memory: Memory) -> Tensor:
        real = memory.source_mask
        if real is None:
            real = x.new_ones(x.shape[:2], dtype=torch.bool)
        elif real.shape != x.shape[:2]:
            raise ShapeError(
                f"distill: a source of {list(real.shape)} tokens, host states {list(x.shape)}"
            )
        weights = real.to(torch.promote_types(x.dtype, torch.float32))
        if self.align is not None:
            target = self.align(x.detach(), memory)
        else:
            x = _mean(x, real)[:, None]
            target = _mean(memory.states, memory.mask)[:, None]
        if self.project is not None:
            target = self.project(target.to(self.project.weight.dtype))
        apart = (x.to(weights.dtype) - target.to(weights.dtype)).pow(2).sum(dim=-1)
        penalty: Tensor = (apart * weights).sum() / weights.sum()
        return penalty


def _mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Over the real positions. Shapes: `[B, S, M]`, `[B, S]` -> `[B, M]`."""
    if mask is None:
        return states.mean(dim=1)
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1)
