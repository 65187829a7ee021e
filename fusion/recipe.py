"""YAML -> a validated Recipe: parts, glue, data, training. Imports no torch.

A recipe is read with `load_recipe`, which resolves `extends:`, environment variables and paths
relative to the recipe, applies `a.b=value` overrides, and reports a mistake as one `RecipeError`
that names the file, the key, what was found and the nearest known name.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fusion.errors import RecipeError, nearest
from fusion.registry import (
    ENCODERS,
    GLUE,
    HOSTS,
    INITS,
    SOURCES,
    TOOLKITS,
    annotated_fields,
    keyword_options,
)

RESERVED_ENCODER_NAMES = ("decoder", "host", "encoder", "input", "attention", "labels", "cache")


class Strict(BaseModel):
    """An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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

    model_config = ConfigDict(extra="allow", frozen=True)

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


class LearningRates(Strict):
    """Peak learning rates by part; a part that is not named uses `learning_rate`."""

    host: float | None = Field(default=None, ge=0)
    glue: float | None = Field(default=None, ge=0)
    encoders: float | None = Field(default=None, ge=0)


class EarlyStopping(Strict):
    """Stop when dev BLEU has not risen for `patience` evaluations."""

    patience: int = Field(ge=1)
    threshold: float = Field(default=0.0, ge=0)


class TrainSpec(BaseModel):
    """transformers' own Seq2SeqTrainingArguments, by their names, and four settings of ours."""

    model_config = ConfigDict(extra="allow", frozen=True)

    learning_rates: LearningRates = LearningRates()
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
        """What goes to Seq2SeqTrainingArguments."""
        return dict(self.model_extra or {})


class MemoryCacheSpec(Strict):
    """Frozen encoders' memory of the training text, computed once and read from disk."""

    dir: str | None = Field(
        default=None, description="default: $XDG_CACHE_HOME/fusion/memory; recipes may share it"
    )
    max_bytes: ByteSize | None = Field(
        default=None,
        ge=1,
        description="of the whole directory, such as 20GB; default: the free disk",
    )
    format: Literal["fp32", "fp16", "bf16", "int8", "q3"] = Field(
        default="fp32", description="fp32 trains as without a cache; q3 takes a quarter of fp16"
    )
    block_bytes: ByteSize = Field(
        default=ByteSize(32 * 2**20), ge=2**10, description="what a kill may lose of the work"
    )

    @field_validator("max_bytes", "block_bytes", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        """pydantic's own message does not say what a size looks like."""
        try:
            return None if value is None else byte_size(value, "")
        except RecipeError as error:
            raise ValueError(str(error).removeprefix(": ")) from None


class Recipe(Strict):
    """Everything that fixes a run."""

    name: str
    seed: int = 1
    output: str = Field(description="where the model and its checkpoints are written")
    host: HostSpec
    encoders: dict[str, EncoderSpec] = Field(default_factory=dict)
    glue: list[GlueSpec] = Field(default_factory=list)
    data: DataSpec
    train: TrainSpec = TrainSpec()
    memory_cache: MemoryCacheSpec | None = Field(
        default=None, description="{} turns it on; null (the default): memory is computed each step"
    )
    generate: dict[str, Any] = Field(
        default_factory=dict, description="transformers' GenerationConfig, by its names"
    )

    @field_validator("encoders", "glue", mode="before")
    @classmethod
    def _none_is_none(cls, value: Any, info: ValidationInfo) -> Any:
        """`encoders: null` takes away what a base recipe has."""
        if value is None:
            return [] if info.field_name == "glue" else {}
        return value

    def digest(self) -> str:
        """sha256 of the resolved recipe, less what does not change its results.

        That is the output directory, and a memory cache of fp32; of another one its format counts.
        """
        import hashlib

        content = self.model_dump(mode="json", exclude={"output", "memory_cache"})
        if self.memory_cache is not None and self.memory_cache.format != "fp32":
            content["memory_cache"] = self.memory_cache.format
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, resolve and validate a recipe.

    Args:
        path: the YAML file
        overrides: `a.b=value` or `glue.0.method=gated`; values are YAML, paths relative to the
            recipe

    Raises:
        RecipeError: names the file, the key, what was found and the nearest thing that would work.
    """
    path = Path(path)
    raw = _read(path, ())
    for override in overrides or []:
        _override(raw, override, path)
    raw = _anchor(raw, path.resolve().parent)
    return validate_recipe(raw, path)


def validate_recipe(raw: dict[str, Any], path: Path) -> Recipe:
    """A Recipe from its plain dict, with names checked against the registries."""
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {line}" for line in _explain(error))) from None
    problems = _unknown_names(recipe)
    if problems:
        raise RecipeError("\n".join(f"{path}: {line}" for line in problems))
    return recipe


def byte_size(text: str, where: str) -> int:
    """`20GB`, `512 MiB` or a plain number in bytes.

    Raises:
        RecipeError: it is none of these.
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise RecipeError(f"{where}: a number of bytes, or such as 20GB; found {text!r}") from None


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, with each glue method's options, for editors."""
    schema = Recipe.model_json_schema()
    glue = schema["$defs"]["GlueSpec"]
    glue["properties"]["method"]["enum"] = GLUE.names()
    for name in GLUE.names():
        for option in keyword_options(GLUE.target(name) or "") or []:
            glue["properties"].setdefault(option, {"description": f"option of {name}"})
    glue["additionalProperties"] = False
    train = schema["$defs"]["TrainSpec"]
    for argument in training_argument_names():
        train["properties"].setdefault(argument, {"description": "Seq2SeqTrainingArguments"})
    train["additionalProperties"] = False
    return schema


def training_argument_names() -> list[str]:
    """Field names of Seq2SeqTrainingArguments, read without importing transformers."""
    return [
        *annotated_fields("transformers.training_args", "TrainingArguments"),
        *annotated_fields("transformers.training_args_seq2seq", "Seq2SeqTrainingArguments"),
    ]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 5e-4 is a number, as in YAML 1.2, and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{key.value}" is written twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in above:
        raise RecipeError(f"{path}: extends itself: {' -> '.join(p.name for p in above)}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(f"{path}: no such recipe{nearest(path.name, siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys; found {type(raw).__name__}")
    raw = _expand(raw, path, "")
    parent = raw.pop("extends", None)
    if parent is None:
        return _anchor(raw, resolved.parent)
    if not isinstance(parent, str):
        raise RecipeError(f"{path}: extends: the path of a recipe; found {parent!r}")
    below = path.parent / parent
    if not below.is_file():
        near = nearest(below.name, [found.name for found in below.parent.glob("*.yaml")])
        raise RecipeError(f'{path}: extends: no recipe "{parent}"{near}')
    base = _read(below, (*above, resolved))
    return _merge(base, _anchor(raw, resolved.parent, base))


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        merged[key] = value
    return merged


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any, path: Path, key: str) -> Any:
    """`${NAME}` and `${NAME:-default}` in every string."""
    if isinstance(value, dict):
        return {k: _expand(v, path, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, path, f"{key}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def substitute(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise RecipeError(
                f"{path}: {key}: environment variable {match[1]} is not set; "
                f"export {match[1]}=... or write ${{{match[1]}:-default}}"
            )
        return found

    return _VARIABLE.sub(substitute, value)


def _override(raw: dict[str, Any], override: str, path: Path) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(f'{path}: override "{override}": write it as a.b=value')
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise RecipeError(f'{path}: override "{override}": the value is not valid YAML') from None
    value = _expand(value, path, dotted)
    node: Any = raw
    keys = dotted.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        where = ".".join(keys[: depth + 1])
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                last_index = len(node) - 1
                raise RecipeError(f"{path}: override {where}: the list goes from 0 to {last_index}")
            if last:
                node[int(key)] = value
            else:
                node = node[int(key)]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            else:
                node = node.setdefault(key, {})
        else:
            above = ".".join(keys[:depth])
            raise RecipeError(f"{path}: override {where}: {above} is a plain value: {node!r}")


def _anchor(
    raw: dict[str, Any], folder: Path, base: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Make the paths of a recipe absolute, relative to the recipe that wrote them.

    Args:
        base: the recipe that this one extends; it may say that `source` is a column, not a file
    """
    raw = dict(raw)
    if isinstance(raw.get("output"), str):
        raw["output"] = _absolute(raw["output"], folder)
    if isinstance(_mapping(raw.get("memory_cache")).get("dir"), str):
        cache = raw["memory_cache"]
        raw["memory_cache"] = cache | {"dir": _absolute(cache["dir"], folder)}
    if isinstance(raw.get("host"), dict):
        raw["host"] = _anchor_part(raw["host"], folder)
    if isinstance(raw.get("encoders"), dict):
        raw["encoders"] = {
            name: _anchor_part(part, folder) if isinstance(part, dict) else part
            for name, part in raw["encoders"].items()
        }
    if isinstance(raw.get("glue"), list):
        raw["glue"] = [
            _anchor_part(part, folder, ("source",)) if isinstance(part, dict) else part
            for part in raw["glue"]
        ]
    if isinstance(raw.get("data"), dict):
        data, below = dict(raw["data"]), _mapping(_mapping(base).get("data"))
        for key in ("train", "dev"):
            if key in data:
                data[key] = _anchor_corpus(data[key], folder, below.get(key))
        if isinstance(data.get("tests"), dict):
            tests = _mapping(below.get("tests"))
            data["tests"] = {
                name: _anchor_corpus(corpus, folder, tests.get(name))
                for name, corpus in data["tests"].items()
            }
        raw["data"] = data
    return raw


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _absolute(path: str, folder: Path) -> str:
    return str((folder / os.path.expanduser(path)).resolve())


def _anchor_part(
    part: dict[str, Any], folder: Path, keys: tuple[str, ...] = ("source", "tokenizer", "config")
) -> dict[str, Any]:
    part = dict(part)
    for key in keys:
        if isinstance(part.get(key), str):
            part[key] = _anchor_source(part[key], folder)
    if isinstance(part.get("rules"), dict):
        part["rules"] = {
            target: _anchor_rule(rule, folder) if isinstance(rule, dict) else rule
            for target, rule in part["rules"].items()
        }
    return part


def _anchor_rule(rule: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Vocabulary files of a rule are relative to the recipe too."""
    if not isinstance(rule.get("ops"), list):
        return rule
    ops: list[Any] = []
    for op in rule["ops"]:
        given = op.get("vocabulary") if isinstance(op, dict) else None
        if isinstance(given, dict):
            files = {k: v for k, v in given.items() if k in ("old", "new") and isinstance(v, str)}
            given = given | {key: _absolute(file, folder) for key, file in files.items()}
            op = op | {"vocabulary": given}
        ops.append(op)
    return rule | {"ops": ops}


def _anchor_source(source: str, folder: Path) -> str:
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "recipe":
        return f"recipe:{_absolute(rest, folder)}"
    if colon and scheme == "package":
        return source
    is_path = source.startswith((".", "/", "~")) or (folder / source).exists()
    return _absolute(source, folder) if is_path else source


def _anchor_corpus(corpus: Any, folder: Path, base: Any = None) -> Any:
    if isinstance(corpus, list):
        return [_anchor_corpus(item, folder) for item in corpus]
    if not isinstance(corpus, dict):
        return corpus
    merged = _mapping(base) | corpus
    corpus = dict(corpus)
    for key in ["file"] if merged.get("file") or merged.get("hub") else ["source", "target"]:
        if isinstance(corpus.get(key), str):
            corpus[key] = _absolute(corpus[key], folder)
    return corpus


def _explain(error: ValidationError) -> list[str]:
    lines: list[str] = []
    alternatives: dict[tuple[str, str], int] = {}
    for item in _of_the_meant_branch(error):
        location = [part for part in item["loc"] if not _is_union_tag(part)]
        key = _dotted(location)
        if item["type"] == "extra_forbidden":
            known = _fields_at(location[:-1])
            lines.append(f'{key}: unknown key "{location[-1]}"{nearest(str(location[-1]), known)}')
        elif item["type"] == "missing":
            lines.append(f"{key}: is missing")
        elif item["type"] == "value_error":
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}")
        else:
            message = "should be a mapping" if item["type"] == "model_type" else item["msg"]
            message = message.replace("Input should be", "should be")
            place = (key, _shown(item["input"]))
            if place in alternatives:
                lines[alternatives[place]] += f" or {message.removeprefix('should be ')}"
            else:
                alternatives[place] = len(lines)
                lines.append(f"{key}: found {place[1]}; {message}")
    return list(dict.fromkeys(lines))


def _shown(found: Any) -> str:
    if isinstance(found, dict) and found:
        return "a mapping"
    return "a list" if isinstance(found, list) and found else repr(found)


_OTHER_BRANCH = {
    "string_type",
    "list_type",
    "model_type",
    "int_type",
    "int_parsing",
    "literal_error",
}


def _of_the_meant_branch(error: ValidationError) -> list[Any]:
    """pydantic reports every branch of a union; keep the one whose type was written."""
    items = error.errors()
    deeper = {
        item["loc"][:depth]
        for item in items
        if item["type"] not in _OTHER_BRANCH or not _is_union_tag(item["loc"][-1])
        for depth, part in enumerate(item["loc"])
        if _is_union_tag(part)
    }
    return [
        item
        for item in items
        if item["type"] not in _OTHER_BRANCH
        or not _is_union_tag(item["loc"][-1])
        or item["loc"][:-1] not in deeper
    ]


def _is_union_tag(part: int | str) -> bool:
    """pydantic puts the branch of a union into the location; it is not a key of the recipe."""
    return isinstance(part, str) and (
        part in {"SentencePieceSpec", "CorpusSpec", "str", "int", "none"}
        or part.startswith(("list[", "literal[", "function-"))
    )


def _dotted(location: list[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "recipe"


def _fields_at(location: list[int | str]) -> list[str]:
    """Known keys at a place in the recipe."""
    by_place: dict[str, type[BaseModel]] = {
        "": Recipe,
        "host": HostSpec,
        "host.tokenizer": SentencePieceSpec,
        "data": DataSpec,
        "data.filters": FilterSpec,
        "train": TrainSpec,
        "train.learning_rates": LearningRates,
        "train.early_stopping": EarlyStopping,
        "memory_cache": MemoryCacheSpec,
    }
    place = ".".join(str(part) for part in location if isinstance(part, str))
    if place.startswith("encoders."):
        model: type[BaseModel] = EncoderSpec
    elif place.startswith(("data.train", "data.dev", "data.tests.")):
        model = CorpusSpec
    else:
        model = by_place.get(place, Recipe)
    return list(model.model_fields)


def _loaded_parts(recipe: Recipe) -> list[tuple[str, SourceSpec]]:
    encoders = [(f"encoders.{name}", spec) for name, spec in recipe.encoders.items()]
    glue = [(f"glue[{place}]", spec) for place, spec in enumerate(recipe.glue)]
    return [("host", recipe.host), *encoders, *glue]


def _unknown_names(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    new = recipe.host.new
    if new is not None and new["family"] not in HOSTS.names():
        problems.append(f'host.new.family: no host "{new["family"]}"{_near(new["family"], HOSTS)}')
    if recipe.host.init not in INITS.names():
        problems.append(f'host.init: no init "{recipe.host.init}"{_near(recipe.host.init, INITS)}')
    for name, encoder in recipe.encoders.items():
        if not name.isidentifier() or name in RESERVED_ENCODER_NAMES:
            problems.append(f'encoders.{name}: "{name}" cannot name an encoder; for example: bert')
        if encoder.builder not in ENCODERS.names():
            problems.append(
                f'encoders.{name}.builder: no encoder "{encoder.builder}"'
                f"{_near(encoder.builder, ENCODERS)}"
            )
    read = {name for glue in recipe.glue for name in glue.encoders}
    for name in recipe.encoders:
        if read and name not in read and read <= set(recipe.encoders):
            problems.append(f"encoders.{name}: no glue reads it; remove it or add glue")
    if recipe.encoders and not recipe.glue:
        problems.append("glue: is missing: the encoders' memory would go nowhere")
    for where, part in _loaded_parts(recipe):
        if where != "host" and (part.source or "").startswith("recipe:"):
            problems.append(f"{where}.source: recipe: is for hosts only")
        if part.format is not None and part.format not in SOURCES.names():
            near = _near(part.format, SOURCES)
            problems.append(f'{where}.format: no source "{part.format}"{near}')
        for pattern, rule in part.new_tensors.items():
            if (kind := rule.partition(":")[0]) not in INITS.names():
                near = _near(kind, INITS)
                problems.append(f'{where}.new_tensors.{pattern}: no init "{kind}"{near}')
    problems += _glue_problems(recipe)
    known_arguments = [*TrainSpec.model_fields, *training_argument_names()]
    for argument in recipe.train.arguments:
        if argument not in known_arguments:
            problems.append(
                f'train.{argument}: unknown key "{argument}"{nearest(argument, known_arguments)}'
            )
    return problems


def _glue_problems(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    seen: dict[str, int] = {}
    for index, glue in enumerate(recipe.glue):
        here = f"glue[{index}]"
        if glue.key in seen:
            problems.append(
                f'{here}: its tensors would be named "{glue.key}" as those of '
                f"glue[{seen[glue.key]}]; give it a name:"
            )
        seen[glue.key] = index
        if not glue.key.isidentifier():
            problems.append(f'{here}.name: "{glue.key}" is not a plain name such as bert_fused')
        for name in glue.encoders:
            if name not in recipe.encoders:
                has = ", ".join(recipe.encoders) or "none"
                problems.append(f'{here}.encoder: no encoder "{name}"; this recipe has: {has}')
        if glue.method not in GLUE.names():
            problems.append(f'{here}.method: no glue "{glue.method}"{_near(glue.method, GLUE)}')
            continue
        options = keyword_options(GLUE.target(glue.method) or "")
        for option in glue.options if options is not None else ():
            if option not in (options or []):
                known = [*GlueSpec.model_fields, *(options or [])]
                problems.append(
                    f'{here}.{option}: {glue.method} has no option "{option}"'
                    f"{nearest(option, known)}"
                )
    return problems


def _near(name: str, registry: Any) -> str:
    return nearest(name, registry.names())
