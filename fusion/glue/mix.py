"""A learned mix of an encoder's layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerMix(nn.Module):
    """gamma * sum_l softmax(s)_l h_l; s starts at 0 and gamma at 1: the plain mean.

    Shapes:  states [L, B, S, M] -> [B, S, M]
    Source:  Peters et al. 2018 (ELMo, arXiv:1802.05365), equation 1
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(1))

    def initial(self) -> dict[str, str]:
        """Init rules by own tensor name."""
        return {"scores": "zeros", "gamma": "ones"}

    def forward(self, states: Tensor) -> Tensor:
        weights = torch.softmax(self.scores, dim=0).to(states.dtype)
        return self.gamma.to(states.dtype) * torch.einsum("l,lbsm->bsm", weights, states)
