"""A family of seq2seq models, as data: its transformers class and where its sites are."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from fusion.errors import FusionError, ModelError, RecipeError, SiteError, nearest
from fusion.hosts.site import At, Seat
from fusion.hosts.unsupported import UNSUPPORTED
from fusion.keymap import Pattern
from fusion.registry import HOSTS

Where = str | At | tuple[str | At, ...]
Norm = Literal["pre", "post", "both"]
_SPECIAL = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Family:
    """One row per family. Names of config fields may lead into a part: `encoder.hidden_size`.

    Attributes:
        model_class: name of the transformers class with a language model head
        sites: site pattern -> module pattern, both with the hole `{i}`; several where hosts of one
            family differ; a string is an attention that takes `x` first and may be skipped
        encoder_heads, decoder_heads: names of the config's fields
        encoder_width, decoder_width: likewise
        eps: likewise, of the layer norms; the first that the config has
        norm: whether a sublayer's norm comes before it or after the residual (`both`: a norm
            before, and one on the sublayer's output); or what tells it from config and site
        positions: config field with the longest source in tokens; None: no limit
        start: the token that a new host's decoder starts from; not padding where the decoder masks
            padding or leaves it out of its positions, which caches do not do
        shifts_labels: the model makes the decoder's inputs from the labels by itself
        rest: what an attention module returns beside its output when the host's own branch is not
            computed; None where the host needs it computed
        causal: a decoder-only language model, which translates by a prompt
    """

    model_class: str
    sites: dict[str, Where]
    encoder_heads: str = "encoder_attention_heads"
    decoder_heads: str = "decoder_attention_heads"
    encoder_width: str = "hidden_size"
    decoder_width: str = "hidden_size"
    eps: tuple[str, ...] = ("layer_norm_epsilon", "layer_norm_eps")
    norm: Norm | Callable[[PretrainedConfig, str], Norm] = "post"
    positions: str | None = "max_position_embeddings"
    start: Literal["pad_token_id", "eos_token_id"] = "pad_token_id"
    shifts_labels: bool = True
    rest: tuple[None, ...] | None = None
    causal: bool = False

    @property
    def architecture(self) -> type[PreTrainedModel]:
        """The class: of transformers, or `module:Class`."""
        module, _, name = self.model_class.rpartition(":")
        found = getattr(importlib.import_module(module or "transformers"), name)
        return cast(type[PreTrainedModel], found)

    def build(self, config: PretrainedConfig) -> PreTrainedModel:
        """The model, uninitialised as far as the caller's context says."""
        try:
            model = self.architecture(config)
        except FusionError:
            raise
        except Exception as error:  # heads that do not divide the width, and the like
            raise ModelError(
                f"host: {self.architecture.__name__} cannot be built from its config: {error}"
            ) from error
        model.tie_weights()  # where initialisation is switched off, so is tying
        return model

    def new_config(self, options: dict[str, Any]) -> PretrainedConfig:
        """A config from a recipe's `host.new`.

        Raises:
            RecipeError: a key that this family's config does not have, or a value it refuses.
        """
        config_class = self._config_class
        known = self.fields()
        usual = config_class()
        for key, value in options.items():
            if key not in known:
                raise RecipeError(
                    f'host.new: {config_class.__name__} has no "{key}"{nearest(key, known)}'
                )
            if _is_below_zero(value) and not _is_below_zero(getattr(usual, key, None)):
                raise RecipeError(f"host.new.{key}: found {value}; should be 0 or more")
            if "drop" in key and isinstance(value, int | float) and value > 1:
                raise RecipeError(f"host.new.{key}: found {value}; should be at most 1")
        try:
            config: PretrainedConfig = config_class(**options)
        except Exception as error:  # each config class has validators of its own
            raise RecipeError(f"host.new: {config_class.__name__}: {error}") from None
        return config

    @property
    def _config_class(self) -> type[PretrainedConfig]:
        config_class: type[PretrainedConfig] = self.architecture.config_class
        return config_class

    def fields(self) -> set[str]:
        """Names that `host.new` takes.

        Special tokens are among them for every family: generation reads them, and a config keeps
        them whether its class declares them or not.
        """
        config_class = self._config_class
        try:
            known = set(config_class().to_dict())
        except ValueError:  # a composed config is nothing without its parts
            known = {field.name for field in dataclasses.fields(config_class)}
        return known | set(config_class.attribute_map) | set(_SPECIAL)

    def heads(self, config: PretrainedConfig, site: str) -> int:
        """Attention heads at a site."""
        side = self.encoder_heads if site.startswith("encoder.") else self.decoder_heads
        return int(_field(config, side))

    def width(self, config: PretrainedConfig, site: str) -> int:
        """D at a site; encoder and decoder of a composed host may differ."""
        side = self.encoder_width if site.startswith("encoder.") else self.decoder_width
        return int(_field(config, side))

    def norm_at(self, config: PretrainedConfig, site: str) -> Norm:
        """Where the norm of a site's sublayer is."""
        return self.norm(config, site) if callable(self.norm) else self.norm

    def epsilon(self, config: PretrainedConfig) -> float:
        """The epsilon of the host's layer norms."""
        found = [_field(config, name, None) for name in self.eps]
        return float(next((value for value in found if value is not None), 1e-5))

    def source_positions(self, host: PreTrainedModel) -> int | None:
        """The longest source in tokens; None: no limit. A prompt leaves half for the translation.

        RoBERTa and ProphetNet count positions from the padding index on, which costs them that
        many of their table's rows.
        """
        if self.positions is None:
            return None
        size = int(_field(host.config, self.positions))
        if self.causal:
            return size // 2
        for name, module in host.get_encoder().named_modules():
            if name.rpartition(".")[2] == "position_embeddings":
                padding = getattr(module, "padding_idx", None)
                return size - padding - 1 if isinstance(padding, int) else size
        return size

    def find_sites(self, host: nn.Module) -> dict[str, Seat]:
        """Every site of a host with the modules that play it, in the host's own order."""
        rows = list(self._rows())
        modules = dict(host.named_modules())
        found: dict[str, Seat] = {}
        for name, module in modules.items():
            for site, pattern, at in rows:
                values = pattern.match(name)
                if values is None:
                    continue
                query = None if at.query is None else modules[Pattern(at.query).fill(values)]
                found.setdefault(site.fill(values), Seat(at, module, query))
        return found

    def _rows(self) -> Iterator[tuple[Pattern, Pattern, At]]:
        for site, where in self.sites.items():
            for one in where if isinstance(where, tuple) else (where,):
                at = At(one, skip=True) if isinstance(one, str) else one
                yield Pattern(site), Pattern(at.module), at


def _is_below_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def _field(config: PretrainedConfig, path: str, *default: Any) -> Any:
    """A config's field, `encoder.hidden_size` in a part of it."""
    first, _, rest = path.partition(".")
    value = getattr(config, first, *default)
    return _field(value, rest, *default) if rest and value is not None else value


def import_plugin(model_type: str | None) -> None:
    """Import what brings a model type, so that transformers' AutoConfig knows it."""
    if model_type in HOSTS.names():
        HOSTS.get(model_type)


def config_of(directory: str | Path) -> PretrainedConfig:
    """The config in a directory; a plug-in's config class too.

    Raises:
        OSError, ValueError, KeyError: there is none that transformers reads.
    """
    raw, _ = PretrainedConfig.get_config_dict(directory)
    import_plugin(raw.get("model_type"))
    config: PretrainedConfig = AutoConfig.from_pretrained(directory)
    return config


def family_of(config: PretrainedConfig) -> tuple[str, Family]:
    """The family of a config, by its model_type.

    Raises:
        SiteError: none is known; says why where transformers has the model.
    """
    name = config.model_type
    if name not in HOSTS.names():
        known = ", ".join(HOSTS.names())
        why = f": {UNSUPPORTED[name]}" if name in UNSUPPORTED else ""
        raise SiteError(f'no host family for model type "{name}"{why}; known: {known}')
    family: Family = HOSTS.get(name)
    return name, family
