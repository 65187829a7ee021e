"""Composite NMT models: a host, pretrained encoders, and glue; every tensor accounted for.

The public names are imported on first use, so that `fusion --help` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.composition import compose, plan
    from fusion.configuration import FusedConfig
    from fusion.errors import FusionError
    from fusion.ledger import Ledger
    from fusion.model import FusedModel
    from fusion.processor import FusionProcessor
    from fusion.recipe import Recipe, load_recipe
    from fusion.registry import (
        register_encoder,
        register_glue,
        register_host,
        register_init,
        register_source,
    )
    from fusion.warmstart import warm_start

__version__ = "0.1.0"

_HOME = {
    "FusedConfig": "fusion.configuration",
    "FusedModel": "fusion.model",
    "FusionError": "fusion.errors",
    "FusionProcessor": "fusion.processor",
    "Ledger": "fusion.ledger",
    "Recipe": "fusion.recipe",
    "compose": "fusion.composition",
    "load_recipe": "fusion.recipe",
    "plan": "fusion.composition",
    "register_encoder": "fusion.registry",
    "register_glue": "fusion.registry",
    "register_host": "fusion.registry",
    "register_init": "fusion.registry",
    "register_source": "fusion.registry",
    "warm_start": "fusion.warmstart",
}

__all__ = [
    "FusedConfig",
    "FusedModel",
    "FusionError",
    "FusionProcessor",
    "Ledger",
    "Recipe",
    "__version__",
    "compose",
    "load_recipe",
    "plan",
    "register_encoder",
    "register_glue",
    "register_host",
    "register_init",
    "register_source",
    "warm_start",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fusion' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
