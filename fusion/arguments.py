"""transformers' training arguments of a recipe, with our defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from transformers import Seq2SeqTrainingArguments

from fusion.errors import RecipeError
from fusion.model import FusedModel
from fusion.policies import freezes_for_a_time
from fusion.recipe import Recipe, typed_value

# The least that works, where it is not what transformers' default suggests.
LEAST = {
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
}
WORKERS = 2
METRICS = {"bleu": "BLEU", "chrf": "chrF", "loss": "loss"}  # of dev, and as they are written
PLAIN = {bool, int, float, NoneType}  # of other types, transformers has its own reading
# Names that transformers is about to drop, and what it calls them now.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def training_arguments(recipe: Recipe, model: FusedModel) -> tuple[Seq2SeqTrainingArguments, float]:
    """transformers' arguments of a recipe, with our defaults, and the label smoothing.

    Raises:
        RecipeError: transformers refuses a value.
    """
    given = checked_values(recipe)
    keep = recipe.train.average_checkpoints
    defaults: dict[str, Any] = {
        "lr_scheduler_type": "inverse_sqrt",
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "logging_steps": 50,
        "eval_strategy": "epoch",
        "report_to": "none",
        "per_device_eval_batch_size": 64,
        "load_best_model_at_end": True,
        "metric_for_best_model": "bleu",
        "greater_is_better": best_metric(given) != "loss",
        "save_total_limit": max(2, keep),
        "generation_num_beams": 1,
        # None: yes, unless activations are checkpointed; experts and LayerDrop leave tensors out
        "ddp_find_unused_parameters": model.may_drop or freezes_for_a_time(recipe) or None,
        "use_cpu": not torch.cuda.is_available(),
        # where the processor is idle during a step, the next batches are made meanwhile
        "dataloader_num_workers": WORKERS if torch.cuda.is_available() else 0,
    }
    settings = defaults | {RENAMED.get(key, key): value for key, value in given.items()}
    saved = settings["eval_strategy"]
    if saved == "no":  # a run that is not evaluated is still to be resumed
        saved = "steps" if "save_steps" in settings else "epoch"
        settings["load_best_model_at_end"] = given.get("load_best_model_at_end", False)
    settings.setdefault("save_strategy", saved)
    if "eval_steps" in settings:
        settings.setdefault("save_steps", settings["eval_steps"])
    fixed = {
        "output_dir": str(Path(recipe.output) / "checkpoints"),
        "seed": recipe.seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "predict_with_generate": True,
        "restore_callback_states_from_checkpoint": True,
    }
    for key in fixed:
        if key in given:
            raise RecipeError(f"train.{key}: is set by fusion; remove it")
    _check_optimizer(str(settings.get("optim", "")))
    smoothing = float(settings.pop("label_smoothing_factor", 0.0))
    try:
        arguments = Seq2SeqTrainingArguments(**settings, **fixed)
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"train: transformers refuses it: {error}") from None
    if arguments.n_gpu > 1:  # DataParallel, which copies the model anew in every step
        raise RecipeError(
            f"this process sees {arguments.n_gpu} GPUs: start it by torchrun --nproc-per-node "
            f"{arguments.n_gpu} -m fusion train, or show it one (CUDA_VISIBLE_DEVICES=0)"
        )
    return arguments, smoothing


def checked_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe's training arguments, of the types that transformers' fields have.

    YAML reads 3e-4 as text, which becomes a number here.

    Raises:
        RecipeError: a value is of another type, no number that is finite, or too small.
    """
    kinds = get_type_hints(Seq2SeqTrainingArguments)
    usual: dict[str, Any] = {
        field.name: field.default for field in fields(Seq2SeqTrainingArguments)
    }
    values = {}
    for key, found in recipe.train.arguments.items():
        name, value = RENAMED.get(key, key), found
        if found is False and name.endswith("_strategy"):
            value = "no"  # which YAML reads as False
        if set(get_args(kinds[name]) or (kinds[name],)) <= PLAIN:
            value = typed_value(f"train.{key}", found, kinds[name])
        least = LEAST.get(name, min(0, usual[name]) if _is_number(usual[name]) else 0)
        if _is_number(value) and not least <= value < inf:
            raise RecipeError(f"train.{key}: found {found!r}; should be a number from {least} on")
        values[key] = value
    if (metric := best_metric(values)) not in METRICS:
        raise RecipeError(
            f"train.metric_for_best_model: found {metric!r}; dev has {', '.join(METRICS)}"
        )
    if recipe.train.early_stopping is not None and values.get("eval_strategy") == "no":
        raise RecipeError(
            "train.early_stopping: needs scores of dev, and train.eval_strategy is no; remove one"
        )
    if not 0 <= values.get("label_smoothing_factor", 0.0) < 1:
        found = values["label_smoothing_factor"]
        raise RecipeError(f"train.label_smoothing_factor: found {found!r}; should be below 1")
    return values


def best_metric(values: Mapping[str, Any]) -> str:
    """What of dev chooses the best checkpoint, without transformers' `eval_`."""
    return str(values.get("metric_for_best_model", "bleu")).removeprefix("eval_")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_optimizer(name: str) -> None:
    """transformers would find out only after the model is built and the text read."""
    if ("bnb" in name or "8bit" in name) and find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"train.optim: {name} needs the package bitsandbytes, which is not installed: "
            "pip install bitsandbytes; or use adamw_torch"
        )
