"""What a run leaves behind: the mean of its checkpoints, the model, translations and scores."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file

import fusion
from fusion.arguments import METRICS, best_metric
from fusion.callbacks import StopInLastStage
from fusion.errors import TrainingError
from fusion.evaluate import Evaluation, score
from fusion.model import FusedModel
from fusion.parts import is_trained, model_directory
from fusion.processor import FusionProcessor
from fusion.recipe import Recipe
from fusion.saved import GLUE_FILE, load_model, parts_of, read_json, save_model
from fusion.trainer import FusionTrainer, checkpoints
from fusion.translate import translate
from fusion.writing import write_json


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


def finished_run(recipe: Recipe) -> RunResult | None:
    """The result of a recipe that has been trained, or None.

    Raises:
        TrainingError: the output directory holds the run of another recipe.
    """
    output = Path(recipe.output)
    path = output / "run.json"
    if not has_run(recipe) or not path.is_file() or not is_trained(recipe):
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


def has_run(recipe: Recipe) -> bool:
    """Whether the output directory holds a run of this recipe, finished or not.

    Raises:
        TrainingError: it holds the run of another recipe.
    """
    path = Path(recipe.output) / "recipe.json"
    if not path.is_file():
        return False
    if read_json(path).get("digest") != recipe.digest():
        raise TrainingError(
            f"{recipe.output}: holds the run of another recipe ({path} differs); "
            "set output: to another place, or remove the directory"
        )
    return True


def finish(
    recipe: Recipe,
    trainer: FusionTrainer,
    corpora: dict[str, Dataset],
    say: Callable[[str], None],
    *,
    full: bool,
) -> RunResult:
    """Average, save, evaluate on the tests, and write down what came out.

    Args:
        corpora: test sets by the name tests.NAME
        full: save the weights too of parts that are bit for bit what their source gave
    """
    output = Path(recipe.output)
    trainer.accelerator.wait_for_everyone()  # the first rank may still be writing a checkpoint
    model = trainer.accelerator.unwrap_model(trainer.model)
    dev_bleu = _best_bleu(trainer)
    if recipe.train.average_checkpoints > 1:
        dev_bleu = _average(recipe, trainer, model, dev_bleu, say)
    updates, seconds = trainer.state.global_step, round(trainer.watch.seconds, 1)
    result = RunResult(recipe.name, output, updates, seconds, dev_bleu, {})
    if trainer.is_world_process_zero():
        save_model(model, model_directory(recipe), trainer.processor, full=full)
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


def _best_bleu(trainer: FusionTrainer) -> float | None:
    """BLEU on dev of the best checkpoint, by whichever metric it was chosen."""
    scores = {e["step"]: e["eval_bleu"] for e in trainer.state.log_history if "eval_bleu" in e}
    return scores.get(trainer.state.best_global_step)


def _average(
    recipe: Recipe,
    trainer: FusionTrainer,
    model: FusedModel,
    best_bleu: float | None,
    say: Callable[[str], None],
) -> float | None:
    """Average the last checkpoints' tensors; keep the average where dev's best metric says so.

    Returns:
        BLEU on dev of what was kept
    """
    paths = checkpoints(Path(trainer.args.output_dir))[-recipe.train.average_checkpoints :]
    if len(paths) < 2:
        return best_bleu
    average_into(model, paths)
    trainer.remove_callback(StopInLastStage)
    metric = best_metric(recipe.train.arguments)
    found = trainer.evaluate(metric_key_prefix="average")
    mean, single = found[f"average_{metric}"], trainer.state.best_metric
    sign = 1 if trainer.args.greater_is_better else -1
    kept = single is None or sign * mean > sign * single
    say(
        f"{recipe.name}: mean of the last {len(paths)} checkpoints: dev {METRICS[metric]} "
        f"{mean:.2f}, best single one {single or 0:.2f}; kept: "
        f"{'the mean' if kept else 'the single one'}"
    )
    if not kept:
        trainer.read_checkpoint(Path(trainer.state.best_model_checkpoint or paths[-1]))
    return found["average_bleu"] if kept else best_bleu


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
