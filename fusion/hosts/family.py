"""A family of seq2seq models, as data: its transformers class and where its sites are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fusion.errors import RecipeError, SiteError, nearest
from fusion.keymap import KeyMap, Pattern, Rule
from fusion.registry import HOSTS


@dataclass(frozen=True)
class Family:
    """One row per family.

    Attributes:
        model_class: name of the transformers class with a language model head
        sites: site pattern -> module pattern, both with the hole `{i}`
        encoder_heads, decoder_heads: names of the config's fields
        rest: what the attention module returns beside its output when the host's own branch is not
            computed; None where the host needs it computed
    """

    model_class: str
    sites: dict[str, str]
    encoder_heads: str = "encoder_attention_heads"
    decoder_heads: str = "decoder_attention_heads"
    rest: tuple[None, ...] | None = None

    def build(self, config: PretrainedConfig) -> PreTrainedModel:
        """The model, uninitialised as far as the caller's context says."""
        model: PreTrainedModel = getattr(transformers, self.model_class)(config)
        return model

    def new_config(self, options: dict[str, Any]) -> PretrainedConfig:
        """A config from a recipe's `host.new`.

        Raises:
            RecipeError: a key that this family's config does not have, or a value it refuses.
        """
        config_class = getattr(transformers, self.model_class).config_class
        known = {*config_class().to_dict(), *config_class.attribute_map}
        for key in options:
            if key not in known:
                raise RecipeError(
                    f'host.new: {config_class.__name__} has no "{key}"{nearest(key, known)}'
                )
        try:
            config: PretrainedConfig = config_class(**options)
        except Exception as error:  # each config class has validators of its own
            raise RecipeError(f"host.new: {config_class.__name__}: {error}") from None
        return config

    def heads(self, config: PretrainedConfig, site: str) -> int:
        """Attention heads at a site."""
        side = self.encoder_heads if site.startswith("encoder.") else self.decoder_heads
        return int(getattr(config, side))

    def find_sites(self, host: nn.Module) -> dict[str, nn.Module]:
        """Every site of a host with the module that plays it, in the host's own order."""
        keymap = KeyMap(Rule(site, module) for site, module in self.sites.items())
        found = {}
        for name, module in host.named_modules():
            site = keymap.target_of(name)
            if site != name:
                found[site] = module
        return found


def family_of(config: PretrainedConfig) -> tuple[str, Family]:
    """The family of a config, by its model_type.

    Raises:
        SiteError: none is known.
    """
    name = config.model_type
    if name not in HOSTS.names():
        known = ", ".join(HOSTS.names())
        raise SiteError(f'no host family for model type "{name}"; known: {known}')
    family: Family = HOSTS.get(name)
    return name, family


def select_sites(patterns: list[str], sites: list[str]) -> list[str]:
    """The sites that patterns name; `*` stands for any number, `{0,2}` for some.

    Raises:
        SiteError: a pattern matches none; lists the host's sites.
    """
    chosen: set[str] = set()
    for text in patterns:
        hits = [site for site in sites if any(_matches(p, site) for p in _alternatives(text))]
        if not hits:
            raise SiteError(f'no site "{text}"; this host has: {", ".join(sites)}')
        chosen.update(hits)
    return [site for site in sites if site in chosen]


def _alternatives(text: str) -> list[str]:
    """`decoder.{3,5}.x` -> `decoder.3.x`, `decoder.5.x`."""
    before, brace, rest = text.partition("{")
    inside, closing, after = rest.partition("}")
    if not brace or not closing:
        return [text]
    return [
        a for choice in inside.split(",") for a in _alternatives(before + choice.strip() + after)
    ]


def _matches(text: str, site: str) -> bool:
    counter = iter(range(text.count("*")))
    parts = [f"{{h{next(counter)}}}" if part == "*" else part for part in text.split(".")]
    return Pattern(".".join(parts)).match(site) is not None
