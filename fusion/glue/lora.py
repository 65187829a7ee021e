"""LoRA: a low-rank change of linear layers, computed by peft's own layer (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fusion.errors import RecipeError
from fusion.glue.base import Glue, Place
from fusion.memory import Memory


class Lora(Glue):
    """y = W x + b + (alpha / r) B A drop(x), at any Linear of the host or of an encoder.

    GPT-2's Conv1D is one too. A starts as peft starts it (Kaiming uniform) and B at 0: neutral.
    Reads no memory. With `use_rslora` the scale is alpha / sqrt(r). The Linear keeps its tensors
    and their names; freeze its part (`host: {freeze: true}`) for LoRA as published, where only A
    and B are trained.

    Sites are modules by name: `host:model.decoder.layers.*.self_attn.q_proj`, `bert:**.query`.

    Shapes:  x [..., d_in], A [r, d_in], B [d_out, r] -> [..., d_out]
    Raises:  RecipeError if peft is not installed, a site is no Linear's, or r or dropout is out of
             range
    Source:  Hu et al. 2021 (arXiv:2106.09685), section 4.1, and their choice of W_q and W_v as the
             default sites; Kalajdzievski 2023 (arXiv:2312.03732) for `use_rslora`
    Differs: nothing is merged into W
    """

    default_sites = (
        "host:**.{q_proj,v_proj,q,v,query,value,query_proj,value_proj,qkv_proj,query_key_value,c_attn}",
    )
    causal_sites = default_sites
    reads_memory = False

    def __init__(
        self,
        place: Place,
        *,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        use_rslora: bool = False,
    ) -> None:
        super().__init__(place)
        if place.inner is None:
            raise RecipeError(
                f"{place.site}: lora sits at linear layers by name, as in "
                '"host:model.decoder.layers.*.self_attn.q_proj"'
            )
        if r < 1 or not 0.0 <= dropout < 1.0:
            raise RecipeError(f"r: 1 or more, dropout: from 0 to 1; found {r} and {dropout}")
        base = _HostLinear(place.inner, place.width)
        self.lora = _peft_linear(base, r, alpha, dropout, use_rslora)

    def initial(self) -> dict[str, str]:
        return {"lora.lora_A.{p*}": "default", "lora.lora_B.{p*}": "zeros"}

    @property
    def neutral(self) -> bool:
        return True

    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        self.lora.base_layer.host = host
        try:
            changed: Tensor = self.lora(x)
        finally:
            self.lora.base_layer.host = None
        return changed


class _HostLinear(nn.Linear):
    """The Linear that peft's layer wraps: it has no tensors, and gives what the host's gives."""

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.host: Callable[[], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.host is not None
        return self.host()


def _peft_linear(base: nn.Linear, r: int, alpha: float, dropout: float, use_rslora: bool) -> Any:
    try:
        from peft import LoraConfig
        from peft.tuners.lora import Linear
    except ImportError as error:
        raise RecipeError(
            f"lora needs peft, which cannot be imported ({error}): pip install fusion[lora]"
        ) from None
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=use_rslora,
        init_lora_weights=False,
    )
    return Linear(base, "default", config, r=r, lora_alpha=alpha)
