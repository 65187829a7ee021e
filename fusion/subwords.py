"""SentencePiece models trained on a recipe's text, as tokenizers that plain transformers loads."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from fusion.errors import RecipeError
from fusion.recipe import SentencePieceSpec

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"


def train_tokenizer(
    spec: SentencePieceSpec,
    sentences: Iterable[str],
    directory: Path,
    source_lang: str,
    target_lang: str,
) -> None:
    """Train one model for both languages and write it as a MarianTokenizer directory.

    Ids: `</s>` 0, `<unk>` 1, the pieces, `<pad>` last (`vocab_size - 1`), as Marian's own models.
    Written to a temporary name, then renamed.

    Raises:
        RecipeError: the text is too small for `vocab_size`; says what would work.
    """
    model = _train(spec, sentences)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {EOS: 0, UNK: 1}
    for index in range(pieces.get_piece_size()):
        vocabulary.setdefault(pieces.id_to_piece(index), len(vocabulary))
    vocabulary[PAD] = len(vocabulary)
    temporary = directory.parent / f".{directory.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in ("source.spm", "target.spm"):
        (temporary / name).write_bytes(model)
    settings = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": source_lang,
        "target_lang": target_lang,
        "separate_vocabs": False,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": PAD,
        "model_max_length": 512,
    }
    (temporary / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0))
    (temporary / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def _train(spec: SentencePieceSpec, sentences: Iterable[str]) -> bytes:
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            vocab_size=spec.vocab_size - 1,  # <pad> is ours
            model_type=spec.model_type,
            character_coverage=spec.character_coverage,
            bos_id=-1,
            pad_id=-1,
            eos_id=0,
            unk_id=1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        smaller = re.search(r"<=\s*(\d+)", str(error))
        hint = f"the largest that works is {int(smaller[1]) + 1}" if smaller else str(error)
        raise RecipeError(
            f"host.tokenizer.vocab_size: {spec.vocab_size} pieces are too many for this text; {hint}"
        ) from None
    return written.getvalue()
