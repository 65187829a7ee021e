"""Seconds of a training step of several models on the same sentences, in turn.

A step is what training does: a batch from disk (frozen memory from its cache), forward, backward,
clipping, fused AdamW. Every round times every model, so that what else the machine does hits all
alike.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F

from benchmarks.harness import Spread
from benchmarks.runs import recipe_of
from fusion.composition import Composition
from fusion.data import TokenBatchSampler, read_corpus, tokenise
from fusion.denormals import flushed_denormals
from fusion.memory_cache.prepare import Collate, Hardware, prepare
from fusion.model import FusedModel
from fusion.processor import FusionProcessor
from fusion.recipe import Recipe
from fusion.saved import load_model


@dataclass
class Side:
    """A model with its text and its optimizer."""

    model: FusedModel
    rows: Dataset
    collate: Collate
    optimizer: torch.optim.Optimizer
    recipe: Recipe

    def step(self, indices: list[int]) -> float:
        """Seconds of one step on some sentences."""
        arguments = self.recipe.train.arguments
        began = time.perf_counter()
        self.model.clock.next_update(self.model.clock.update + 1)
        batch = self.collate([self.rows[index] for index in indices])
        labels = batch.pop("labels")
        shifted = self.model.prepare_decoder_input_ids_from_labels(labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(arguments.get("bf16"))):
            logits = self.model(**batch, decoder_input_ids=shifted, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss = self.model.with_penalties(loss, 1.0)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began


def make_side(run: Path) -> tuple[Side, list[list[int]]]:
    """A finished run's model and text, and the batches of its first pass."""
    recipe = recipe_of(run)
    composition = Composition(
        load_model(run / "model"), FusionProcessor.from_pretrained(run / "model")
    )
    data = recipe.data
    corpus = read_corpus(data.train, data, "data.train", empty=data.filters.empty)
    rows, _ = tokenise(corpus, composition.processor)
    batches = TokenBatchSampler(rows["lengths"], data.batch_tokens, seed=1)
    hardware = Hardware(torch.device("cpu"), bool(recipe.train.arguments.get("bf16")))
    prepared = prepare(recipe, composition, rows, hardware, lambda text: None)
    model = composition.model.train()
    if recipe.host.attention is not None:  # a plain host's directory does not say which it was
        model.host.set_attn_implementation(recipe.host.attention)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    return Side(model, prepared.train, prepared.collate, optimizer, recipe), list(batches)


@flushed_denormals()
def step_times(runs: dict[str, Path], rounds: int, steps: int) -> dict[str, Spread]:
    """Seconds of `steps` steps over those of the first row's in the same round, for every row.

    All rows take the batches of the first one. A round before the first warms everything up.
    """
    sides: dict[str, Side] = {}
    batches: list[list[int]] = []
    for row, run in runs.items():
        sides[row], own = make_side(run)
        batches = batches or own
    first = next(iter(sides))
    ratios: dict[str, list[float]] = {row: [] for row in sides}
    for number in range(rounds + 1):
        mine = [batches[(number * steps + place) % len(batches)] for place in range(steps)]
        seconds = {row: sum(map(side.step, mine)) for row, side in sides.items()}
        if number:
            for row, taken in seconds.items():
                ratios[row].append(taken / seconds[first])
    return {row: Spread.of(several) for row, several in ratios.items()}
