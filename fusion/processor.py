"""Raw text in, ids for the host and every encoder out; saved and loaded with the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fusion.errors import DataError, ModelError

Overflow = Literal["error", "truncate", "windows"]


@dataclass
class EncoderText:
    """How one encoder reads text.

    Attributes:
        tokenizer: the encoder's own
        limit: tokens it reads at once, special tokens included
        prompt: put before every text, as a sentence-transformers model may ask for
        overflow: what happens to a longer sentence: `error`; `truncate`: cut to the limit, special
            tokens kept; `windows`: read in windows of the limit, each with its special tokens
    """

    tokenizer: PreTrainedTokenizerBase
    limit: int
    overflow: Overflow = "error"
    prompt: str = ""

    def encode(self, texts: list[str], name: str) -> list[list[int]]:
        """Ids per text.

        Raises:
            DataError: a text is longer than the limit and the policy is `error`, or windows of
                the limit would hold special tokens alone.
        """
        texts = [self.prompt + text for text in texts]
        if self.overflow == "truncate":
            ids: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=self.limit)[
                "input_ids"
            ]
            return ids
        ids = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        for index, row in enumerate(ids):
            if len(row) <= self.limit:
                continue
            if self.overflow == "error":
                raise DataError(
                    f"{len(row)} tokens for encoder {name}, which reads {self.limit}; set "
                    f'encoders.{name}.overflow to truncate or windows: "{texts[index][:60]}..."'
                )
            ids[index] = self._windows(texts[index], row, name)
        return ids

    def _windows(self, text: str, marked: list[int], name: str) -> list[int]:
        """Windows of exactly `limit` ids (the last one shorter), each with its special tokens.

        Args:
            marked: the ids of the whole text, special tokens around them
        """
        bare = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        starts = range(len(marked) - len(bare) + 1)
        first = next((i for i in starts if marked[i : i + len(bare)] == bare), None)
        room = self.limit - (len(marked) - len(bare))
        if first is None or room < 1:
            raise DataError(
                f"encoder {name}: its special tokens leave no room for windows of {self.limit} "
                f"tokens; set encoders.{name}.overflow to truncate"
            )
        before, after = marked[:first], marked[first + len(bare) :]
        windows: list[int] = []
        for start in range(0, len(bare), room):
            windows += [*before, *bare[start : start + room], *after]
        return windows


class FusionProcessor:
    """Encodes raw source (and target) text for the host and every encoder.

    Both read the same raw line; nothing else is ever needed of a user, at inference too.

    Args:
        max_length: positions of the host; None: no limit
        prompt: what the host reads, with `{source}` where the source text goes
        causal: the host is decoder-only: its target is the bare text with an end mark
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoders: dict[str, EncoderText] | None = None,
        *,
        max_length: int | None = None,
        prompt: str | None = None,
        causal: bool = False,
    ) -> None:
        if tokenizer.pad_token_id is None:  # a language model without padding of its own
            tokenizer.pad_token = tokenizer.eos_token
        if causal and tokenizer.eos_token_id is None:
            raise ModelError(
                "the host's tokenizer has no end mark (eos_token), so a translation could not end"
            )
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.causal = causal
        self.encoders = encoders or {}
        self.max_length = max_length

    @property
    def pads(self) -> dict[str, int]:
        """Padding id of each column that `encode_pairs` makes."""
        pads = {"input_ids": int(self.tokenizer.pad_token_id), "labels": -100}
        for name, encoder in self.encoders.items():
            pad = encoder.tokenizer.pad_token_id
            pads[f"{name}_input_ids"] = 0 if pad is None else int(pad)
        return pads

    def encode_sources(self, sources: list[str]) -> dict[str, list[list[int]]]:
        """Ids of source text by column, not padded.

        Raises:
            DataError: a text is longer than the host or an encoder reads.
        """
        columns = {"input_ids": self._host_ids(sources)}
        for text, ids in zip(sources, columns["input_ids"], strict=True):
            if self.max_length is not None and len(ids) > self.max_length:
                raise DataError(
                    f"{len(ids)} tokens, and the host has {self.max_length} positions; "
                    f'split the sentence: "{text[:60]}..."'
                )
        return columns | self._encoder_columns(sources)

    def _host_ids(self, sources: list[str]) -> list[list[int]]:
        if self.prompt is not None:
            sources = [self.prompt.replace("{source}", source) for source in sources]
        ids: list[list[int]] = self.tokenizer(sources, verbose=False)["input_ids"]
        return ids

    def _target_ids(self, targets: list[str]) -> list[list[int]]:
        ids: list[list[int]]
        if self.causal:
            bare = self.tokenizer(targets, add_special_tokens=False, verbose=False)["input_ids"]
            ids = [[*row, int(self.tokenizer.eos_token_id)] for row in bare]
        else:
            ids = self.tokenizer(text_target=targets, verbose=False)["input_ids"]
        return ids

    def _encoder_columns(self, sources: list[str]) -> dict[str, list[list[int]]]:
        return {f"{n}_input_ids": e.encode(sources, n) for n, e in self.encoders.items()}

    def encode_pairs(self, sources: list[str], targets: list[str]) -> dict[str, list[list[int]]]:
        """Ids of source and target text by column, not padded.

        Pairs longer than the host's positions are left to the filters of the training data.
        """
        columns = {
            "input_ids": self._host_ids(sources),
            "labels": self._target_ids(targets),
        }
        return columns | self._encoder_columns(sources)

    def pad(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch `[B, T]` per column, padded on the right, with the masks of what is read.

        Masks are 1 at a real token; `{encoder}_attention_mask` too, so that a memory does not
        depend on how long the other sentences of the batch are.
        """
        batch: dict[str, Tensor] = {}
        for column, pad in self.pads.items():
            if column not in rows[0]:
                continue
            batch[column], mask = padded([row[column] for row in rows], pad)
            if column.endswith("input_ids"):
                batch[column.replace("input_ids", "attention_mask")] = mask
        return batch

    def __call__(self, text: list[str], text_target: list[str] | None = None) -> dict[str, Tensor]:
        """Padded tensors of raw text, ready for `FusedModel.forward` and `generate`.

        Raises:
            DataError: no text, or another number of targets.
        """
        if not text:
            raise DataError("no text to encode")
        if text_target is not None and len(text_target) != len(text):
            raise DataError(f"{len(text)} source and {len(text_target)} target texts")
        columns = (
            self.encode_sources(text)
            if text_target is None
            else self.encode_pairs(text, text_target)
        )
        return self.pad([{k: v[i] for k, v in columns.items()} for i in range(len(text))])

    def decode(self, sequences: Tensor | list[list[int]]) -> list[str]:
        """Text of generated ids, special tokens left out."""
        options = (
            {"use_source_tokenizer": False} if "Marian" in type(self.tokenizer).__name__ else {}
        )
        texts: list[str] = self.tokenizer.batch_decode(
            sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False, **options
        )
        return [text.strip() for text in texts]

    def save_pretrained(self, directory: str | Path, host: str = "host") -> None:
        """Write the tokenizers beside the parts they belong to.

        Args:
            host: the host's folder below `directory`; "." for a model without encoders
        """
        directory = Path(directory)
        self.tokenizer.save_pretrained(directory / host)
        for name, encoder in self.encoders.items():
            encoder.tokenizer.save_pretrained(directory / "encoders" / name)
        settings = {
            "max_length": self.max_length,
            "prompt": self.prompt,
            "causal": self.causal,
            "host": host,
            "encoders": {
                name: {"limit": e.limit, "overflow": e.overflow, "prompt": e.prompt}
                for name, e in self.encoders.items()
            },
        }
        (directory / "fusion_processor.json").write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> FusionProcessor:
        """Read what `save_pretrained` wrote; a plain Hugging Face host directory works as well.

        Raises:
            ModelError: no tokenizer there, or a saved model's settings are gone.
        """
        directory = Path(directory)
        path = directory / "fusion_processor.json"
        settings: dict[str, Any] = {"host": ".", "encoders": {}}
        if path.is_file():
            try:
                settings |= json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, TypeError) as error:
                raise ModelError(f"{path}: not what fusion wrote: {error}") from None
        elif (directory / "ledger.json").is_file():
            raise ModelError(f"{path}: no such file; a saved model has its tokenizers there")
        encoders = {
            name: EncoderText(load_tokenizer(directory / "encoders" / name), **spec)
            for name, spec in settings["encoders"].items()
        }
        tokenizer = load_tokenizer(directory / settings["host"])
        return cls(
            tokenizer,
            encoders,
            max_length=settings.get("max_length"),
            prompt=settings.get("prompt"),
            causal=settings.get("causal", False),
        )


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]`, padded on the right, and their mask `[B, T]`, 1 at a real token."""
    width = max(len(ids) for ids in rows)
    ids = [[*row, *[pad] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """A directory's tokenizer, padding on the right whatever its files say.

    Raises:
        ModelError: the directory has none that transformers loads.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        why = " ".join(str(error).split())
        raise ModelError(
            f"{directory}: no tokenizer that transformers loads; name one with tokenizer: ({why})"
        ) from None
    tokenizer.padding_side = "right"
    return tokenizer
