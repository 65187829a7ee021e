"""Raw text in, ids and masks for the host and every encoder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.composition import compose
from fusion.errors import DataError, ModelError
from fusion.processor import FusionProcessor

UNICODE = ["Ünïcode — 日本語 🙂 naïve", "e\u0301 is é", "\u200bzero\u00a0width", "مرحبا"]


def long_text(words: int) -> str:
    return " ".join(["cat", "dog", "the"][i % 3] for i in range(words))


def test_a_row_is_the_same_alone_and_in_a_batch_apart_from_padding(
    make_recipe: Any, sentences: list[str]
) -> None:
    processor = compose(make_recipe()).processor
    together = processor(sentences, sentences)
    for index, sentence in enumerate(sentences):
        alone = processor([sentence], [sentence])
        for key, row in alone.items():
            length = row.shape[1]
            assert torch.equal(together[key][index, :length], row[0])
            rest = together[key][index, length:]
            expected = 0 if key.endswith("mask") else processor.pads[key]
            assert (rest == expected).all()
    assert set(together) == {
        *("input_ids", "attention_mask", "labels"),
        *("bert_input_ids", "bert_attention_mask"),
    }


def test_masks_hide_padding_and_nothing_else(make_recipe: Any, sentences: list[str]) -> None:
    batch = compose(make_recipe()).processor(sentences)
    for prefix in ("", "bert_"):
        lengths = batch[f"{prefix}attention_mask"].sum(1)
        assert len(set(lengths.tolist())) > 1
        assert lengths.max() == batch[f"{prefix}input_ids"].shape[1]
        assert (batch[f"{prefix}attention_mask"].diff(dim=1) <= 0).all()  # on the right


def test_the_encoder_reads_the_raw_line_with_its_own_tokenizer(make_recipe: Any) -> None:
    processor = compose(make_recipe()).processor
    ids = processor(["The cat sleeps ."])["bert_input_ids"][0]
    tokens = processor.encoders["bert"].tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "the", "cat", "sleeps", ".", "[SEP]"]


def test_any_unicode_text_is_encoded_and_translated(make_recipe: Any) -> None:
    composition = compose(make_recipe())
    texts = composition.processor.decode(
        composition.model.generate(**composition.processor(UNICODE))
    )
    assert len(texts) == len(UNICODE)


@pytest.mark.parametrize("text", ["", "   ", "\u200b"])
def test_a_line_without_words_still_gives_a_row(make_recipe: Any, text: str) -> None:
    composition = compose(make_recipe())
    batch = composition.processor([text, "the cat"])
    assert (batch["bert_attention_mask"].sum(1) >= 2).all()
    with torch.no_grad():
        made = composition.model.generate(**batch)
    assert made.shape[0] == 2


def test_no_text_is_an_error(make_recipe: Any) -> None:
    with pytest.raises(DataError, match="no text to encode"):
        compose(make_recipe()).processor([])


def test_another_number_of_targets_is_an_error(make_recipe: Any) -> None:
    with pytest.raises(DataError, match="2 source and 1 target texts"):
        compose(make_recipe()).processor(["a", "b"], ["c"])


def test_a_sentence_longer_than_the_encoder_is_an_error_that_names_the_way_out(
    make_recipe: Any,
) -> None:
    processor = compose(make_recipe(encoder={"max_length": 10})).processor
    assert processor([long_text(8)])["bert_input_ids"].shape[1] == 10
    with pytest.raises(
        DataError,
        match=r"^11 tokens for encoder bert, which reads 10; set encoders\.bert\.overflow .*cat",
    ):
        processor(["the cat", long_text(9)])


def test_a_sentence_longer_than_the_host_is_an_error(make_recipe: Any) -> None:
    processor = compose(make_recipe(encoder={"overflow": "windows"})).processor
    with pytest.raises(DataError, match="the host has 128 positions; split the sentence"):
        processor([long_text(400)])


def test_truncation_cuts_to_the_limit_and_keeps_special_tokens(make_recipe: Any) -> None:
    settings = {"max_length": 10, "overflow": "truncate"}
    composition = compose(make_recipe(encoder=settings))
    ids = composition.processor([long_text(30)])["bert_input_ids"]
    tokens = composition.processor.encoders["bert"].tokenizer.convert_ids_to_tokens(ids[0])
    assert len(tokens) == 10
    assert tokens[0] == "[CLS]"
    assert tokens[-1] == "[SEP]"
    assert tokens[1:9] == long_text(8).split()


@pytest.mark.parametrize("words", [8, 9, 16, 17, 30])
def test_windows_lose_no_word_and_each_has_its_special_tokens(make_recipe: Any, words: int) -> None:
    settings = {"max_length": 10, "overflow": "windows"}
    processor = compose(make_recipe(encoder=settings)).processor
    ids = processor([long_text(words)])["bert_input_ids"][0].tolist()
    tokens = processor.encoders["bert"].tokenizer.convert_ids_to_tokens(ids)
    windows = [tokens[i : i + 10] for i in range(0, len(tokens), 10)]
    assert all(w[0] == "[CLS]" and w[-1] == "[SEP]" for w in windows)
    assert [t for t in tokens if not t.startswith("[")] == long_text(words).split()


@pytest.mark.parametrize("layer", [-1, "mix"])
def test_the_memory_of_windows_is_that_of_each_window_alone(make_recipe: Any, layer: Any) -> None:
    settings = {"max_length": 10, "overflow": "windows", "layer": layer}
    composition = compose(make_recipe(encoder=settings))
    model, processor = composition.model, composition.processor
    text, short = long_text(21), long_text(3)
    whole = processor([short, text, long_text(17)])
    with torch.no_grad():
        memory = model.memories(whole)["bert"]
        assert memory.states.shape[1] == whole["bert_input_ids"].shape[1] == 27
        for row, words in ((0, [3]), (1, [8, 8, 5]), (2, [8, 8, 1])):
            line, start = [short, text, long_text(17)][row].split(), 0
            parts = []
            for count in words:
                alone = processor([" ".join(line[start : start + count])])
                parts.append(model.memories(alone)["bert"].states[0])
                start += count
            expected = torch.cat(parts)
            found = memory.states[row, : len(expected)]
            assert torch.allclose(found, expected, atol=1e-6)
            assert torch.isfinite(memory.states[row]).all()
            mask = memory.mask[row]
            assert mask.sum() == len(expected)
            assert mask[: len(expected)].all()


def test_windows_and_short_sentences_translate_together(make_recipe: Any) -> None:
    settings = {"max_length": 10, "overflow": "windows"}
    composition = compose(make_recipe(encoder=settings, method="bert-fused"))
    model, processor = composition.model, composition.processor
    texts = [long_text(3), long_text(25)]
    together = processor.decode(model.generate(**processor(texts), num_beams=2))
    alone = [processor.decode(model.generate(**processor([t]), num_beams=2))[0] for t in texts]
    assert together == alone


def test_decoding_leaves_special_tokens_out(make_recipe: Any) -> None:
    processor = compose(make_recipe()).processor
    batch = processor(["x"], ["der kleine Hund ."])
    assert processor.decode(batch["labels"]) == ["der kleine Hund ."]


def test_a_saved_processor_encodes_alike(
    make_recipe: Any, sentences: list[str], tmp_path: Path
) -> None:
    settings = {"max_length": 10, "overflow": "windows"}
    processor = compose(make_recipe(encoder=settings)).processor
    processor.save_pretrained(tmp_path)
    again = FusionProcessor.from_pretrained(tmp_path)
    texts = [*sentences, *UNICODE, long_text(25)]
    one, two = processor(texts, texts), again(texts, texts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_plain_host_directory_is_a_processor_too(
    host_dirs: dict[str, Path], sentences: list[str]
) -> None:
    batch = FusionProcessor.from_pretrained(host_dirs["bart"])(sentences)
    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_directory_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer that transformers loads"):
        FusionProcessor.from_pretrained(tmp_path)


def test_a_saved_model_whose_processor_is_gone_or_broken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"fusion_processor\.json: no such file"):
        FusionProcessor.from_pretrained(tmp_path)
    (tmp_path / "fusion_processor.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"fusion_processor\.json: not what fusion wrote"):
        FusionProcessor.from_pretrained(tmp_path)


def test_text_is_padded_on_the_right_whatever_the_encoders_files_say(
    make_recipe: Any, bert_dir: Path, sentences: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    for file in bert_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    AutoTokenizer.from_pretrained(bert_dir, padding_side="left").save_pretrained(tmp_path)
    encoders = {"bert": {"source": str(tmp_path)}}
    batch = compose(make_recipe(encoders=encoders)).processor(sentences)
    assert batch["bert_attention_mask"][:, 0].all()
