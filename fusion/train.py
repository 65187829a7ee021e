"""Recipe -> a trained, evaluated, saved model; the same call again resumes or reports.

OUTPUT/recipe.json     the resolved recipe
OUTPUT/tokenizer/      SentencePiece, where the recipe trains one
OUTPUT/checkpoints/    transformers' checkpoints
OUTPUT/model/          the finished model
OUTPUT/translations/   the test sets, translated
OUTPUT/run.json        scores, updates, seconds, versions
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fusion.arguments import checked_values, training_arguments
from fusion.callbacks import Freezer, StopInLastStage
from fusion.check import Findings, check_model
from fusion.composition import Composition, compose, plan
from fusion.data import read_corpus, tokenise
from fusion.denormals import flushed_denormals
from fusion.errors import RecipeError, TrainingError, WarmStartError
from fusion.evaluate import score
from fusion.memory_cache.prepare import Hardware, prepare
from fusion.model import FusedModel
from fusion.outcome import RunResult, finish, finished_run, has_run
from fusion.parts import host_recipe
from fusion.processor import FusionProcessor, load_tokenizer
from fusion.recipe import Recipe, SentencePieceSpec, names_the_recipe
from fusion.subwords import holds_tokenizer, train_tokenizer
from fusion.timetable import Defaults, Timetable, stage_lengths, timetable
from fusion.trainer import FusionTrainer, last_checkpoint
from fusion.writing import write_json

Say = Callable[[str], None]
CHECKED_PAIRS = 8
TOKENIZER = "tokenizer"


@names_the_recipe
@flushed_denormals()
def run(recipe: Recipe, say: Say = lambda text: None, *, full: bool = False) -> RunResult:
    """Train a recipe: its host first where that is another recipe's output that is missing.

    Args:
        say: told what happens, one line at a time
        full: save the weights too of parts that are bit for bit what their source gave

    Raises:
        FusionError: anything the recipe, its sources or its text have wrong.
    """
    output = Path(recipe.output)
    finished = finished_run(recipe)
    if finished is not None:
        say(f"{recipe.name}: already trained: {finished.model}")
        return finished
    checked_values(recipe)
    if (below := host_recipe(recipe)) is not None and not finished_run(below):
        _check_before_host(recipe)
        say(f"{recipe.name}: its host comes from {recipe.host.source}, which is trained first")
        run(below, say)
    fresh = _claim(recipe, output)
    trainer = None
    try:
        corpora = _read(recipe, say)
        tokenizer = host_tokenizer(recipe, corpora["train"], say, anew=fresh)
        composition = compose(recipe, tokenizer)
        say(f"{recipe.name}: {ledger_summary(composition)}")
        trainer = _trainer(recipe, composition, corpora, say)
        checkpoint = last_checkpoint(output / "checkpoints")
        if checkpoint is not None:
            say(f"{recipe.name}: resumes from {checkpoint.name}")
        else:
            _check_first_batch(recipe, trainer, composition.model, say)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Exception:
        untrained = trainer is None or trainer.state.global_step == 0
        if fresh and untrained and PartialState().is_main_process:
            shutil.rmtree(output, ignore_errors=True)  # the mended recipe may use the place
        raise
    return finish(recipe, trainer, corpora, say, full=full)


def _check_before_host(recipe: Recipe) -> None:
    """What can be known to be wrong with a recipe before its host is trained for hours."""
    _read(recipe, lambda text: None)
    problems = plan(recipe).problems
    if problems:
        raise WarmStartError("\n".join(problems))


@names_the_recipe
def check(recipe: Recipe, say: Say = lambda text: None) -> Findings:
    """Compose a recipe and check it on its first training pairs; writes nothing but a tokenizer.

    Raises:
        FusionError: it cannot be composed, or its text cannot be read.
    """
    composition = build_composition(recipe, say)
    corpus = read_corpus(recipe.data.train, recipe.data, "data.train", empty="drop")
    pairs = corpus.select(range(min(len(corpus), CHECKED_PAIRS)))
    rows, _ = tokenise(pairs, composition.processor)
    return check_model(composition.model, composition.processor.pad(list(rows)))


def _check_first_batch(recipe: Recipe, trainer: FusionTrainer, model: FusedModel, say: Say) -> None:
    """The checks of `fusion check`, before the first update."""
    indices = next(iter(trainer.sampler))[:CHECKED_PAIRS]
    batch = trainer.collate([trainer.train_dataset[index] for index in indices])
    findings = check_model(model, {name: t.to(model.device) for name, t in batch.items()})
    if findings.problems:
        raise TrainingError(
            "\n".join(f"before the first update: {line}" for line in findings.problems)
        )
    for line in findings.held:
        say(f"{recipe.name}: {line}")


@names_the_recipe
def build_composition(recipe: Recipe, say: Say = lambda text: None) -> Composition:
    """Compose a recipe without training it; a tokenizer of its own is trained first.

    Raises:
        TrainingError: the output directory, where that is kept, holds the run of another recipe.
    """
    tokenizer = None
    if isinstance(recipe.host.tokenizer, SentencePieceSpec):
        anew = not has_run(recipe)
        data = recipe.data
        text = read_corpus(data.train, data, "data.train", empty=data.filters.empty)
        tokenizer = host_tokenizer(recipe, text, say, anew=anew)
    return compose(recipe, tokenizer)


def _claim(recipe: Recipe, output: Path) -> bool:
    """Write down which recipe this output belongs to, on the first rank; whether it is new."""
    fresh = not has_run(recipe)
    if fresh and output.exists() and not _is_free(output):
        raise TrainingError(
            f"{output}: exists and holds no fusion run; set output: to another place"
        )
    PartialState().wait_for_everyone()  # no rank looks while another writes
    if PartialState().is_main_process:
        content = {"digest": recipe.digest(), "recipe": recipe.model_dump(mode="json")}
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_json(output / "recipe.json", content)
        except OSError as error:
            raise TrainingError(f"output: {output}: {error.strerror}") from None
    PartialState().wait_for_everyone()
    return fresh


def _is_free(output: Path) -> bool:
    """Whether a directory holds nothing, or only the tokenizer that `check` or `build` left."""
    names = {path.name for path in output.iterdir()}
    return not names or (names == {TOKENIZER} and holds_tokenizer(output / TOKENIZER))


def _read(recipe: Recipe, say: Say) -> dict[str, Dataset]:
    data = recipe.data
    corpora = {
        "train": read_corpus(data.train, data, "data.train", empty=data.filters.empty),
        "dev": read_corpus(data.dev, data, "data.dev"),
    }
    for name, spec in data.tests.items():
        corpora[f"tests.{name}"] = read_corpus(spec, data, f"data.tests.{name}")
    if recipe.train.dev_sentences is not None:
        kept = min(recipe.train.dev_sentences, len(corpora["dev"]))
        corpora["dev"] = corpora["dev"].select(range(kept))
    sizes = ", ".join(f"{name} {len(corpus):,}" for name, corpus in corpora.items())
    say(f"{recipe.name}: pairs: {sizes}")
    return corpora


def host_tokenizer(
    recipe: Recipe, train: Dataset, say: Say = lambda text: None, *, anew: bool = False
) -> PreTrainedTokenizerBase | None:
    """The host's tokenizer where the recipe trains one; kept in OUTPUT/tokenizer. Else None.

    Args:
        anew: train it even if one is there
    """
    spec = recipe.host.tokenizer
    if not isinstance(spec, SentencePieceSpec):
        return None
    directory = Path(recipe.output) / TOKENIZER
    state = PartialState()
    with state.main_process_first():
        there = (directory / "tokenizer_config.json").is_file()
        if not there or (anew and state.is_main_process):
            say(f"{recipe.name}: trains SentencePiece, {spec.vocab_size} pieces")
            lines = [*train["source"], *train["target"]]
            train_tokenizer(
                spec, lines, directory, recipe.data.source_lang, recipe.data.target_lang
            )
    return load_tokenizer(directory)


def ledger_summary(composition: Composition) -> str:
    """Tensors by origin and parameters, in one line."""
    counts = ", ".join(f"{n} {origin}" for origin, n in sorted(composition.ledger.counts().items()))
    trainable, frozen = composition.ledger.parameters()
    return f"{counts}; {trainable:,} trainable and {frozen:,} frozen parameters"


def _trainer(
    recipe: Recipe, composition: Composition, corpora: dict[str, Dataset], say: Say
) -> FusionTrainer:
    processor, model = composition.processor, composition.model
    filters = recipe.data.filters
    if processor.max_length is not None and filters.max_length > processor.max_length:
        filters = filters.model_copy(update={"max_length": processor.max_length})
    train, report = tokenise(corpora["train"], processor, filters)
    say(f"{recipe.name}: {report}")
    dev, _ = tokenise(corpora["dev"], processor)
    longest = [max(lengths) for lengths in dev["lengths"]]
    dev = dev.select(sorted(range(len(dev)), key=lambda i: longest[i]))
    args, smoothing = training_arguments(recipe, model)
    hardware = Hardware(args.device, args.bf16)
    prepared = prepare(recipe, composition, train, hardware, say)
    metrics = partial(_dev_metrics, processor, dev["target"], recipe.data.target_lang)
    try:
        trainer = FusionTrainer(
            model,
            processor,
            args,
            train=prepared.train,
            dev=dev,
            batch_tokens=recipe.data.batch_tokens,
            learning_rates=recipe.train.learning_rates,
            label_smoothing=smoothing,
            compute_metrics=metrics,
            collate=prepared.collate,
        )
    except (ValueError, ImportError, RuntimeError) as error:  # what arguments alone don't show
        raise RecipeError(f"train: transformers refuses it: {error}") from error
    last = 0
    if (table := timetable_of(recipe, model, trainer)) is not None:
        trainer.follow(Freezer(table, lambda text: say(f"{recipe.name}: {text}")))
        last = table.spans[-1][1]
    if (stop := recipe.train.early_stopping) is not None:
        trainer.add_callback(StopInLastStage(stop.patience, stop.threshold, last))
    trainer.memory_cache = {name: report.to_json() for name, report in prepared.reports.items()}
    sampler = trainer.sampler
    say(
        f"{recipe.name}: {len(sampler)} batches of {recipe.data.batch_tokens} tokens a pass, "
        f"{sampler.padding:.1%} padding"
    )
    if args.fsdp:
        say(f"{recipe.name}: train.fsdp has no effect: accelerate shards on several GPUs only")
    return trainer


def timetable_of(recipe: Recipe, model: FusedModel, trainer: FusionTrainer) -> Timetable | None:
    """Stages and policies of a recipe; None: it has none."""
    if not recipe.stages and not recipe.train.policies:
        return None
    args, per_pass = trainer.args, trainer.updates_a_pass
    total = args.max_steps if args.max_steps > 0 else ceil(args.num_train_epochs * per_pass)
    defaults = Defaults(
        rate=args.learning_rate,
        schedule=str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        warmup=args.get_warmup_steps,
        options=args.lr_scheduler_kwargs or {},
    )
    names = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    return timetable(recipe, names, defaults, stage_lengths(recipe, total, per_pass))


def _dev_metrics(
    processor: FusionProcessor, references: list[str], target_lang: str, prediction: Any
) -> dict[str, float]:
    pad = processor.pads["input_ids"]
    ids = prediction.predictions[: len(references)]  # several ranks repeat rows to fill the batch
    ids[ids < 0] = pad
    result = score(processor.decode(ids), list(references), target_lang)
    return {"bleu": round(result.bleu.score, 4), "chrf": round(result.chrf.score, 4)}
