"""Tiny parts in a folder, and the models that are composed of them, as a recipe would."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fusion.composition import Composition, compose
from fusion.hosts.family import Family
from fusion.model import FusedModel
from fusion.recipe import validate_recipe
from fusion.registry import ENCODERS
from fusion.saved import save_model
from fusion.testing.hosts import tiny_host
from fusion.testing.tiny import letter_tokenizer, randomise, save_part, tiny_config

TEXTS = ["the cat sleeps .", "a very old dog sees the small cat .", "i"]
OTHERS = ["uif dbu tmffqt .", "b wfsz pme eph tfft uif tnbmm dbu .", "j"]  # as many letters
TARGETS = ["a dog .", "the old cat sees", "house"]
PROMPT = "the {source} a"
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class HostChoice:
    """A host: a row of `TINY_HOSTS` or a family, and options of its config.

    Attributes:
        absent: rows of the family's `sites` that this host of it does not have -> why
    """

    name: str = "marian"
    options: dict[str, Any] | None = None
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder: its config, who builds it, and what the recipe says of it.

    Attributes:
        tokenizer: makes one, given a folder; None: letters
        unused: patterns of parameters that get no gradient where it is not frozen -> why
    """

    config: PretrainedConfig = field(default_factory=lambda: tiny_config(BertConfig))
    builder: str = "auto"
    tokenizer: Callable[[Path], PreTrainedTokenizerBase] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Its directory, with random weights."""
        torch.manual_seed(1)
        if self.builder == "auto":
            self.config.architectures = self.config.architectures or []  # AutoModel reads a list
            model = AutoModel.from_config(self.config)
        else:
            model = ENCODERS.get(self.builder)(self.config)
        randomise(model)
        if self.tokenizer is not None:
            tokenizer = self.tokenizer(folder)
        else:
            tokenizer = letter_tokenizer(
                folder, pad=getattr(self.config, "pad_token_id", None) or 0
            )
        return save_part(model, tokenizer, folder)


class Bench:
    """One host with encoders and glue.

    Attributes:
        host, encoders, glue: what it is made of; `glue` as in a recipe
        folder: of its files
    """

    def __init__(
        self,
        folder: Path,
        host: HostChoice,
        encoders: dict[str, EncoderChoice],
        glue: list[dict[str, Any]],
    ) -> None:
        self.folder, self.host, self.encoders, self.glue = folder, host, encoders, glue

    @cached_property
    def _host(self) -> tuple[Family, Path]:
        family, model = tiny_host(self.host.name, self.host.options)
        folder = self.folder / "host"
        return family, save_part(model, letter_tokenizer(folder, words=True), folder)

    @property
    def family(self) -> Family:
        """The host's."""
        return self._host[0]

    @property
    def host_folder(self) -> Path:
        """The host's directory."""
        return self._host[1]

    @cached_property
    def plain_host(self) -> PreTrainedModel:
        """The host as transformers loads it, without glue; checks leave it as it is."""
        host: PreTrainedModel = self.family.architecture.from_pretrained(self.host_folder).eval()
        return host

    @cached_property
    def encoder_folders(self) -> dict[str, Path]:
        """The encoders' directories."""
        return {n: one.save(self.folder / "encoders" / n) for n, one in self.encoders.items()}

    def compose(
        self,
        *,
        freeze_host: bool = False,
        glue: list[dict[str, Any]] | None = None,
        encoders: dict[str, dict[str, Any]] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Composition:
        """A model of a recipe with these parts.

        Args:
            glue, encoders: as in the recipe, before its own
            settings: of its own encoders, beside or instead
        """
        mine = {
            name: {"source": str(self.encoder_folders[name]), "builder": one.builder}
            | one.settings
            | (settings or {})
            for name, one in self.encoders.items()
        }
        host: dict[str, Any] = {"source": str(self.host_folder), "freeze": freeze_host}
        if self.family.causal:
            host["prompt"] = PROMPT
        raw = {
            "name": "check",
            "output": str(self.folder / "output"),
            "host": host,
            "encoders": (encoders or {}) | mine,
            "glue": [*(glue or []), *self.glue],
            "data": {"train": {"synthetic": "train"}, "dev": {"synthetic": "dev"}},
        }
        return compose(validate_recipe(raw, self.folder / "check.yaml"))

    @cached_property
    def start(self) -> Composition:
        """The model as it starts; checks leave its values as they are."""
        return self.compose()

    @cached_property
    def opened(self) -> Composition:
        """The same with random values in all glue, so that no gate or projection is closed."""
        composition = self.compose()
        for part in (composition.model.glue, composition.model.mixes):
            randomise(part, 0.5)
        return composition

    @cached_property
    def saved(self) -> Path:
        """`opened`, saved."""
        folder = self.folder / "saved"
        save_model(self.opened.model, folder, self.opened.processor)
        return folder

    @cached_property
    def batch(self) -> Batch:
        """Three sentences with translations."""
        return self.start.processor(TEXTS, TARGETS)

    @cached_property
    def other_batch(self) -> Batch:
        """The same for the host; the encoders read other sentences."""
        others = self.start.model.split_inputs(self.start.processor(OTHERS, TARGETS))[0]
        return self.batch | others

    @property
    def source(self) -> Batch:
        """The three sentences alone."""
        return {name: tensor for name, tensor in self.batch.items() if name != "labels"}


def logits_of(model: Any, batch: Batch, shifts: FusedModel | None = None) -> Tensor:
    """Logits of the translations, whatever the host does with labels.

    Args:
        shifts: shifts the labels, for a model that cannot
    """
    source = {name: tensor for name, tensor in batch.items() if name != "labels"}
    start = (shifts or model).prepare_decoder_input_ids_from_labels(batch["labels"])
    with torch.no_grad():
        logits: Tensor = model(**source, decoder_input_ids=start).logits
    return logits


def loss_of(model: FusedModel, batch: Batch) -> Tensor:
    """The loss, without the warning that BERT2BERT gives whenever it has labels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Version v4.12.0 introduces", FutureWarning)
        loss: Tensor = model(**batch).loss
    return loss


@contextmanager
def kept(model: FusedModel) -> Iterator[None]:
    """Within it a model may be trained; afterwards it is what it was."""
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clock = (model.clock.update, model.clock.forward)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        model.zero_grad(set_to_none=True)
        model.load_state_dict(values)
        model.clock.update, model.clock.forward = clock
        model.eval()
