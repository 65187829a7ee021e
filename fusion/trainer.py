"""transformers' Seq2SeqTrainer with our batches, loss, learning rates and checkpoints."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from fusion.callbacks import Freezer, Stopwatch, UpdateClock
from fusion.data import TokenBatchSampler
from fusion.errors import NoRoomError, RecipeError
from fusion.model import FusedModel
from fusion.optimizer import Rates, grouped, keep_embeddings_in_32_bits
from fusion.processor import FusionProcessor
from fusion.recipe import LearningRates
from fusion.saved import frozen_parts, load_checkpoint, write_weights
from fusion.timetable import rate_of
from fusion.writing import room_for

COMPLETE = "complete"
Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


class EpochLoader(DataLoader[Any]):
    """A DataLoader that tells its batch sampler which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before every epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class FusionTrainer(Seq2SeqTrainer):  # type: ignore[misc]
    """What differs from Seq2SeqTrainer.

    Batches have a token budget and are the same whatever the number of ranks; the loss is the
    label-smoothed negative log-likelihood per target token of the whole update; host, glue and
    encoders have learning rates of their own; checkpoints hold what is trained and are read back
    strictly; one that was cut short by a kill is never resumed from.

    Args:
        collate: training rows -> a padded batch; default: the processor's, as for dev

    Raises:
        RecipeError: FSDP would shard the model.
    """

    def __init__(
        self,
        model: FusedModel,
        processor: FusionProcessor,
        args: Seq2SeqTrainingArguments,
        *,
        train: Dataset,
        dev: Dataset,
        batch_tokens: int,
        learning_rates: LearningRates,
        label_smoothing: float,
        compute_metrics: Callable[[Any], dict[str, float]],
        collate: Collate | None = None,
    ) -> None:
        self.watch = Stopwatch()
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=processor.pad,
            compute_metrics=compute_metrics,
            callbacks=[self.watch, UpdateClock()],
        )
        if self.is_fsdp_enabled:
            raise RecipeError(
                "train.fsdp: a sharded model cannot be saved yet; remove it: DDP works"
            )
        self.freezer: Freezer | None = None
        self.left_out = frozen_parts(model)  # of checkpoints: what is never trained
        self.processor = processor
        self.collate = collate or processor.pad
        self.memory_cache: dict[str, dict[str, Any]] = {}  # what became of it, for run.json
        self.learning_rates = learning_rates
        self.label_smoothing = label_smoothing
        self.sampler = TokenBatchSampler(
            train["lengths"],
            batch_tokens,
            seed=args.seed,
            rank=args.process_index,
            world_size=args.world_size,
            accumulation=args.gradient_accumulation_steps,
        )
        self._tokens, self._logged_at = 0, time.monotonic()
        self._source_tokens: Tensor | None = None  # of the update, where the loss has penalties

    @property
    def updates_a_pass(self) -> int:
        """Updates in one pass over the training text."""
        accumulation: int = self.args.gradient_accumulation_steps
        return max(1, len(self.sampler) // accumulation)

    def follow(self, freezer: Freezer) -> None:
        """Train by a timetable; without one, all is trained from the start to the end."""
        self.freezer = freezer
        self.args.max_steps = freezer.table.total
        self.add_callback(freezer)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank."""
        return EpochLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """As the Trainer, counting target tokens for the log, and source tokens for penalties."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._tokens += int(items) if items is not None else 0
        fused: FusedModel = self.accelerator.unwrap_model(self.model)
        if batches and fused.has_penalties:
            masks = [batch["attention_mask"] for batch in batches]
            count = torch.stack([mask.sum() for mask in masks]).sum().to(self.args.device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                count = self.accelerator.gather(count).sum()
            self._source_tokens = count
        return batches, items

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer, with target tokens per second since the last log."""
        now = time.monotonic()
        if "loss" in logs and now > self._logged_at:
            logs["tokens_per_second"] = round(self._tokens / (now - self._logged_at), 1)
        if "loss" in logs and self.freezer is not None:
            rates = self.freezer.table.rates(max(0, self.state.global_step - 1))
            logs |= {f"learning_rate/{part}": rate for part, rate in rates.items()}
        self._tokens, self._logged_at = 0, now
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the rule of thumb does not hold for frozen encoders."""
        return 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Label-smoothed cross entropy, summed over the batch, over the update's target tokens.

        A glue's penalty is a mean over source tokens; it counts by the batch's share of those of
        the update, so that an update's loss does not depend on how it is cut into batches.
        """
        labels = inputs["labels"]
        fused: FusedModel = self.accelerator.unwrap_model(self.model)
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        shifted = fused.prepare_decoder_input_ids_from_labels(labels)
        outputs = model(**rest, decoder_input_ids=shifted, use_cache=False)
        total = F.cross_entropy(
            outputs.logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=-100,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        items = num_items_in_batch if num_items_in_batch is not None else labels.ne(-100).sum()
        share: Tensor | float = 1.0
        if num_items_in_batch is not None and self._source_tokens is not None:
            share = inputs["attention_mask"].sum() / self._source_tokens
        loss = fused.with_penalties(total / items, share)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if not loss.requires_grad and torch.is_grad_enabled():  # all that is trained was dropped
            loss = loss.detach().requires_grad_()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **generate: Any,
    ) -> Any:
        """As Seq2SeqTrainer, with outputs at most about twice as long as the source."""
        limit = _length_limit(self.processor, inputs["input_ids"].shape[1])
        generate.setdefault("max_length", limit)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **generate)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups by rate and weight decay; what is frozen for good is in none."""
        self.optimizer: torch.optim.Optimizer | None
        if self.optimizer is None:
            target = model if model is not None else self.model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, target)
            table = self.freezer.table if self.freezer is not None else None
            rates = Rates(options["lr"], self.learning_rates.by_name, table)
            groups = grouped(target, rates, set(self.get_decay_parameter_names(target)))
            self._turns = [group.turns for group in groups]
            decay = self.args.weight_decay
            self.optimizer = kind([group.to_torch(decay) for group in groups], **options)
            if "bitsandbytes" in kind.__module__:
                keep_embeddings_in_32_bits(target)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """As the Trainer; under a timetable, its rate for every group."""
        if self.freezer is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler: Any
        if self.lr_scheduler is None:
            chosen = optimizer if optimizer is not None else self.create_optimizer()
            self.lr_scheduler = LambdaLR(chosen, [partial(rate_of, t) for t in self._turns])
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        """As the Trainer; under a timetable, the highest of all."""
        if self.freezer is None:
            return float(super()._get_learning_rate())
        return float(max(self.lr_scheduler.get_last_lr()))

    def _save(
        self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        if not self.args.should_save:
            return
        fused: FusedModel = self.accelerator.unwrap_model(self.model)
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        state = state_dict or fused.state_dict()
        write_weights(fused, state, directory, self.left_out)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with room_for(folder):
                super()._save_checkpoint(*args, **kwargs)
        except NoRoomError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.args.should_save and folder.is_dir():
            (folder / COMPLETE).touch()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self.read_checkpoint(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.read_checkpoint(Path(self.state.best_model_checkpoint))

    def read_checkpoint(self, directory: Path) -> None:
        """Put a checkpoint's tensors into the model, with nothing frozen for a time."""
        fused: FusedModel = self.accelerator.unwrap_model(self.model)
        if self.freezer is not None:
            self.freezer.release(fused)
        load_checkpoint(fused, directory)


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint of a run, on every rank; ones cut short by a kill are removed."""
    state = PartialState()
    if state.is_main_process:
        for path in folder.glob("checkpoint-*"):
            if not (path / COMPLETE).is_file():
                shutil.rmtree(path)
    state.wait_for_everyone()
    whole = checkpoints(folder)
    return whole[-1] if whole else None


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(
        (p for p in folder.glob("checkpoint-*") if (p / COMPLETE).is_file()), key=_update_of
    )


def _update_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _length_limit(processor: FusionProcessor, source_length: int) -> int:
    """Longest dev output worth waiting for: twice the source and ten, within the positions."""
    limit = 2 * source_length + 10
    return limit if processor.max_length is None else min(limit, processor.max_length)
