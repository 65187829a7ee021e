"""Every layer of a fused model against a reference layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from reference import Layer, Weights
from torch import Tensor

Maker = Callable[[str, int, Weights], Layer]
After = Callable[[str, int, Tensor], Tensor]


def check_layers(
    bench: Any,
    make: Maker | None = None,
    after: After = lambda side, i, x: x,
) -> None:
    """What comes out of a layer is `after` of what the reference `make` gives of its input.

    Args:
        make: the reference of layer `i` of a side, from its weights; plain where it is None
        after: what glue makes of a layer's output
    """
    if make is None:
        make = lambda side, i, p: Layer(p, 4, bench.pre_norm, {})  # noqa: E731
    host, seen = bench.model.host, {}
    layers = {
        (side, i): layer
        for side in ("encoder", "decoder")
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
        output = bench.model(**bench.batch)
    for hook in hooks:
        hook.remove()
    mask = bench.batch["attention_mask"].bool()
    assert not mask.all()
    assert not bench.memory_mask.all()
    for (side, i), layer in layers.items():
        reference = make(side, i, dict(layer.state_dict()))
        x, found = seen[side, i]
        found = found[0] if isinstance(found, tuple) else found
        if side == "encoder":
            expected = reference.encode(x, mask)
        else:
            expected = reference.decode(x, output.encoder_last_hidden_state, mask)
        expected = after(side, i, expected)
        assert found.dtype == torch.float64
        assert (found - expected).abs().max() < 1e-10, (side, i)


def glue_at(bench: Any, site: str) -> Any:
    """The glue module at a site of a bench with one glue."""
    return bench.model.glue[next(iter(bench.model.glue))][site.replace(".", "_").replace(":", "__")]
