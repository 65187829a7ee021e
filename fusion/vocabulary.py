"""Vocabularies as lists of token strings, and embedding rows carried from one to another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fusion.errors import KeyMapError, nearest

NewTokens = str
_MARKS = ("▁", "Ġ", "##")
_NEW_TOKENS = ("mean", "zero", "subwords", "copy:")
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")


def read_vocabulary(vocabulary: str | Sequence[str]) -> list[str]:
    """Token strings in the order of their ids.

    Reads a JSON list or token -> id mapping (`vocab.json`, or `tokenizer.json`), a SentencePiece
    `.model`, `.spm` or `.vocab`, fairseq's `dict*.txt` (a token and its count on each line; its
    four special tokens come first), or plain text with one token a line. A directory is searched
    for one of these.

    Raises:
        KeyMapError: not there, not one of these, or a token comes twice.
    """
    if not isinstance(vocabulary, str):
        return _unique(list(vocabulary), "the vocabulary")
    path = vocabulary_file(vocabulary)
    try:
        if path.suffix in {".model", ".spm"}:
            tokens = _sentencepiece(path)
        elif path.suffix == ".json":
            tokens = _json(path)
        else:
            tokens = _lines(path)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if (
            path.parent.is_dir() and not path.exists()
        ) else ""  # fmt: skip
        raise KeyMapError(f"{path}: no vocabulary: {error}{near}") from None
    return _unique(tokens, str(path))


def vocabulary_file(place: str) -> Path:
    """The file that a vocabulary is read from; in a directory, the first of the usual names.

    Raises:
        KeyMapError: a directory without one.
    """
    path = Path(place).expanduser()
    if not path.is_dir():
        return path
    names = ("vocab.json", "tokenizer.json", "vocab.txt", "source.spm", "spiece.model")
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise KeyMapError(f"{path}: none of {', '.join(names)} there")
    return found


def _unique(tokens: list[str], where: str) -> list[str]:
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise KeyMapError(f'{where}: the token "{token}" comes twice')
        seen.add(token)
    if not tokens:
        raise KeyMapError(f"{where}: holds no tokens")
    return tokens


def _sentencepiece(path: Path) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(path.read_bytes())
    return [model.IdToPiece(index) for index in range(model.GetPieceSize())]


def _json(path: Path) -> list[str]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(raw, dict) and isinstance(raw.get("model"), dict):  # tokenizer.json
        added = {row["content"]: row["id"] for row in raw.get("added_tokens", ())}
        vocabulary = raw["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram: pieces with scores
            vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
        raw = vocabulary | added
    if isinstance(raw, dict):
        ids = sorted(raw.values())
        if ids != list(range(len(ids))):
            raise ValueError("the ids are not 0, 1, 2, ... without a gap")
        return sorted(raw, key=lambda token: int(raw[token]))
    if isinstance(raw, list) and all(isinstance(token, str) for token in raw):
        return raw
    raise ValueError("neither a list of tokens nor a mapping to ids")


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if path.suffix == ".vocab":
        return [line.split("\t")[0] for line in lines]
    pairs = [line.rsplit(" ", 1) for line in lines]
    if lines and all(len(pair) == 2 and pair[1].isdecimal() for pair in pairs):
        return [*_FAIRSEQ, *(token for token, _ in pairs)]
    return lines


def carry_over(table: Tensor, old: list[str], new: list[str], new_tokens: NewTokens) -> Tensor:
    """Rows of `new`, from the rows of `old` by token string; what is new as `new_tokens` says.

    Shapes: table `[len(old) or more, ...]` -> `[len(new), ...]`

    Raises:
        KeyMapError: fewer rows than tokens, no token in both, an unknown `new_tokens`, or no such
            token to copy.
    """
    kind, colon, token = new_tokens.partition(":")
    if f"{kind}{colon}" not in _NEW_TOKENS:
        shown = ", ".join(_NEW_TOKENS)
        raise KeyMapError(
            f'vocabulary: new_tokens: "{new_tokens}"{nearest(new_tokens, _NEW_TOKENS)}; '
            f"all of them: {shown}TOKEN"
        )
    if len(table) < len(old):
        raise KeyMapError(f"vocabulary: {len(old)} tokens for a table of {len(table)} rows")
    index = {token: row for row, token in enumerate(old)}
    if not index.keys() & set(new):
        raise KeyMapError("vocabulary: the old and the new one have no token in common")
    if kind == "copy" and token not in index:
        raise KeyMapError(f'vocabulary: copy: no old token "{token}"{nearest(token, old)}')
    rows = table[torch.tensor([index.get(token, 0) for token in new], device=table.device)].clone()
    fresh = [row for row, token in enumerate(new) if token not in index]
    if not fresh:
        return rows
    if kind == "zero":
        rows[fresh] = 0
    elif kind == "mean":
        rows[fresh] = _mean(table[: len(old)])
    elif kind == "copy":
        rows[fresh] = table[index[token]]
    else:
        bare = _bare(old)
        for row in fresh:
            pieces = _spell(new[row], bare)
            rows[row] = _mean(table[pieces] if pieces else table[: len(old)])
    return rows


def _mean(rows: Tensor) -> Tensor:
    return rows.double().mean(0).to(rows.dtype)


def _strip(token: str) -> str:
    for mark in _MARKS:
        token = token.removeprefix(mark)
    return token.removesuffix("@@")


def _bare(old: list[str]) -> dict[str, int]:
    """Spelling without word marks -> row; the first token of a spelling."""
    spellings: dict[str, int] = {}
    for row, token in enumerate(old):
        spellings.setdefault(_strip(token), row)
    spellings.pop("", None)
    return spellings


def _spell(token: str, spellings: dict[str, int]) -> list[int]:
    """Rows that spell a token, longest match first; none if it cannot be spelled."""
    text, rows = _strip(token), []
    while text:
        length = next((n for n in range(len(text), 0, -1) if text[:n] in spellings), 0)
        if not length:
            return []
        rows.append(spellings[text[:length]])
        text = text[length:]
    return rows
