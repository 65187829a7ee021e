"""Recipe -> a trained, evaluated, saved model; the same call again resumes or reports.

OUTPUT/recipe.json     the resolved recipe
OUTPUT/tokenizer/      SentencePiece, where the recipe trains one
OUTPUT/checkpoints/    transformers' checkpoints
OUTPUT/model/          the finished model
OUTPUT/translations/   the test sets, translated
OUTPUT/run.json        scores, updates, seconds, versions
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import DistributedType, PartialState
from datasets import Dataset
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

import fusion
from fusion.arguments import training_arguments
from fusion.callbacks import Freezer, StopInLastStage, Stopwatch
from fusion.check import Findings, check_model
from fusion.composition import Composition, compose
from fusion.data import read_corpus, tokenise
from fusion.errors import FusionError, TrainingError
from fusion.evaluate import Evaluation, score
from fusion.memory_cache.prepare import Hardware, prepare
from fusion.model import FusedModel
from fusion.parts import host_recipe, model_directory
from fusion.processor import FusionProcessor, load_tokenizer
from fusion.recipe import Recipe, SentencePieceSpec
from fusion.saved import (
    GLUE_FILE,
    load_model,
    parts_of,
    read_json,
    save_model,
    write_json,
)
from fusion.subwords import train_tokenizer
from fusion.timetable import Defaults, Timetable, stage_lengths, timetable
from fusion.trainer import FusionTrainer, checkpoints, last_checkpoint
from fusion.translate import translate

Say = Callable[[str], None]
CHECKED_PAIRS = 8


@dataclass
class RunResult:
    """What a finished run left behind.

    Attributes:
        tests: test set -> scores
        seconds: of training, evaluation on dev included
    """

    name: str
    directory: Path
    updates: int
    seconds: float
    dev_bleu: float | None
    tests: dict[str, dict[str, Any]]

    @property
    def model(self) -> Path:
        """The saved model."""
        return self.directory / "model"

    def translations(self, test: str) -> list[str]:
        """The translations of a test set."""
        path = self.directory / "translations" / f"{test}.txt"
        return path.read_text(encoding="utf-8").split("\n")[:-1]


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
    if (below := host_recipe(recipe)) is not None and not finished_run(below):
        say(f"{recipe.name}: its host comes from {recipe.host.source}, which is trained first")
        run(below, say)
    fresh = not (output / "recipe.json").is_file()
    _claim(recipe, output)
    try:
        corpora = _read(recipe, say)
        tokenizer = host_tokenizer(recipe, corpora["train"], say)
        composition = compose(recipe, tokenizer)
        say(f"{recipe.name}: {ledger_summary(composition)}")
        trainer, watch = _trainer(recipe, composition, corpora, say)
    except FusionError:
        if fresh and PartialState().is_main_process:  # the mended recipe may use the place
            shutil.rmtree(output, ignore_errors=True)
        raise
    checkpoint = last_checkpoint(output / "checkpoints")
    if checkpoint is not None:
        say(f"{recipe.name}: resumes from {checkpoint.name}")
    else:
        _check_first_batch(recipe, trainer, composition.model, say)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _finish(recipe, trainer, watch, composition, corpora, say, full)


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


def build_composition(recipe: Recipe, say: Say = lambda text: None) -> Composition:
    """Compose a recipe without training it; its tokenizer is trained first where it has none."""
    tokenizer = None
    if isinstance(recipe.host.tokenizer, SentencePieceSpec):
        data = recipe.data
        text = read_corpus(data.train, data, "data.train", empty=data.filters.empty)
        tokenizer = host_tokenizer(recipe, text, say)
    return compose(recipe, tokenizer)


def finished_run(recipe: Recipe) -> RunResult | None:
    """The result of a recipe that has been trained, or None.

    Raises:
        TrainingError: the output directory holds the run of another recipe.
    """
    output = Path(recipe.output)
    _check_same_recipe(recipe, output)
    path = output / "run.json"
    if not path.is_file() or not (model_directory(recipe) / "ledger.json").is_file():
        return None
    raw: dict[str, Any] = read_json(path)
    return RunResult(
        name=recipe.name,
        directory=output,
        updates=raw["updates"],
        seconds=raw["seconds"],
        dev_bleu=raw["dev_bleu"],
        tests=raw["tests"],
    )


def _check_same_recipe(recipe: Recipe, output: Path) -> None:
    path = output / "recipe.json"
    if path.is_file() and read_json(path).get("digest") != recipe.digest():
        raise TrainingError(
            f"{output}: holds the run of another recipe ({path} differs); "
            "set output: to another place, or remove the directory"
        )


def _claim(recipe: Recipe, output: Path) -> None:
    """Write down which recipe this output belongs to; on the first rank only."""
    if output.exists() and not (output / "recipe.json").is_file() and any(output.iterdir()):
        raise TrainingError(
            f"{output}: exists and holds no fusion run; set output: to another place"
        )
    if PartialState().is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        content = {"digest": recipe.digest(), "recipe": recipe.model_dump(mode="json")}
        write_json(output / "recipe.json", content)
    PartialState().wait_for_everyone()


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
    recipe: Recipe, train: Dataset, say: Say = lambda text: None
) -> PreTrainedTokenizerBase | None:
    """The host's tokenizer where the recipe trains one; kept in OUTPUT/tokenizer. Else None."""
    spec = recipe.host.tokenizer
    if not isinstance(spec, SentencePieceSpec):
        return None
    directory = Path(recipe.output) / "tokenizer"
    with PartialState().main_process_first():
        if not (directory / "tokenizer_config.json").is_file():
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
) -> tuple[FusionTrainer, Stopwatch]:
    processor, model = composition.processor, composition.model
    filters = recipe.data.filters
    if processor.max_length is not None and filters.max_length > processor.max_length:
        filters = filters.model_copy(update={"max_length": processor.max_length})
    train, report = tokenise(corpora["train"], processor, filters)
    say(f"{recipe.name}: {report}")
    dev, _ = tokenise(corpora["dev"], processor)
    longest = [max(lengths) for lengths in dev["lengths"]]
    dev = dev.select(sorted(range(len(dev)), key=lambda i: longest[i]))
    watch = Stopwatch()
    args, smoothing = training_arguments(recipe, model)
    hardware = Hardware(args.device, args.bf16)
    prepared = prepare(recipe, composition, train, hardware, say)
    trainer = FusionTrainer(
        model,
        processor,
        args,
        train=prepared.train,
        dev=dev,
        batch_tokens=recipe.data.batch_tokens,
        learning_rates=recipe.train.learning_rates,
        label_smoothing=smoothing,
        compute_metrics=partial(_dev_metrics, processor, dev["target"], recipe.data.target_lang),
        callbacks=[watch],
        collate=prepared.collate,
    )
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
    if args.fsdp and trainer.accelerator.distributed_type is not DistributedType.FSDP:
        say(f"{recipe.name}: train.fsdp has no effect: accelerate shards on several GPUs only")
    return trainer, watch


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


def _finish(
    recipe: Recipe,
    trainer: FusionTrainer,
    watch: Stopwatch,
    composition: Composition,
    corpora: dict[str, Dataset],
    say: Say,
    full: bool,
) -> RunResult:
    """Average, save, evaluate on the tests, and write down what came out."""
    output = Path(recipe.output)
    model = trainer.accelerator.unwrap_model(trainer.model)
    dev_bleu = trainer.state.best_metric
    if recipe.train.average_checkpoints > 1:
        dev_bleu = _average(recipe, trainer, model, dev_bleu, say)
    result = RunResult(
        recipe.name, output, trainer.state.global_step, round(watch.seconds, 1), dev_bleu, {}
    )
    if trainer.is_world_process_zero():
        save_model(model, model_directory(recipe), composition.processor, full=full)
        scores = evaluate_tests(recipe, corpora)
        result.tests = {name: evaluation.to_json() for name, evaluation in scores.items()}
        versions = {"fusion": fusion.__version__, "torch": torch.__version__}
        versions |= {"transformers": transformers.__version__, "python": platform.python_version()}
        content = asdict(result) | {"directory": ".", "versions": versions}
        content["device"], content["threads"] = str(trainer.args.device), torch.get_num_threads()
        content["history"] = trainer.state.log_history
        content["padding"] = trainer.sampler.padding
        content["memory_cache"] = trainer.memory_cache
        if trainer.freezer is not None:
            content["stages"] = trainer.freezer.table.to_json()
        write_json(output / "run.json", content)
        say(f"{recipe.name}: saved in {result.model}")
    trainer.accelerator.wait_for_everyone()
    return result


def _average(
    recipe: Recipe, trainer: FusionTrainer, model: FusedModel, best: float | None, say: Say
) -> float | None:
    """Average the last checkpoints' tensors; keep the average where dev BLEU says so."""
    paths = checkpoints(Path(trainer.args.output_dir))[-recipe.train.average_checkpoints :]
    if len(paths) < 2:
        return best
    average_into(model, paths)
    trainer.remove_callback(StopInLastStage)
    bleu: float = trainer.evaluate(metric_key_prefix="average")["average_bleu"]
    kept = best is None or bleu > best
    say(
        f"{recipe.name}: mean of the last {len(paths)} checkpoints: dev BLEU {bleu:.2f}, "
        f"best single one {best or 0:.2f}; kept: {'the mean' if kept else 'the single one'}"
    )
    if not kept:
        trainer.read_checkpoint(Path(trainer.state.best_model_checkpoint or paths[-1]))
    return bleu if kept else best


def average_into(model: FusedModel, paths: list[Path]) -> None:
    """Give a model the mean of its checkpoints' floating point tensors, taken in float64."""
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    for file in sorted(path.relative_to(paths[0]) for path in paths[0].rglob("*.safetensors")):
        prefix = _prefix_of(model, file)
        several = [load_file(path / file) for path in paths]
        for name, first in several[0].items():
            if first.is_floating_point():
                mean = torch.stack([tensors[name].double() for tensors in several]).mean(0)
                with torch.no_grad():
                    targets[prefix + name].copy_(mean)


def _prefix_of(model: FusedModel, file: Path) -> str:
    folders = {Path(folder): prefix for prefix, folder in parts_of(model).items()}
    return "" if file.name == GLUE_FILE else folders[file.parent]


def evaluate_tests(recipe: Recipe, corpora: dict[str, Dataset]) -> dict[str, Evaluation]:
    """Translate and score every test set with the saved model, as a user would load it."""
    model = load_model(model_directory(recipe))
    if torch.cuda.is_available():
        model.to("cuda")
    processor = FusionProcessor.from_pretrained(model_directory(recipe))
    folder = Path(recipe.output) / "translations"
    folder.mkdir(exist_ok=True)
    results = {}
    for name in recipe.data.tests:
        corpus = corpora[f"tests.{name}"]
        texts = translate(model, processor, list(corpus["source"]))
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        results[name] = score(texts, list(corpus["target"]), recipe.data.target_lang)
    return results
