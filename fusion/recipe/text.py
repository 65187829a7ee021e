"""Text of a recipe: for training, development and tests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fusion.recipe.parts import Strict


class CorpusSpec(Strict):
    """One parallel corpus: two text files, columns of a table or hub dataset, or synthetic text."""

    source: str | None = Field(
        default=None, description="text file, or a column (a.b for nested ones)"
    )
    target: str | None = None
    file: str | None = Field(
        default=None, description="JSONL, TSV, CSV or parquet file with both columns"
    )
    hub: str | None = Field(default=None, description="datasets hub id")
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    synthetic: str | None = Field(
        default=None, description="split of the built-in synthetic corpus"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> CorpusSpec:
        if self.synthetic is not None:
            if self.source or self.target or self.file or self.hub:
                raise ValueError("synthetic takes no source, target, file or hub")
        elif self.source is None or self.target is None:
            raise ValueError("say source and target (two files, or two columns of file or hub)")
        elif self.file is not None and self.hub is not None:
            raise ValueError("say file or hub, not both")
        return self


class FilterSpec(Strict):
    """Pairs left out of training; how many is reported."""

    max_length: int = Field(default=256, ge=2, description="tokens of either side, host tokenizer")
    max_ratio: float = Field(
        default=9.0, ge=1.0, description="longer side / shorter side, in tokens"
    )
    empty: Literal["error", "drop"] = "error"


class DataSpec(Strict):
    """Text for training, development and tests."""

    train: CorpusSpec | list[CorpusSpec]
    dev: CorpusSpec
    tests: dict[str, CorpusSpec] = Field(default_factory=dict)
    source_lang: str = "en"
    target_lang: str = "de"
    batch_tokens: int = Field(
        default=4096, ge=16, description="per device and step: sentences x longest of all lengths"
    )
    filters: FilterSpec = FilterSpec()
    synthetic_seed: int = 1
    synthetic_pairs: int = Field(default=20000, ge=100)
