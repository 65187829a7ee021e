"""Checkpoints of other toolkits are described once, until a file beside them changes."""

from __future__ import annotations

from pathlib import Path

from checkpoints.fairseq_layout import SHAPE, write

from fusion.checkpoints.toolkits import describe_host


def test_a_description_is_made_once_until_the_checkpoint_or_a_vocabulary_changes(
    tmp_path: Path,
) -> None:
    path, _ = write(tmp_path / "m.pt", {"output": "decoder.embed_out"})
    first = describe_host(path, "fairseq")
    assert first is not None
    assert describe_host(path, "fairseq") is first
    assert first.source_vocabulary is None
    lang = first.arguments["source_lang"]
    words = [f"w{n} 1" for n in range(SHAPE.source_words - 4)]
    (tmp_path / "data-bin").mkdir()
    (tmp_path / "data-bin" / f"dict.{lang}.txt").write_text("\n".join(words), encoding="utf-8")
    second = describe_host(path, "fairseq")
    assert second is not None
    assert second.source_vocabulary is not None
    assert second.source_vocabulary[-1] == f"w{SHAPE.source_words - 5}"
    write(path, {"output": "decoder.embed_out", "pre": True})
    third = describe_host(path, "fairseq")
    assert third is not None
    assert third.config["encoder_normalize_before"] is True


def test_a_format_of_no_toolkit_is_described_by_none(tmp_path: Path) -> None:
    assert describe_host(tmp_path, None) is None
    assert describe_host(tmp_path, "safetensors") is None
