"""A model of a config with its parameters on meta, for a warm start."""

from __future__ import annotations

from transformers.initialization import no_init_weights

from fusion.causal import CausalFusedModel
from fusion.configuration import FusedConfig
from fusion.model import FusedModel
from fusion.warmstart import parameters_on_meta


def blank_model(config: FusedConfig) -> FusedModel:
    """The model that a config describes; no initialisation is run in vain."""
    kind = FusedModel if config.is_encoder_decoder else CausalFusedModel
    with parameters_on_meta(), no_init_weights():
        return kind(config)
