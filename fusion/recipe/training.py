"""How a recipe trains: arguments, learning rates, policies, stages, the memory cache."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fusion.errors import RecipeError
from fusion.recipe.parts import Strict

LENGTHS = ("max_steps", "num_train_epochs")
Rate = Annotated[float, Field(ge=0)]
SCHEDULES = Literal[
    "constant",
    "constant_with_warmup",
    "cosine",
    "inverse_sqrt",
    "linear",
    "polynomial",
]


class LearningRates(BaseModel):
    """Peak learning rates by part; what is not named uses `learning_rate`.

    Further keys are more specific: `encoders.bert`, `glue.gated`, `mixes`, or a pattern of tensor
    names such as `host.model.{side}.layers.{i}.fc1.{p*}`. The most specific one decides.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Rate] = Field(init=False)

    host: Rate | None = None
    glue: Rate | None = None
    encoders: Rate | None = None

    @property
    def by_name(self) -> dict[str, float]:
        """The rates that are given, by part or pattern."""
        return {name: rate for name, rate in self.model_dump().items() if rate is not None}


class ScheduleSpec(Strict):
    """A learning rate schedule of a part's own, counted from where the part is first trained."""

    type: Literal["ctnmt", SCHEDULES] = Field(
        description="transformers' lr_scheduler_type, in place of the run's; or ctnmt, a factor on "
        "the run's"
    )
    warmup_steps: int = Field(default=0, ge=0, description="updates in which it rises to 1")
    end: int | None = Field(
        default=None,
        ge=1,
        description="ctnmt: at 0, and frozen, from this update on; others: the length of the "
        "schedule (default: what is left of the run or stage)",
    )

    @model_validator(mode="after")
    def _rises_then_ends(self) -> ScheduleSpec:
        if self.type == "ctnmt" and self.end is None:
            raise ValueError("ctnmt needs end: the update from which on the part is frozen")
        if self.end is not None and self.end <= self.warmup_steps:
            raise ValueError(f"end: {self.end} is not after warmup_steps: {self.warmup_steps}")
        return self


class UnfreezeSpec(Strict):
    """Layer by layer: one layer at first, one more every so many updates."""

    every: int = Field(ge=1, description="updates from one layer to the next")
    order: Literal["top", "bottom"] = Field(
        default="top", description="which layer is first; embeddings count as the lowest"
    )


class PolicySpec(Strict):
    """When a part, or tensors whose names match a pattern, are trained.

    What a more specific name leaves out, a less specific one says. Between `freeze: true` and what
    says when, the more specific name decides: the host from an update on, its embeddings never.
    """

    freeze: bool | None = Field(default=None, description="never trained")
    after: int | None = Field(
        default=None,
        ge=0,
        description="frozen in so many first updates of the run (or of the stage)",
    )
    unfreeze: UnfreezeSpec | None = None
    schedule: ScheduleSpec | None = None

    @model_validator(mode="after")
    def _never_or_when(self) -> PolicySpec:
        if self.freeze and any((self.after is not None, self.unfreeze, self.schedule)):
            raise ValueError("freeze: true is never trained; after, unfreeze or schedule say when")
        return self


class StageSpec(Strict):
    """One stage of a run: what is trained, how long, how fast.

    A schedule starts anew with every stage. What is left out is as in `train:`; a stage that gives
    a learning rate does not use the rates of `train:`.
    """

    name: str | None = Field(default=None, description="for the log; default: what it trains")
    train: list[str] | Literal["all"] = Field(
        description="parts or patterns of tensor names; all: whatever is not frozen for good"
    )
    updates: int | None = Field(default=None, ge=1)
    passes: float | None = Field(default=None, gt=0, description="over the training text")
    learning_rate: Rate | None = None
    learning_rates: LearningRates | None = None
    lr_scheduler_type: SCHEDULES | None = None
    warmup_steps: int | None = Field(default=None, ge=0)
    policies: dict[str, PolicySpec] = Field(
        default_factory=dict, description="of this stage only; updates count from its start"
    )

    @model_validator(mode="after")
    def _one_length(self) -> StageSpec:
        if (self.updates is None) == (self.passes is None):
            raise ValueError("say either updates or passes, one of the two")
        if self.train == []:
            raise ValueError("train: names nothing; for example: train: [glue]")
        for name, policy in self.policies.items():
            if self.updates is not None and (policy.after or 0) >= self.updates:
                raise ValueError(
                    f"policies.{name}.after: the stage has {self.updates} updates; "
                    f"found {policy.after}"
                )
        return self

    @property
    def label(self) -> str:
        """Its name, or what it trains."""
        return self.name or ("all" if self.train == "all" else " and ".join(self.train))


class EarlyStopping(Strict):
    """Stop when dev BLEU has not risen for `patience` evaluations."""

    patience: int = Field(ge=1)
    threshold: float = Field(default=0.0, ge=0)


class TrainSpec(BaseModel):
    """transformers' own Seq2SeqTrainingArguments, by their names, and five settings of ours."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    learning_rates: LearningRates = LearningRates()
    policies: dict[str, PolicySpec] = Field(
        default_factory=dict, description="by part or pattern of tensor names: when it is trained"
    )
    early_stopping: EarlyStopping | None = None
    average_checkpoints: int = Field(
        default=0,
        ge=0,
        description="average the last N checkpoints at the end; kept if better on dev",
    )
    dev_sentences: int | None = Field(
        default=None, ge=1, description="decode only the first N dev sentences during training"
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """What goes to Seq2SeqTrainingArguments; not a length of null, which unsays a base's."""
        given = self.model_extra or {}
        return {k: v for k, v in given.items() if v is not None or k not in LENGTHS}


def byte_size(text: Any, where: str) -> int:
    """`20GB`, `512 MiB` or a plain number in bytes.

    Raises:
        RecipeError: it is none of these.
    """
    try:
        if isinstance(text, bool):
            raise ValueError
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValueError:
        raise RecipeError(f"{where}: a number of bytes, or such as 20GB; found {text!r}") from None


class MemoryCacheSpec(Strict):
    """Frozen encoders' memory of the training text, computed once and read from disk."""

    dir: str | None = Field(
        default=None, description="default: $XDG_CACHE_HOME/fusion/memory; recipes may share it"
    )
    max_bytes: ByteSize | None = Field(
        default=None,
        ge=1,
        description="of the whole directory, such as 20GB; several writers may each pass it by a "
        "block; default: the free disk",
    )
    format: Literal["fp32", "fp16", "bf16", "int8", "q3"] = Field(
        default="fp32",
        description="fp32 trains as without a cache, up to bf16's rounding where training is in "
        "bf16; q3 takes a quarter of fp16",
    )
    block_bytes: ByteSize = Field(
        default=ByteSize(32 * 2**20), ge=2**10, description="what a kill may lose of the work"
    )

    @field_validator("max_bytes", "block_bytes", mode="before")
    @classmethod
    def _size(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic's own message does not say what a size looks like."""
        try:
            return (
                None if value is None and info.field_name == "max_bytes" else byte_size(value, "")
            )
        except RecipeError as error:
            raise ValueError(str(error).removeprefix(": ")) from None
