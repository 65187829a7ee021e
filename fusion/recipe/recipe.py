"""The validated recipe as a whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from fusion.recipe.parts import EncoderSpec, GlueSpec, HostSpec, Strict
from fusion.recipe.text import DataSpec
from fusion.recipe.training import MemoryCacheSpec, StageSpec, TrainSpec


class Recipe(Strict):
    """Everything that fixes a run."""

    name: str
    seed: int = Field(default=1, ge=0, lt=2**32)
    output: str = Field(description="where the model and its checkpoints are written")
    host: HostSpec
    encoders: dict[str, EncoderSpec] = Field(default_factory=dict)
    glue: list[GlueSpec] = Field(default_factory=list)
    data: DataSpec
    train: TrainSpec = TrainSpec()
    stages: list[StageSpec] = Field(
        default_factory=list, description="trained one after the other; none: all at once"
    )
    memory_cache: MemoryCacheSpec | None = Field(
        default=None, description="{} turns it on; null (the default): memory is computed each step"
    )
    generate: dict[str, Any] = Field(
        default_factory=dict, description="transformers' GenerationConfig, by its names"
    )

    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """Where it was read from."""
        return self._file

    @field_validator("encoders", "glue", "stages", mode="before")
    @classmethod
    def _none_is_none(cls, value: Any, info: ValidationInfo) -> Any:
        """`encoders: null` takes away what a base recipe has."""
        if value is None:
            return {} if info.field_name == "encoders" else []
        return value

    def digest(self) -> str:
        """sha256 of the resolved recipe, less what does not change its results.

        That is the output directory, and a memory cache of fp32; of another one its format counts.
        """
        content = self.model_dump(mode="json", exclude={"output", "memory_cache"})
        if self.memory_cache is not None and self.memory_cache.format != "fp32":
            content["memory_cache"] = self.memory_cache.format
        for place, key in (content, "stages"), (content["train"], "policies"):
            if not place[key]:  # a run of a release that did not know the key resumes
                del place[key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
