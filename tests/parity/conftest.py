"""A fused model in float64 beside the plain-tensor reference of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Layer, Mix
from torch import Tensor

from fusion.composition import Composition, compose

SIDES = {"encoder": ("self_attn", "self_attention"), "decoder": ("encoder_attn", "cross_attention")}
MBART = {
    **{"family": "mbart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64},
}


@dataclass
class Bench:
    """A composition, the text it reads, and the equations of its glue."""

    composition: Composition
    batch: dict[str, Tensor]
    pre_norm: bool

    @property
    def model(self) -> Any:
        return self.composition.model

    @property
    def memory(self) -> Tensor:
        return self.model.memories(self.batch)["bert"].states

    @property
    def memory_mask(self) -> Tensor:
        return self.batch["bert_attention_mask"].bool()

    def glue(self, side: str, layer: int) -> Any:
        name = next(iter(self.model.glue))
        return self.model.glue[name][f"{side}_{layer}_{SIDES[side][1]}"]

    def check(self, equation: Callable[[Any], Mix]) -> None:
        """Every layer's output against the reference; `equation(glue)` gives query, A -> mix."""
        host, seen = self.model.host, {}
        layers = {
            (side, i): layer
            for side in SIDES
            for i, layer in enumerate(getattr(host.model, side).layers)
        }
        hooks = [
            layer.register_forward_hook(
                lambda m, args, kwargs, out, key=key: seen.update(
                    {key: (args[0] if args else kwargs["hidden_states"], out)}
                ),
                with_kwargs=True,
            )
            for key, layer in layers.items()
        ]
        with torch.no_grad():
            output = self.model(**self.batch)
        for hook in hooks:
            hook.remove()
        mask = self.batch["attention_mask"].bool()
        assert not mask.all()
        assert not self.memory_mask.all()
        for (side, i), layer in layers.items():
            mixes = {SIDES[side][0]: equation(self.glue(side, i))}
            reference = Layer(dict(layer.state_dict()), 4, self.pre_norm, mixes)
            x, found = seen[side, i]
            found = found[0] if isinstance(found, tuple) else found
            if side == "encoder":
                expected = reference.encode(x, mask)
            else:
                expected = reference.decode(x, output.encoder_last_hidden_state, mask)
            assert found.dtype == torch.float64
            assert (found - expected).abs().max() < 1e-10, (side, i)


@pytest.fixture
def make_bench(
    make_recipe: Any,
    make_bert: Callable[[int], Path],
    tokenizer_dir: Path,
    sentences: list[str],
    open_glue: Callable[[Any], Any],
) -> Callable[..., Bench]:
    """`make_bench(norm="pre", memory_width=24, ...)`: post-norm is Marian, pre-norm mBART."""

    def make(*, norm: str = "post", memory_width: int = 24, **options: Any) -> Bench:
        encoder = {"source": str(make_bert(memory_width))}
        if norm == "pre":
            options["host_settings"] = {"new": MBART, "tokenizer": str(tokenizer_dir)}
        composition = compose(make_recipe(encoder=encoder, **options))
        open_glue(composition.model.double())
        batch = composition.processor(sentences, ["ein Hund .", "die Katze schläft", "er liest"])
        return Bench(composition, batch, pre_norm=norm == "pre")

    return make
