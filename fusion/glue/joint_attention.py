"""Joint attention: one softmax over the host's keys and the memory's, in the host's own attention.

The host's code is not copied. In an attention module that has this glue, transformers' attention
interface finds a function of ours, which adds the memory's keys and values to the host's and then
runs the function that the host would have run.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fusion.errors import RecipeError, ShapeError, SiteError
from fusion.glue.base import Glue, Place
from fusion.memory import Memory

NAME = "fusion-joint"  # in transformers' table of attention functions
MASKED = ("eager", "sdpa")  # those that take a mask [B, 1 or H, T, S]
Attend = Callable[..., tuple[Tensor, Tensor | None]]


class JointAttention(Glue):
    """a = softmax(q [K; K_B]^T / sqrt(d)) [V; V_B], with K_B = H_B W_k and V_B = H_B W_v.

    q, K, V and the output projection are the host's, [;] joins along the positions, and masks,
    scale and dropout are the host's too. Memory keys get no rotation, position bias or norm.
    `start: paper`: W_k and W_v start at random; the host changes at once.
    `start: neutral`: a = a_host + tanh(g) (a_joint - a_host), g = 0, so the start is the host bit
    for bit. Values at zero would not be neutral: memory keys take their share of the softmax
    whatever their values are.

    Shapes:  x [B, T, D], memory [B, S, M], K and V [B, heads, T', d] -> [B, T, D]
    Raises:  SiteError where the host's attention does not go through the attention interface
             (BigBird-Pegasus' and Pegasus-X' encoders, LongT5's encoder, and all of LED, FSMT, MVP
             and ProphetNet); RecipeError where the host's attention is neither eager nor sdpa
    Source:  Zhang et al. 2020 (BERT-JAM, arXiv:2011.04266), joint-attention
    Differs: no gated linear unit over the encoder's layers (`layer: mix` of the encoder is the mix
             here); the decoder's own attention joins only if `sites` names it; `neutral` is ours
    """

    def __init__(self, place: Place, *, start: Literal["paper", "neutral"] = "paper") -> None:
        super().__init__(place)
        if start not in ("paper", "neutral"):
            raise RecipeError(f'start: "paper" or "neutral"; found {start!r}')
        self.start = start
        self.k_proj = nn.Linear(place.memory_width, place.key_width or place.width)
        self.v_proj = nn.Linear(place.memory_width, place.key_width or place.width)
        if start == "neutral":
            self.gate = nn.Parameter(torch.zeros(1))
        self._board: dict[str, Memory] = {}
        self._name = ""
        self._entered: list[nn.Module] = []

    def initial(self) -> dict[str, str]:
        return {"gate": "zeros"} if self.neutral else {}

    @property
    def neutral(self) -> bool:
        return self.start == "neutral"

    def enter(self, module: nn.Module, board: dict[str, Memory], name: str) -> None:
        """Let the host's attention module call us.

        Raises:
            SiteError: it computes its softmax by itself.
        """
        joint = module.__dict__.get("_fusion_joint")
        if joint is None:
            joint = _Joint(*_interface(module, self.place.site))
            module.__dict__["_fusion_joint"] = joint
            config = copy.copy(joint.config)
            config._attn_implementation_internal = NAME
            module.config = config
        joint.glue.append(self)
        self._board, self._name, self._entered = board, name, [module]

    def leave(self) -> None:
        for module in self._entered:
            joint = module.__dict__["_fusion_joint"]
            joint.glue.remove(self)
            if not joint.glue:
                module.config = joint.config
                del module.__dict__["_fusion_joint"]
        self._entered = []

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        """The host's branch, in which `joint` has a part."""
        return host()

    def joint(self, attend: Attend, module: nn.Module, *states: Tensor, **kwargs: Any) -> Any:
        """What `attend` gives of the host's keys and the memory's.

        Args:
            states: query `[B*k, H, T, d]`, keys and values `[B*k, H', T', d]`, mask or None
        """
        query, key, value, mask = states
        memory = self._board[self._name]
        further, values = self._keys_values(memory, key)
        seen = memory.mask
        if seen is not None:
            seen = seen.repeat_interleave(key.shape[0] // seen.shape[0], dim=0)
        joined = dict(kwargs)
        if joined.get("position_bias") is not None:
            joined["position_bias"] = F.pad(joined["position_bias"], (0, further.shape[2]))
        wide = _wide_mask(mask, seen, (query, key, further), _is_causal(module, kwargs))
        keys, values = torch.cat([key, further], dim=2), torch.cat([value, values], dim=2)
        mixed, weights = attend(module, query, keys, values, wide, **joined)
        if self.neutral:
            own, _ = attend(module, query, key, value, mask, **kwargs)
            mixed = own + torch.tanh(self.gate) * (mixed - own)
        return mixed, weights

    def _keys_values(self, memory: Memory, key: Tensor) -> tuple[Tensor, Tensor]:
        """K_B and V_B `[B*k, H', S, d]`, as many rows as the host's keys have."""
        rows, heads, _, size = key.shape
        name = f"{id(self)}:{rows}"
        if memory.reusable and name in memory.projected:
            return memory.projected[name]
        if heads * size != self.k_proj.out_features or rows % memory.states.shape[0]:
            raise ShapeError(
                f"{self.place.site}: {rows} rows of {heads} heads of width {size}; the glue was "
                f"built for {self.k_proj.out_features} in all, {memory.states.shape[0]} sentences"
            )
        states = memory.states.to(self.k_proj.weight.dtype)
        beams = rows // states.shape[0]

        def split(projected: Tensor) -> Tensor:
            parts = projected.view(*projected.shape[:2], heads, size).transpose(1, 2)
            return parts.repeat_interleave(beams, dim=0)

        pair = split(self.k_proj(states)), split(self.v_proj(states))
        if memory.reusable:
            memory.projected[name] = pair
        return pair


@dataclass
class _Joint:
    """What an attention module with joint attention knows.

    Attributes:
        config: the one that it had
        eager: the function that it runs where the attention interface names none
    """

    config: PretrainedConfig
    eager: Attend
    glue: list[JointAttention] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The host's attention implementation."""
        return str(self.config._attn_implementation or "eager")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """The function behind `NAME`: the host's own, within every glue of the module in turn."""
    joint: _Joint = module.__dict__["_fusion_joint"]
    if joint.kind not in MASKED:
        raise RecipeError(
            f'joint-attention needs host.attention: {" or ".join(MASKED)}; found "{joint.kind}"'
        )
    function: Attend = ALL_ATTENTION_FUNCTIONS.get_interface(joint.kind, joint.eager)
    for glue in joint.glue:
        function = partial(glue.joint, function)
    return function(module, query, key, value, attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)


def _interface(module: nn.Module, site: str) -> tuple[PretrainedConfig, Attend]:
    """An attention module's config and its eager function."""
    forward = inspect.unwrap(type(module).forward)
    config = getattr(module, "config", None)
    if "ALL_ATTENTION_FUNCTIONS" not in forward.__code__.co_names or config is None:
        raise SiteError(
            f"joint-attention: {site}: {type(module).__name__} does not go through transformers' "
            "attention interface; bert-fused, gated and stacked work there"
        )
    return config, forward.__globals__["eager_attention_forward"]


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether the function masks later keys by itself where it is given no mask."""
    asked = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if asked is None else asked
    return bool(causal) and module.__dict__["_fusion_joint"].kind != "eager"


def _wide_mask(
    mask: Tensor | None, seen: Tensor | None, states: tuple[Tensor, Tensor, Tensor], causal: bool
) -> Tensor | None:
    """The host's mask `[B, 1 or H, T, T']` with the memory's `[B, S]` beside it.

    Args:
        states: the query, the host's keys and the memory's
    """
    query, key, further = states
    rows, length, size = query.shape[0], query.shape[2], further.shape[2]
    causal = causal and length > 1
    if mask is None:
        if seen is None and not causal:
            return None
        mask = query.new_zeros(1, 1, length, key.shape[2])
        if causal:
            later = torch.ones_like(mask, dtype=torch.bool).triu(1)
            mask = mask.masked_fill(later, torch.finfo(mask.dtype).min)
    if seen is None:
        seen = torch.ones(rows, size, dtype=torch.bool, device=query.device)
    beside = seen[:, None, None, :]
    if mask.dtype != torch.bool:
        lowest = torch.finfo(mask.dtype).min
        beside = mask.new_zeros(beside.shape).masked_fill(~beside, lowest)
    mask = mask.expand(rows, -1, length, -1)
    return torch.cat([mask, beside.expand(-1, mask.shape[1], length, -1)], dim=-1)
