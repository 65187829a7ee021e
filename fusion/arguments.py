"""transformers' training arguments of a recipe, with our defaults."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from fusion.errors import RecipeError
from fusion.model import FusedModel
from fusion.policies import freezes_for_a_time
from fusion.recipe import Recipe

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
    given = recipe.train.arguments
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
        "greater_is_better": True,
        "save_total_limit": max(2, keep),
        "generation_num_beams": 1,
        "ddp_find_unused_parameters": model.may_drop or freezes_for_a_time(recipe),
        "use_cpu": not torch.cuda.is_available(),
    }
    settings = defaults | {RENAMED.get(key, key): value for key, value in given.items()}
    settings.setdefault("save_strategy", settings["eval_strategy"])
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
        return Seq2SeqTrainingArguments(**settings, **fixed), smoothing
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"train: transformers refuses it: {error}") from None


def _check_optimizer(name: str) -> None:
    """transformers would find out only after the model is built and the text read."""
    if ("bnb" in name or "8bit" in name) and find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"train.optim: {name} needs the package bitsandbytes, which is not installed: "
            "pip install bitsandbytes; or use adamw_torch"
        )
