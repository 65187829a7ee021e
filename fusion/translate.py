"""Raw text in, translations out: sorted by length inside, in order outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fusion.errors import DataError, FusionError
from fusion.model import FusedModel
from fusion.processor import FusionProcessor

Row = dict[str, list[int]]
LONGEST = 512  # output tokens of a host without a position limit


def translate(
    model: FusedModel,
    processor: FusionProcessor,
    lines: list[str],
    *,
    batch_tokens: int = 4096,
    first_line: int = 1,
    **generate: Any,
) -> list[str]:
    """Translate lines; an empty or blank line stays empty.

    Args:
        batch_tokens: sentences x longest input of a batch, times beams
        first_line: number of the first line, for messages
        generate: settings of `generate` that differ from the model's own (num_beams, ...)

    Raises:
        DataError: a line is longer than the host or an encoder reads; names the line.
    """
    results = [""] * len(lines)
    filled = {index: line for index, line in enumerate(lines) if line.strip()}
    rows = list(zip(filled, _encode(processor, filled, first_line), strict=True))
    rows.sort(key=lambda row: -_length(row[1]))
    beams = generate.get("num_beams") or model.generation_config.num_beams or 1
    model.eval()
    for batch in _batches(rows, max(1, batch_tokens // beams)):
        padded = {k: v.to(model.device) for k, v in processor.pad([r for _, r in batch]).items()}
        limits = {"max_length": processor.max_length or LONGEST}  # the same in every batch
        with torch.inference_mode():
            ids = model.generate(**padded, **(limits | generate))
        for (index, _), text in zip(batch, processor.decode(ids), strict=True):
            results[index] = text.replace("\n", " ")
    return results


def translate_stream(
    model: FusedModel,
    processor: FusionProcessor,
    lines: Iterable[bytes],
    *,
    buffer_size: int = 1000,
    **generate: Any,
) -> Iterator[str]:
    """Translate a stream, `buffer_size` lines at a time.

    Raises:
        DataError: a line is not UTF-8, or too long; names the line.
    """
    block: list[str] = []
    number = 0
    for number, raw in enumerate(lines, start=1):
        try:
            block.append(raw.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number}: not UTF-8: {error.reason} at byte {error.start}"
            ) from None
        if len(block) == buffer_size:
            first = number - len(block) + 1
            yield from translate(model, processor, block, first_line=first, **generate)
            block = []
    first = number - len(block) + 1
    yield from translate(model, processor, block, first_line=first, **generate)


def _encode(processor: FusionProcessor, lines: dict[int, str], first: int) -> list[Row]:
    """Ids of lines by their index; all at once, and one by one where one must be named."""
    if not lines:
        return []
    try:
        columns = processor.encode_sources(list(lines.values()))
    except FusionError:
        for index, line in lines.items():
            try:
                processor.encode_sources([line])
            except FusionError as error:
                raise DataError(f"line {first + index}: {error}") from None
        raise
    return [dict(zip(columns, ids, strict=True)) for ids in zip(*columns.values(), strict=True)]


def _length(row: Row) -> int:
    return max(len(ids) for ids in row.values())


def _batches(rows: list[tuple[int, Row]], budget: int) -> Iterator[list[tuple[int, Row]]]:
    """Consecutive rows whose count times longest stays within the budget; at least one."""
    batch: list[tuple[int, Row]] = []
    for row in rows:
        longest = max(_length(row[1]), _length(batch[0][1]) if batch else 0)
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
