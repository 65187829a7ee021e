"""Parallel text -> filtered, tokenised pairs -> batches of a token budget."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import datasets
from datasets import Dataset
from torch.utils.data import Sampler

from fusion.errors import DataError, nearest
from fusion.recipe import CorpusSpec, DataSpec, FilterSpec

Empty = Literal["error", "drop"]


class PairEncoder(Protocol):
    """What tokenising needs of a processor."""

    def encode_pairs(self, sources: list[str], targets: list[str]) -> dict[str, list[list[int]]]:
        """Ids by column."""


@dataclass
class FilterReport:
    """How many pairs were left out, and why."""

    read: int = 0
    kept: int = 0
    empty: int = 0
    too_long: int = 0
    ratio: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kept:,} of {self.read:,} pairs kept; dropped: {self.empty:,} empty, "
            f"{self.too_long:,} too long, {self.ratio:,} of odd length ratio"
        )


def read_corpus(
    spec: CorpusSpec | list[CorpusSpec], data: DataSpec, where: str, *, empty: Empty = "error"
) -> Dataset:
    """A corpus as columns `source` and `target`.

    Args:
        where: the recipe's key, for messages
        empty: what to do with a pair that has an empty or blank side

    Raises:
        DataError: names file and line, or the key.
    """
    if isinstance(spec, list):
        parts = [read_corpus(s, data, f"{where}[{i}]", empty=empty) for i, s in enumerate(spec)]
        return datasets.concatenate_datasets(parts)
    if spec.synthetic is not None:
        pairs, name = _read_synthetic(spec.synthetic, data, where), f"synthetic:{spec.synthetic}"
    elif spec.file is not None or spec.hub is not None:
        pairs, name = _read_table(spec, where), spec.file or str(spec.hub)
    else:
        assert spec.source is not None and spec.target is not None
        pairs, name = _read_text(Path(spec.source), Path(spec.target), where), spec.source
    if not pairs:
        raise DataError(f"{where}: {name}: holds no text")
    kept = _without_empty(pairs, name, where, empty)
    return Dataset.from_dict({"source": [s for s, _ in kept], "target": [t for _, t in kept]})


def _without_empty(
    pairs: list[tuple[str, str]], name: str, where: str, empty: Empty
) -> list[tuple[str, str]]:
    kept = []
    for number, (source, target) in enumerate(pairs, start=1):
        if source.strip() and target.strip():
            kept.append((source, target))
        elif empty == "error":
            side = "target" if source.strip() else "source"
            raise DataError(
                f"{where}: {name}: line {number}: the {side} is empty; "
                "remove the pair, or set data.filters.empty: drop for training text"
            )
    return kept


def _read_text(source: Path, target: Path, where: str) -> list[tuple[str, str]]:
    left, right = _read_lines(source, where), _read_lines(target, where)
    if len(left) != len(right):
        raise DataError(
            f"{where}: {source} has {len(left)} lines and {target} has {len(right)}; "
            "line n of one must translate line n of the other"
        )
    return list(zip(left, right, strict=True))


def _read_lines(path: Path, where: str) -> list[str]:
    """Lines end at a newline only, whatever other separators the text contains."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{where}: {path}: no such file{nearest(path.name, names)}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: {path}: cannot be read: {error}") from None
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: {path}: line {number}: not UTF-8: {error.reason} at byte {error.start}"
            ) from None
    return texts


_TABLES = {".jsonl": "json", ".json": "json", ".tsv": "csv", ".csv": "csv", ".parquet": "parquet"}


def _read_table(spec: CorpusSpec, where: str) -> list[tuple[str, str]]:
    table = _load_hub(spec, where) if spec.hub is not None else _load_file(spec, where)
    columns = []
    for side in (spec.source, spec.target):
        assert side is not None
        columns.append(_column(table, side, where))
    return list(zip(*columns, strict=True))


def _load_file(spec: CorpusSpec, where: str) -> Dataset:
    path = Path(str(spec.file))
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{where}: {path}: no such file{nearest(path.name, names)}")
    suffixes = [s for s in path.suffixes if s != ".gz"]
    builder = _TABLES.get(suffixes[-1] if suffixes else "")
    if builder is None:
        raise DataError(f"{where}: {path}: unknown format; known: {', '.join(_TABLES)}")
    options: dict[str, Any] = {}
    if suffixes[-1] == ".tsv":
        options = {"sep": "\t", "quoting": 3}
    try:
        import tempfile

        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.load_dataset(
                builder,
                data_files=str(path),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
                **options,
            )
    except Exception as error:  # each reader has errors of its own
        raise DataError(f"{where}: {path}: {_root_cause(error)}") from None
    return loaded


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _load_hub(spec: CorpusSpec, where: str) -> Dataset:
    try:
        return datasets.load_dataset(
            spec.hub, spec.config, split=spec.split, revision=spec.revision
        )
    except Exception as error:  # the hub's errors are many
        raise DataError(f"{where}: hub data set {spec.hub}: {_root_cause(error)}") from None


def _column(table: Dataset, path: str, where: str) -> list[str]:
    """A column of strings; `translation.en` reads a nested one."""
    name, *inner = [path] if path in table.column_names else path.split(".")
    if name not in table.column_names:
        raise DataError(f'{where}: no column "{path}"{nearest(path, table.column_names)}')
    cells = []
    for number, cell in enumerate(table[name], start=1):
        for key in inner:
            if not isinstance(cell, dict) or key not in cell:
                raise DataError(f'{where}: row {number}: no "{key}" in column "{name}"')
            cell = cell[key]
        if not isinstance(cell, str):
            raise DataError(f'{where}: row {number}: column "{path}" has {cell!r}; text expected')
        cells.append(cell)
    return cells


def _read_synthetic(split: str, data: DataSpec, where: str) -> list[tuple[str, str]]:
    from fusion.synthetic import generate

    splits = generate(data.synthetic_seed, data.synthetic_pairs).splits
    if split not in splits:
        raise DataError(f'{where}: no synthetic split "{split}"{nearest(split, splits)}')
    return [(pair.source, pair.target) for pair in splits[split]]


def tokenise(
    corpus: Dataset, processor: PairEncoder, filters: FilterSpec | None = None
) -> tuple[Dataset, FilterReport]:
    """Add columns of ids and `lengths`, and leave out pairs that the filters exclude.

    `lengths` is the row's number of ids in `input_ids`, `labels` and each encoder's column.

    Raises:
        DataError: nothing is left, or a sentence is too long for an encoder.
    """

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        columns = processor.encode_pairs(rows["source"], rows["target"])
        names = ["input_ids", "labels", *sorted(n for n in columns if n.endswith("_input_ids"))]
        lengths = [[len(columns[n][i]) for n in names] for i in range(len(rows["source"]))]
        return {**columns, "lengths": lengths}

    datasets.disable_progress_bars()
    encoded = corpus.map(encode, batched=True, keep_in_memory=True, load_from_cache_file=False)
    report = FilterReport(read=len(corpus), kept=len(corpus))
    if filters is not None:
        keep = []
        for index, (source, target, *_) in enumerate(encoded["lengths"]):
            if max(source, target) > filters.max_length:
                report.too_long += 1
            elif max(source, target) / min(source, target) > filters.max_ratio:
                report.ratio += 1
            else:
                keep.append(index)
        encoded, report.kept = encoded.select(keep), len(keep)
    if not len(encoded):
        raise DataError(f"data.filters leave no pair: {report}")
    return encoded, report


class TokenBatchSampler(Sampler[list[int]]):
    """Batches whose sentences x longest length stay within a budget; the same on every rank.

    Pairs are sorted by length and cut into batches once; every epoch then shuffles pairs of equal
    lengths among themselves and the order of the batches, by (seed, epoch). So the number of
    batches never changes, and a resumed run skips exactly what was done. It is made a multiple of
    ranks x accumulation by repeating the first batches of the epoch.

    Args:
        lengths: per pair, the lengths that count (host source, target, each encoder)
        batch_tokens: the budget, per rank and micro-batch

    Raises:
        DataError: a pair is longer than the budget.
    """

    def __init__(
        self,
        lengths: list[list[int]],
        batch_tokens: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.lengths = [list(row) for row in lengths]
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        self.epoch = 0
        for index, row in enumerate(self.lengths):
            if max(row) > batch_tokens:
                raise DataError(
                    f"data.batch_tokens: {batch_tokens}, but pair {index + 1} has {max(row)} tokens; "
                    "raise it or lower data.filters.max_length"
                )
        self._keys = [(row[1], row[0], *row[2:]) for row in self.lengths]
        order = sorted(range(len(lengths)), key=lambda i: (self._keys[i], i))
        self._order = order
        self._cuts = self._cut(order, batch_tokens)
        multiple = world_size * accumulation
        self._total = -(-len(self._cuts) // multiple) * multiple

    def _cut(self, order: list[int], budget: int) -> list[tuple[int, int]]:
        cuts, start, longest = [], 0, 0
        for position, index in enumerate(order):
            widest = max(longest, *self.lengths[index])
            if position > start and (position - start + 1) * widest > budget:
                cuts.append((start, position))
                start, widest = position, max(self.lengths[index])
            longest = widest
        cuts.append((start, len(order)))
        return cuts

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's shuffle."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._total // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches()
        repeats = -(-self._total // len(batches))
        return iter((batches * repeats)[: self._total][self.rank :: self.world_size])

    def _batches(self) -> list[list[int]]:
        order = list(self._order)
        rng = Random(f"{self.seed}:{self.epoch}")
        if self.shuffle:
            start = 0
            for position in range(1, len(order) + 1):
                at_end = position == len(order)
                if at_end or self._keys[order[position]] != self._keys[order[start]]:
                    run = order[start:position]
                    rng.shuffle(run)
                    order[start:position] = run
                    start = position
        batches = [order[start:end] for start, end in self._cuts]
        if self.shuffle:
            rng.shuffle(batches)
        return batches

    @property
    def padding(self) -> float:
        """Share of positions that hold padding, over all columns, 0 to 1."""
        real = sum(sum(row) for row in self.lengths)
        padded = 0
        for start, end in self._cuts:
            rows = [self.lengths[index] for index in self._order[start:end]]
            padded += len(rows) * sum(max(column) for column in zip(*rows, strict=True))
        return 1 - real / padded
