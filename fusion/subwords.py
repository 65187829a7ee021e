"""SentencePiece models trained on a recipe's text, as tokenizers that plain transformers loads."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from fusion.errors import RecipeError
from fusion.recipe import SentencePieceSpec
from fusion.writing import whole

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"
FILES = ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json")
LONGEST_LINE = 1 << 24  # bytes; SentencePiece's own limit of 4192 would leave lines out


def train_tokenizer(
    spec: SentencePieceSpec,
    sentences: Iterable[str],
    directory: Path,
    source_lang: str,
    target_lang: str,
) -> None:
    """Train one model for both languages and write it as a MarianTokenizer directory.

    Ids: `</s>` 0, `<unk>` 1, the pieces, `<pad>` last (`vocab_size - 1`), as Marian's own models.
    Text that spells a special token is read as text. Written to a temporary name, then renamed.

    Raises:
        RecipeError: `vocab_size` does not fit the text (says what would), there is no text, or
            the directory holds something else.
    """
    lines = [line for text in sentences if text.strip() for line in _cut(text)]
    model = _train(spec, lines)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    learned = [pieces.id_to_piece(index) for index in range(pieces.get_piece_size())]
    ordered = [EOS, UNK, *(p for p in learned if p not in (EOS, UNK, PAD)), PAD]
    vocabulary = {piece: index for index, piece in enumerate(ordered)}
    settings = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": source_lang,
        "target_lang": target_lang,
        "separate_vocabs": False,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": PAD,
        "split_special_tokens": True,
        "model_max_length": 512,
    }
    contents = (
        model,
        model,
        json.dumps(vocabulary, ensure_ascii=False, indent=0).encode(),
        json.dumps(settings, indent=2).encode() + b"\n",
    )
    _write(directory, dict(zip(FILES, contents, strict=True)))


def _cut(text: str) -> Iterator[str]:
    """A long text in lines of some words, since training time grows with a line's square."""
    words = text.split(" ") if len(text) > 2000 else [text]
    for start in range(0, len(words), 200):
        yield " ".join(words[start : start + 200])


def _train(spec: SentencePieceSpec, sentences: list[str]) -> bytes:
    if not sentences:
        raise RecipeError("host.tokenizer: no text to train SentencePiece on")
    # A text that spells <pad> must not make it a piece like any other.
    reserved = [PAD] if any(PAD in sentence for sentence in sentences) else []
    ours = 1 - len(reserved)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            vocab_size=spec.vocab_size - ours,
            model_type=spec.model_type,
            character_coverage=spec.character_coverage,
            control_symbols=reserved,
            bos_id=-1,
            pad_id=-1,
            eos_id=0,
            unk_id=1,
            input_sentence_size=0,
            max_sentence_length=LONGEST_LINE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RecipeError(_explain(str(error), spec.vocab_size, ours)) from None
    return written.getvalue()


def _explain(message: str, asked: int, ours: int) -> str:
    """SentencePiece's message in the recipe's terms: `ours` pieces are added to its own."""
    key = f"host.tokenizer.vocab_size: {asked} pieces are"
    if most := re.search(r"value <= (\d+)", message):
        return f"{key} too many for this text; the largest that works is {int(most[1]) + ours}"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"{key} too few for the characters of this text; use at least "
            f"{int(least[1]) + ours + 1}, or lower host.tokenizer.character_coverage"
        )
    return f"host.tokenizer: SentencePiece cannot train on this text: {message}"


def holds_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a tokenizer that was trained here, and nothing else."""
    return directory.is_dir() and {path.name for path in directory.iterdir()} == set(FILES)


def _write(directory: Path, contents: dict[str, bytes]) -> None:
    others = {path.name for path in directory.iterdir()} - set(FILES) if directory.is_dir() else ()
    if others:
        raise RecipeError(f"{directory}: holds no tokenizer of fusion's but {min(others)}; move it")
    with whole(directory) as temporary:
        temporary.mkdir()
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
