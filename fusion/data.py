"""Parallel text -> filtered, tokenised pairs -> batches of a token budget."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import datasets
import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from pyarrow import parquet
from torch.utils.data import Sampler

from fusion.errors import DataError, nearest
from fusion.recipe import CorpusSpec, DataSpec, FilterSpec

Empty = Literal["error", "drop"]
Rows = list[tuple[str, dict[str, Any]]]  # where a row stands, and its cells by column

TABLES = (".jsonl", ".json", ".tsv", ".csv", ".parquet")


class PairEncoder(Protocol):
    """What tokenising needs of a processor."""

    def encode_pairs(self, sources: list[str], targets: list[str]) -> dict[str, list[list[int]]]:
        """Ids by column."""


@dataclass
class FilterReport:
    """How many pairs were left out, and why."""

    read: int = 0
    kept: int = 0
    too_long: int = 0
    ratio: int = 0
    empty: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kept:,} of {self.read:,} pairs kept; dropped: {self.empty:,} empty, "
            f"{self.too_long:,} too long, {self.ratio:,} of odd length ratio"
        )


@dataclass
class _Pairs:
    """Aligned text; `place(side, i)` says where pair i stands, for messages."""

    sources: list[str]
    targets: list[str]
    place: Callable[[str, int], str]


def read_corpus(
    spec: CorpusSpec | list[CorpusSpec], data: DataSpec, where: str, *, empty: Empty = "error"
) -> Dataset:
    """A corpus as columns `source` and `target`.

    Args:
        where: the recipe's key, for messages
        empty: what to do with a pair that has an empty or blank side; the number of dropped pairs
            is the result's attribute `empty_dropped`, which `tokenise` reports

    Raises:
        DataError: names file and line, or the key.
    """
    sources: list[str] = []
    targets: list[str] = []
    read = 0
    several = isinstance(spec, list)
    for index, one in enumerate(spec if isinstance(spec, list) else [spec]):
        here = f"{where}[{index}]" if several else where
        pairs = _read_pairs(one, data, here)
        read += len(pairs.sources)
        for number, (source, target) in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
            if source.strip() and target.strip():
                sources.append(source)
                targets.append(target)
            elif empty == "error":
                side = "target" if source.strip() else "source"
                raise DataError(
                    f"{here}: {pairs.place(side, number)}: the {side} is empty; remove the pair, "
                    "or set data.filters.empty: drop for training text"
                )
    if not sources:
        raise DataError(f"{where}: no pair has text on both sides")
    corpus = Dataset.from_dict({"source": sources, "target": targets})
    corpus.empty_dropped = read - len(sources)
    return corpus


def _read_pairs(spec: CorpusSpec, data: DataSpec, where: str) -> _Pairs:
    if spec.synthetic is not None:
        return _read_synthetic(spec.synthetic, data, where)
    assert spec.source is not None and spec.target is not None
    if spec.hub is not None:
        return _pick(_load_hub(spec, where), spec, where)
    if spec.file is not None:
        return _pick(_load_file(spec, where), spec, where)
    paths = {"source": Path(spec.source), "target": Path(spec.target)}
    left, right = (read_lines(path, where) for path in paths.values())
    if len(left) != len(right):
        raise DataError(
            f"{where}: {spec.source} has {len(left)} lines and {spec.target} has {len(right)}; "
            "line n of one must translate line n of the other"
        )
    return _Pairs(left, right, lambda side, i: f"{paths[side]}:{i + 1}")


def _read_synthetic(split: str, data: DataSpec, where: str) -> _Pairs:
    from fusion.synthetic import generate

    try:
        splits = generate(data.synthetic_seed, data.synthetic_pairs).splits
    except ValueError as error:
        raise DataError(f"{where}: data.synthetic_pairs: {error}") from None
    if split not in splits:
        raise DataError(f'{where}: no synthetic split "{split}"{nearest(split, splits)}')
    pairs = splits[split]
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    return _Pairs(sources, targets, lambda _, i: f"synthetic {split}: pair {i + 1}")


def _check_file(path: Path, where: str) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{where}: {path}: is a directory, not a file")
    if not path.parent.is_dir():
        raise DataError(f"{where}: {path}: no such file; no directory {path.parent}")
    names = [other.name for other in path.parent.iterdir()]
    raise DataError(f"{where}: {path}: no such file{nearest(path.name, names)}")


def _read_text(path: Path, where: str) -> str:
    _check_file(path, where)
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: {path}: cannot be read: {error}") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw:
        raise DataError(f"{where}: {path}: is empty")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{where}: {path}:{line}: not UTF-8: {error.reason} at byte {column} of the line"
        ) from None


def read_lines(path: Path, where: str) -> list[str]:
    """Lines end at a newline only, whatever other separators the text contains."""
    lines = _read_text(path, where).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _pick(rows: Rows, spec: CorpusSpec, where: str) -> _Pairs:
    if not rows:
        raise DataError(f"{where}: {spec.file or spec.hub}: holds no rows")
    sources = _column(rows, str(spec.source), where)
    targets = _column(rows, str(spec.target), where)
    return _Pairs(sources, targets, lambda _, i: rows[i][0])


def _column(rows: Rows, path: str, where: str) -> list[str]:
    """A column of strings; `translation.en` reads a nested one."""
    cells = []
    for place, row in rows:
        cell: Any = row
        for key in [path] if path in row else path.split("."):
            if not isinstance(cell, dict) or key not in cell:
                near = nearest(key, cell) if isinstance(cell, dict) else ""
                raise DataError(f'{where}: {place}: no column "{path}"{near}')
            cell = cell[key]
        if not isinstance(cell, str):
            raise DataError(f'{where}: {place}: column "{path}" holds {cell!r}; text expected')
        try:
            cell.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair
            raise DataError(
                f'{where}: {place}: column "{path}" is not Unicode text: {cell!a}'
            ) from None
        cells.append(cell)
    return cells


def _load_file(spec: CorpusSpec, where: str) -> Rows:
    """Rows of a table file, every cell of CSV and TSV as the text that is there."""
    path = Path(str(spec.file))
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in TABLES:
        raise DataError(f"{where}: {path}: unknown format; known: {', '.join(TABLES)}")
    if kind == ".parquet":
        return _load_parquet(path, spec, where)
    if kind in (".csv", ".tsv"):
        return _load_delimited(path, kind, where)
    text = _read_text(path, where)
    if kind == ".json" and text.lstrip().startswith("["):
        chunks, places = [text], [str(path)]
    else:
        numbered = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        chunks, places = [line for _, line in numbered], [f"{path}:{n}" for n, _ in numbered]
    rows: Rows = []
    for place, chunk in zip(places, chunks, strict=True):
        try:
            value = json.loads(chunk)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {place}: not JSON: {error}") from None
        if isinstance(value, list) and kind == ".json":
            rows += [(f"{path}: row {n}", row) for n, row in enumerate(value, 1)]
        else:
            rows.append((place, value))
    for place, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: {place}: an object of columns expected; found {row!r:.60}")
    return rows


def _load_delimited(path: Path, kind: str, where: str) -> Rows:
    lines = read_lines(path, where)
    if kind == ".tsv":
        records = [(n, line.split("\t")) for n, line in enumerate(lines, 1)]
    else:
        reader = csv.reader((f"{line}\n" for line in lines), strict=True)
        try:
            records = [(reader.line_num, record) for record in reader]
        except csv.Error as error:
            raise DataError(f"{where}: {path}:{reader.line_num}: not CSV: {error}") from None
    (_, header), *body = records
    rows: Rows = []
    for number, record in body:
        cells = record if any(record) else [""] * len(header)
        if len(cells) != len(header):
            raise DataError(
                f"{where}: {path}:{number}: {len(cells)} columns; the header has {len(header)}"
            )
        rows.append((f"{path}:{number}", dict(zip(header, cells, strict=True))))
    return rows


def _needed(names: list[str], spec: CorpusSpec, where: str, table: str) -> list[str]:
    """Top-level columns to load, of all that a table has."""
    columns = [str(spec.source), str(spec.target)]
    tops = {path if path in names else path.split(".")[0]: path for path in columns}
    for top, path in tops.items():
        if top not in names:
            raise DataError(f'{where}: {table}: no column "{path}"{nearest(path, names)}')
    return list(tops)


def _load_parquet(path: Path, spec: CorpusSpec, where: str) -> Rows:
    _check_file(path, where)
    try:
        with parquet.ParquetFile(path) as file:
            needed = _needed(file.schema_arrow.names, spec, where, str(path))
            cells = file.read(needed).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{where}: {path}: cannot be read: {error}") from None
    return [(f"{path}: row {n}", row) for n, row in enumerate(cells, 1)]


def _load_hub(spec: CorpusSpec, where: str) -> Rows:
    name = f"hub data set {spec.hub}"
    try:
        table = datasets.load_dataset(
            spec.hub, spec.config, split=spec.split, revision=spec.revision
        )
    except Exception as error:  # the hub's errors are many
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"{where}: {name}: {type(error).__name__}: {first}") from None
    needed = _needed(table.column_names, spec, where, name)
    cells = table.select_columns(needed).to_list()
    return [(f"{name}: row {n}", row) for n, row in enumerate(cells, 1)]


def tokenise(
    corpus: Dataset, processor: PairEncoder, filters: FilterSpec | None = None
) -> tuple[Dataset, FilterReport]:
    """Add columns of ids and `lengths`, and leave out pairs that the filters exclude.

    `lengths` is the row's number of ids in `input_ids`, `labels` and each encoder's column.

    Raises:
        DataError: nothing is left, or the processor refuses a pair (its number is named).
    """

    def encode(rows: dict[str, list[str]], indices: list[int]) -> dict[str, Any]:
        try:
            columns = processor.encode_pairs(rows["source"], rows["target"])
        except DataError:
            _blame(processor, rows, indices)
            raise
        names = ["input_ids", "labels", *(n for n in columns if n.endswith("_input_ids"))]
        lengths = [[len(columns[n][i]) for n in names] for i in range(len(indices))]
        return {**columns, "lengths": lengths}

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        encoded = corpus.map(
            encode,
            batched=True,
            with_indices=True,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=generate_random_fingerprint(),
        )
    finally:
        if shown:
            datasets.enable_progress_bars()
    empty = getattr(corpus, "empty_dropped", 0)
    report = FilterReport(read=len(corpus) + empty, kept=len(corpus), empty=empty)
    if filters is not None:
        keep = []
        for index, (source, target, *_) in enumerate(encoded["lengths"]):
            if max(source, target) > filters.max_length:
                report.too_long += 1
            elif max(source, target) > filters.max_ratio * min(source, target):
                report.ratio += 1
            else:
                keep.append(index)
        encoded, report.kept = encoded.select(keep), len(keep)
    if not len(encoded):
        raise DataError(f"data.filters leave no pair: {report}")
    return encoded, report


def _blame(processor: PairEncoder, rows: dict[str, list[str]], indices: list[int]) -> None:
    for index, source, target in zip(indices, rows["source"], rows["target"], strict=True):
        try:
            processor.encode_pairs([source], [target])
        except DataError as error:
            raise DataError(f"pair {index + 1}: {error}") from None


class TokenBatchSampler(Sampler[list[int]]):
    """Batches whose sentences x longest length stay within a budget; the same on every rank.

    Pairs are put into batches once, by `_batches_of`; every epoch then exchanges pairs of equal
    lengths and shuffles the order of the batches, by (seed, epoch). So the number of batches never
    changes, and a resumed run skips exactly what was done. It is made a multiple of ranks x
    accumulation by repeating the first batches of the epoch.

    Args:
        lengths: per pair, the lengths that count (host source, target, each encoder)
        batch_tokens: the budget, per rank and micro-batch

    Raises:
        DataError: no pairs, or a pair is longer than the budget.
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
        self.lengths = [tuple(row) for row in lengths]
        self.seed, self.rank, self.world_size, self.shuffle = seed, rank, world_size, shuffle
        self.epoch = 0
        if not self.lengths:
            raise DataError("no pairs to make batches of")
        for index, row in enumerate(self.lengths):
            if max(row) > batch_tokens:
                raise DataError(
                    f"data.batch_tokens: {batch_tokens}, but pair {index + 1} has {max(row)} "
                    "tokens; raise it or lower data.filters.max_length"
                )
        self._batches = _batches_of(self.lengths, batch_tokens)
        multiple = world_size * accumulation
        self._total = -(-len(self._batches) // multiple) * multiple

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's shuffle."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._total // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._shuffled() if self.shuffle else self._batches
        repeats = -(-self._total // len(batches))
        return iter((batches * repeats)[: self._total][self.rank :: self.world_size])

    def _shuffled(self) -> list[list[int]]:
        rng = Random(f"{self.seed}:{self.epoch}")
        equal: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(self.lengths):
            equal.setdefault(row, []).append(index)
        for indices in equal.values():
            rng.shuffle(indices)
        batches = [[equal[self.lengths[index]].pop() for index in one] for one in self._batches]
        rng.shuffle(batches)
        return batches

    @property
    def padding(self) -> float:
        """Share of positions that hold padding, over all columns, 0 to 1."""
        real = sum(sum(row) for row in self.lengths)
        padded = 0
        for batch in self._batches:
            rows = [self.lengths[index] for index in batch]
            padded += len(rows) * sum(max(column) for column in zip(*rows, strict=True))
        return 1 - real / padded


BUCKET = 6  # batches


def _batches_of(lengths: list[tuple[int, ...]], budget: int) -> list[list[int]]:
    """Pairs that are alike in every length, in batches within the budget.

    Pairs are sorted by their longest side, neighbouring lengths are taken together until they fill
    some batches, and these are cut out by halving, each time across the length that would be
    padded most. A plain sort gives batches that are alike in its first key only.
    """
    longest = [max(row) for row in lengths]
    order = sorted(range(len(lengths)), key=lambda index: longest[index])
    batches: list[list[int]] = []
    bucket: list[int] = []
    for length, group in groupby(order, key=lambda index: longest[index]):
        bucket += group
        size = budget // length
        if len(bucket) >= BUCKET * size or bucket[-1] == order[-1]:
            batches += _halved(bucket, -(-len(bucket) // size), lengths)
            bucket = []
    return batches


def _halved(indices: list[int], parts: int, lengths: list[tuple[int, ...]]) -> list[list[int]]:
    """Cut into parts of equal size, alike in their lengths."""
    if parts == 1:
        return [indices]
    columns = zip(*(lengths[index] for index in indices), strict=True)
    padding = [len(indices) * max(column) - sum(column) for column in columns]
    worst = padding.index(max(padding))
    ranked = sorted(indices, key=lambda index: (lengths[index][worst], lengths[index], index))
    first = parts // 2
    cut = len(ranked) * first // parts
    return _halved(ranked[:cut], first, lengths) + _halved(ranked[cut:], parts - first, lengths)
