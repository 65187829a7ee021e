"""Host, encoders and glue of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fusion.registry import HOSTS, TOOLKITS


class Strict(BaseModel):
    """An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SentencePieceSpec(Strict):
    """A SentencePiece model trained on the training text, one for both languages."""

    vocab_size: int = Field(default=8000, ge=32, description="pieces, special tokens included")
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = Field(default=1.0, gt=0.9, le=1.0)


class RuleSpec(Strict):
    """A rule that does more than rename."""

    source: str | list[str] = Field(
        alias="from", description="source name pattern; several are joined by the first operation"
    )
    ops: list[str | dict[str, Any]] = Field(
        default_factory=list, description="operations in order: transpose, {split: {...}}, ..."
    )
    where: dict[str, list[str | int] | dict[str | int, str | int]] = Field(
        default_factory=dict, description="hole: what each of its values is called at the source"
    )


class SourceSpec(BaseModel):
    """Where tensors come from."""

    source: str | None = Field(
        default=None,
        description="directory, hub id (org/name or org/name@revision), package:NAME/PATH, "
        "or (host only) recipe:FILE",
    )
    format: str | None = Field(
        default=None,
        description="of the source: a name in the registry of sources; fairseq, opennmt, ... for "
        "a host of another toolkit; by default the content decides",
    )
    rules: dict[str, str | RuleSpec] = Field(
        default_factory=dict, description="target name pattern <- source name pattern"
    )
    new_tensors: dict[str, str] = Field(
        default_factory=dict,
        description="target name pattern of tensors that the source lacks: init rule",
    )
    ignore: dict[str, str] = Field(
        default_factory=dict, description="source name pattern not to load: the reason"
    )


class PartSpec(Strict, SourceSpec):
    """What host and encoders have in common."""

    freeze: bool = False


class HostSpec(PartSpec):
    """The seq2seq model that is extended: from a source, or new from a config."""

    new: dict[str, Any] | None = Field(
        default=None, description="`family` and that family's transformers config"
    )
    init: str = Field(default="transformer", description="init of a new host")
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = Field(
        default=None,
        description="transformers' attention implementation; on a CPU, eager trains fastest",
    )
    prompt: str | None = Field(
        default=None,
        description="what the host reads, with {source} where the source text goes; decoder-only "
        "hosts need one",
    )
    tokenizer: str | SentencePieceSpec | None = Field(
        default=None,
        description="directory or hub id; or how to train SentencePiece; default: the source's",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> HostSpec:
        if self.prompt is not None and "{source}" not in self.prompt:
            raise ValueError("prompt needs {source} where the source text goes")
        if (self.source is None) == (self.new is None):
            raise ValueError("say either source (a checkpoint) or new (a config), one of the two")
        if self.new is not None and not isinstance(self.new.get("family"), str):
            raise ValueError(f"new needs family, one of: {', '.join(HOSTS.names())}")
        if self.format in TOOLKITS and self.tokenizer is None:
            raise ValueError(f"a host of {self.format} needs tokenizer: a directory")
        if self.new is not None and self.tokenizer is None:
            raise ValueError("a new host needs tokenizer: {vocab_size: ...} or a directory")
        return self


class EncoderSpec(PartSpec):
    """A pretrained encoder whose memory the glue reads."""

    source: str = Field(description="directory, hub id or package:NAME/PATH")
    config: str | None = Field(
        default=None,
        description="directory or hub id with config and tokenizer, where the source is weights",
    )
    builder: str = Field(default="auto", description="name in the registry of encoders")
    freeze: bool = True
    layer: int | Literal["mix", "all"] = Field(
        default=-1,
        description="hidden layer (0 = embeddings, -1 = last); mix: a learned mix of all; all: for "
        "glue that reads every layer",
    )
    overflow: Literal["error", "truncate", "windows"] = Field(
        default="error", description="sentences longer than the encoder's positions"
    )
    max_length: int | None = Field(
        default=None, ge=4, description="a smaller limit than the encoder's own"
    )
    encoder_dropout: bool = Field(
        default=False,
        description="keep the frozen encoder's dropout on in training, as the paper's code",
    )

    @model_validator(mode="after")
    def _has_config(self) -> EncoderSpec:
        if self.format in TOOLKITS and self.config is None:
            raise ValueError(
                f"an encoder of {self.format} needs config: a directory with config.json and "
                "the tokenizer"
            )
        return self


class GlueSpec(SourceSpec):
    """One glue method at some sites; further keys are the method's own options.

    With a source, its tensors are loaded like any part's, under the names that they have below
    `glue.NAME.`; of a bert-nmt file, sites and options are the file's unless said otherwise.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    method: str
    encoder: str | list[str] | None = Field(
        default=None, description="whose memory it reads; several are read as one; most need one"
    )
    sites: list[str] | None = Field(
        default=None, min_length=1, description="default: where the method is published to sit"
    )
    name: str | None = Field(default=None, description="name of its tensors; default: the method")

    @model_validator(mode="after")
    def _from_somewhere(self) -> GlueSpec:
        if self.source is None and (self.format or self.rules or self.new_tensors or self.ignore):
            raise ValueError(
                "format, rules, new_tensors and ignore are about source, which is not said"
            )
        if self.format in TOOLKITS and self.format != "bert-nmt":
            raise ValueError(f"a file of {self.format} has no glue; bert-nmt's have")
        if self.format == "bert-nmt" and self.method != "bert-fused":
            raise ValueError("the glue of a bert-nmt file is bert-fused")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.model_extra or {})

    @property
    def encoders(self) -> list[str]:
        """The encoders whose memory it reads."""
        named = [self.encoder] if isinstance(self.encoder, str) else self.encoder
        return named or []

    @property
    def key(self) -> str:
        """The name of its tensors in the model."""
        return (self.name or self.method).replace("-", "_")
