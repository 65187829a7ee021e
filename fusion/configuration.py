"""FusedConfig: the configs of a composite model's parts, and what the recipe says of them."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

import fusion.hosts.transformer  # noqa: F401  registers its config
from fusion.hosts.family import import_plugin


class FusedConfig(PretrainedConfig):  # type: ignore[misc]
    """Configs of the parts and what the recipe says of them.

    Args:
        host: the host's config as a dict
        encoders: name -> {"config": dict, "builder", "layer", "freeze", "dropout", "limit"}
        glue: list of {"name", "method", "encoder", "sites", "options"}
        seed: of drop-net draws
        freeze_host: whether the host is frozen: no gradient, eval mode
        attention: the host's attention implementation; None: transformers' choice
    """

    model_type = "fusion"
    is_composition = True

    def __init__(
        self,
        host: dict[str, Any] | None = None,
        encoders: dict[str, dict[str, Any]] | None = None,
        glue: list[dict[str, Any]] | None = None,
        seed: int = 0,
        freeze_host: bool = False,
        attention: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.attention = attention
        self.freeze_host = freeze_host
        self.host = host or {}
        self.encoders = encoders or {}
        self.glue = glue or []
        self.seed = seed
        copied = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")
        for key in (*copied, "vocab_size"):
            if key in self.host:
                kwargs.setdefault(key, self.host[key])
        kwargs["is_encoder_decoder"] = not self.host or self.host_config.is_encoder_decoder
        kwargs["tie_word_embeddings"] = False  # the host ties its own
        super().__init__(**kwargs)

    @property
    def host_config(self) -> PretrainedConfig:
        """The host's config."""
        return config_from_dict(self.host)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """What generation reads cache sizes from: the host's config, or its decoder's."""
        config: PretrainedConfig = self
        if self.host:
            config = self.host_config.get_text_config(*args, **kwargs)
        return config


def config_from_dict(raw: dict[str, Any]) -> PretrainedConfig:
    """A transformers config from its dict, by model_type."""
    raw = dict(raw)
    import_plugin(raw["model_type"])
    return AutoConfig.for_model(raw.pop("model_type"), **raw)


AutoConfig.register("fusion", FusedConfig)
