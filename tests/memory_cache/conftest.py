"""A tiny composition, its tokenised text, and the cache of its encoder's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from fusion.composition import Composition, compose
from fusion.data import tokenise
from fusion.memory_cache.prepare import Hardware, Prepared, prepare
from fusion.memory_cache.reader import CachedBatches, MemoryReader
from fusion.recipe import MemoryCacheSpec, Recipe
from fusion.synthetic import generate

CPU = Hardware(torch.device("cpu"), bf16=False)


@dataclass
class Setup:
    """A composed recipe and its training text."""

    recipe: Recipe
    composition: Composition
    train: Dataset
    said: list[str] = field(default_factory=list)

    def prepare(self, say: Callable[[str], None] | None = None) -> Prepared:
        """Fill the caches; what is said goes to `said`, where nobody else hears it."""
        return prepare(self.recipe, self.composition, self.train, CPU, say or self.said.append)

    def reader(self, prepared: Prepared) -> MemoryReader:
        """The reader of the encoder named bert."""
        assert isinstance(prepared.collate, CachedBatches)
        return prepared.collate.readers["bert"]

    def directory(self) -> Path:
        """The only cache below the recipe's directory."""
        assert self.recipe.memory_cache is not None and self.recipe.memory_cache.dir is not None
        (found,) = [path for path in Path(self.recipe.memory_cache.dir).iterdir() if path.is_dir()]
        return found

    def check(self, prepared: Prepared, atol: float = 2e-6) -> None:
        """Batches made with the cache give the memories of batches made without it."""
        model, pad = self.composition.model, self.composition.processor.pad
        order = sorted(range(len(self.train)), key=lambda i: len(self.train[i]["bert_input_ids"]))
        for start in range(0, len(order), 37):
            rows = order[start : start + 37]
            cached = prepared.collate([prepared.train[i] for i in rows])
            with torch.no_grad():
                expected = model.memories(pad([self.train[i] for i in rows]))["bert"]
                found = model.memories(cached)["bert"]
            assert found.states.shape == expected.states.shape
            if expected.mask is None:
                assert found.mask is None or bool(found.mask.all())
                assert torch.allclose(found.states, expected.states, atol=atol)
            else:
                assert found.mask is not None and torch.equal(found.mask, expected.mask)
                real = expected.mask
                assert torch.allclose(found.states[real], expected.states[real], atol=atol)


SetupMaker = Callable[..., Setup]


def pairs(count: int = 150) -> Dataset:
    """Synthetic pairs, every tenth of which comes twice."""
    made = generate(seed=2, train_pairs=2000).splits["train"][:count]
    made = made + made[::10]
    return Dataset.from_dict(
        {"source": [pair.source for pair in made], "target": [pair.target for pair in made]}
    )


@pytest.fixture(scope="session")
def text() -> Dataset:
    """165 pairs, 150 of them different."""
    return pairs()


@pytest.fixture
def setup(make_recipe: Any, text: Dataset, tmp_path: Path) -> SetupMaker:
    """`setup(cache={...}, encoder={...})`: blocks of 8 kB below tmp_path/cache by default."""

    def make(
        *, cache: dict[str, Any] | None = None, encoder: dict[str, Any] | None = None
    ) -> Setup:
        recipe = make_recipe(encoder={"overflow": "truncate"} | (encoder or {}))
        spec = {"dir": str(tmp_path / "cache"), "block_bytes": 8000} | (cache or {})
        recipe = recipe.model_copy(update={"memory_cache": MemoryCacheSpec.model_validate(spec)})
        composition = compose(recipe)
        train, _ = tokenise(text, composition.processor)
        return Setup(recipe, composition, train)

    return make
