"""Vocabulary files, and embedding rows that follow their token from one to another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer

from fusion.errors import KeyMapError
from fusion.vocabulary import carry_over, read_vocabulary

OLD = ["<pad>", "▁the", "▁cat", "s", "▁un", "kind", "<unk>"]
TABLE = torch.arange(14.0).reshape(7, 2)
TOKENS = st.lists(st.text("abc▁#Ġ@ é", min_size=1, max_size=5), min_size=1, max_size=9, unique=True)


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# Files


def test_plain_text_has_a_token_on_each_line(tmp_path: Path) -> None:
    assert read_vocabulary(written(tmp_path / "vocab.txt", "[PAD]\n▁a\n##b\n")) == [
        "[PAD]",
        "▁a",
        "##b",
    ]
    assert read_vocabulary(written(tmp_path / "no_newline.txt", "a\nb")) == ["a", "b"]


def test_a_line_break_inside_unicode_text_is_no_end_of_a_token(tmp_path: Path) -> None:
    assert read_vocabulary(written(tmp_path / "v.txt", "a\u2028b\nc\x0bd\n")) == [
        "a\u2028b",
        "c\x0bd",
    ]


def test_fairseq_writes_counts_and_leaves_its_special_tokens_out(tmp_path: Path) -> None:
    path = written(tmp_path / "dict.en.txt", "the 500\n▁ 40\n12 7\n")
    assert read_vocabulary(path) == ["<s>", "<pad>", "</s>", "<unk>", "the", "▁", "12"]


def test_json_is_a_list_or_a_mapping_to_ids(tmp_path: Path) -> None:
    assert read_vocabulary(written(tmp_path / "list.json", '["b", "a"]')) == ["b", "a"]
    mapping = written(tmp_path / "vocab.json", '{"a": 1, "c": 2, "b": 0}')
    assert read_vocabulary(mapping) == ["b", "a", "c"]


def test_a_tokenizer_file_gives_its_model_and_its_added_tokens(tmp_path: Path) -> None:
    unigram = {
        "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.5]]},
        "added_tokens": [{"id": 2, "content": "<mask>"}],
    }
    path = written(tmp_path / "tokenizer.json", json.dumps(unigram))
    assert read_vocabulary(path) == ["<unk>", "▁a", "<mask>"]
    assert read_vocabulary(str(tmp_path)) == ["<unk>", "▁a", "<mask>"]


def test_a_real_tokenizers_directory_gives_every_token_at_its_id(bert_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert_dir)
    tokens = read_vocabulary(str(bert_dir))
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def test_a_sentencepiece_model_and_its_text_form_give_the_same_pieces(tokenizer_dir: Path) -> None:
    models = sorted(tokenizer_dir.glob("*.spm"))
    assert models
    pieces = read_vocabulary(str(models[0]))
    assert pieces[0] in ("<unk>", "<pad>", "<s>", "</s>") and any(p[0] == "▁" for p in pieces)


def test_the_second_column_of_a_sentencepiece_vocabulary_is_left_out(tmp_path: Path) -> None:
    assert read_vocabulary(written(tmp_path / "m.vocab", "<unk>\t0\n▁a\t-2.5\n")) == ["<unk>", "▁a"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.txt", "a\nb\na\n", 'the token "a" comes twice'),
        ("vocab.txt", "", "holds no tokens"),
        ("list.json", '["a", 3]', "neither a list of tokens nor a mapping to ids"),
        ("vocab.json", '{"a": 0, "b": 2}', "the ids are not 0, 1, 2, ... without a gap"),
        ("vocab.json", '{"a": 0, "b": "one"}', "no vocabulary: "),
        ("vocab.json", '{"a": {"b": 1}}', "no vocabulary: "),
        ("vocab.json", '{"a": 0', "no vocabulary: "),
        ("vocab.json", "{}", "holds no tokens"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "no vocabulary: "),
        ("tokenizer.json", '{"model": {"vocab": [3]}}', "no vocabulary: "),
        ("tokenizer.json", '{"model": {"vocab": {}}, "added_tokens": [{}]}', "no vocabulary: "),
        ("m.model", "no protocol buffer", "no vocabulary: "),
    ],
)
def test_a_file_that_is_no_vocabulary_is_one_clear_error(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = written(tmp_path / name, text)
    with pytest.raises(KeyMapError) as caught:
        read_vocabulary(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)


def test_bytes_that_are_no_utf_8_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(KeyMapError, match=r"vocab\.txt: no vocabulary: .*utf-8"):
        read_vocabulary(str(tmp_path / "vocab.txt"))


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    written(tmp_path / "vocab.json", "{}")
    with pytest.raises(KeyMapError, match=r'vocab\.jsn: no vocabulary.*; nearest: "vocab\.json"$'):
        read_vocabulary(str(tmp_path / "vocab.jsn"))
    with pytest.raises(KeyMapError, match=r"no_folder/vocab\.json: no vocabulary"):
        read_vocabulary(str(tmp_path / "no_folder" / "vocab.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyMapError, match=r"empty: none of vocab\.json, tokenizer\.json, "):
        read_vocabulary(str(tmp_path / "empty"))


@given(TOKENS)
def test_tokens_given_as_a_list_are_taken_as_they_are(tokens: list[str]) -> None:
    assert read_vocabulary(tokens) == tokens
    with pytest.raises(KeyMapError, match="comes twice"):
        read_vocabulary([*tokens, tokens[0]])


# Rows


@given(TOKENS, st.data())
def test_a_token_keeps_its_row_bit_for_bit_wherever_it_goes(
    old: list[str], data: st.DataObject
) -> None:
    extra = data.draw(TOKENS)
    new = data.draw(st.permutations(list(dict.fromkeys([*old[: len(old) // 2 + 1], *extra]))))
    kind = data.draw(st.sampled_from(["mean", "zero", f"copy:{old[0]}", "subwords"]))
    table = torch.randn(len(old) + data.draw(st.integers(0, 2)), 3)
    before = table.clone()
    rows = carry_over(table, old, new, kind)
    assert rows.shape == (len(new), 3) and torch.equal(table, before)
    for row, token in zip(rows, new, strict=True):
        if token in old:
            assert torch.equal(row, table[old.index(token)])
        else:
            assert torch.isfinite(row).all()


@pytest.mark.parametrize(
    ("new_tokens", "expected"),
    [
        ("mean", TABLE.mean(0)),
        ("zero", torch.zeros(2)),
        ("copy:▁cat", TABLE[2]),
        ("subwords", TABLE.mean(0)),
    ],
)
def test_a_new_token_gets_what_was_asked_for(new_tokens: str, expected: Tensor) -> None:
    rows = carry_over(TABLE, OLD, ["xyz", "▁the"], new_tokens)
    assert torch.equal(rows[0], expected) and torch.equal(rows[1], TABLE[1])


@pytest.mark.parametrize(
    ("token", "pieces"),
    [
        ("▁cats", [2, 3]),
        ("▁unkind", [4, 5]),
        ("Ġunkind", [4, 5]),
        ("##kinds", [5, 3]),
        ("unkind@@", [4, 5]),
        ("▁s", [3]),
        ("cat", [2]),
        ("▁thecat", [1, 2]),
    ],
)
def test_a_new_token_is_the_mean_of_the_old_ones_that_spell_it(
    token: str, pieces: list[int]
) -> None:
    rows = carry_over(TABLE, OLD, [token, "<pad>"], "subwords")
    assert torch.equal(rows[0], TABLE[pieces].mean(0))


def test_rows_beyond_the_tokens_are_padding_and_no_part_of_the_mean() -> None:
    padded = torch.cat([TABLE, torch.full((1, 2), 1e6)])
    assert torch.equal(carry_over(padded, OLD, ["xyz", "s"], "mean")[0], TABLE.mean(0))


def test_a_mean_of_half_precision_rows_does_not_overflow() -> None:
    table = torch.full((7, 2), 60000.0, dtype=torch.float16)
    rows = carry_over(table, OLD, ["xyz", "s"], "mean")
    assert rows.dtype == torch.float16 and rows[0].tolist() == [60000.0, 60000.0]


@pytest.mark.parametrize("new", [["xyz", "s"], ["s"]])
@pytest.mark.parametrize(
    ("new_tokens", "message"),
    [
        ("meen", '"meen"; nearest: "mean"'),
        ("zeros", '"zeros"; nearest: "zero"'),
        ("mean:▁cat", '"mean:▁cat"; '),
        ("copy", '"copy"; '),
        ("copy:▁kat", 'vocabulary: copy: no old token "▁kat"; nearest: "▁cat"'),
    ],
)
def test_a_typo_is_refused_whether_or_not_there_is_a_new_token(
    new: list[str], new_tokens: str, message: str
) -> None:
    with pytest.raises(KeyMapError) as caught:
        carry_over(TABLE, OLD, new, new_tokens)
    assert message in str(caught.value)


def test_a_table_that_is_too_short_for_its_vocabulary_is_refused() -> None:
    with pytest.raises(KeyMapError, match=r"^vocabulary: 7 tokens for a table of 6 rows$"):
        carry_over(TABLE[:6], OLD, OLD, "mean")


def test_a_vocabulary_that_shares_no_token_is_refused() -> None:
    with pytest.raises(KeyMapError, match="have no token in common"):
        carry_over(TABLE, OLD, ["hello", "world"], "mean")


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_token(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes("\ufeffa\nb\n".encode())
    assert read_vocabulary(str(tmp_path / "v.txt")) == ["a", "b"]
