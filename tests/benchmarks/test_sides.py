"""Batches that a speed program measures are batches of the whole text."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from benchmarks.sides import SHAPES, Bench, batches_of, some_batches


def test_drawn_batches_are_those_of_the_whole_text_with_its_padding(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SHAPES["tiny"], 500)
    rows = Dataset.from_dict(
        {"lengths": [[5 + i % 37, 4 + i % 31] for i in range(500)], "own": list(range(500))}
    )
    whole = batches_of(bench, rows)
    some, batches, padding = some_batches(bench, rows, 5)
    assert [some[batch]["own"] for batch in batches] == list(whole)[:5]
    assert len(some) == sum(len(batch) for batch in batches) < 500
    assert padding == whole.padding
