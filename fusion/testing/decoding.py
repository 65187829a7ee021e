"""Checks of decoding: step by step, with a cache and with beams, as in one pass over the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fusion.model import FusedModel
from fusion.testing.bench import TARGETS, TEXTS, Batch, Bench
from fusion.testing.report import Failed, Skipped, apart
from fusion.testing.tiny import PAD

# a host that writes padding itself (no trained one does) masks it only where not cached
USUAL: dict[str, Any] = {"suppress_tokens": [PAD], "length_penalty": 0.0}
FULL: dict[str, Any] = {
    **USUAL,
    **{"max_new_tokens": 5, "min_new_tokens": 5},  # no row ends before the others
    "return_dict_in_generate": True,
}
BEAMS = 3  # as many as sentences, so that no row is the right one by chance
CACHES = (
    "In decoding x has one position per step and k adjacent rows per sentence; keep in "
    "`memory.projected` only what depends on the memory alone, under a key of the module's own "
    "(see fusion.glue.attention.MemoryAttention)"
)


def generate(bench: Bench) -> None:
    """With a cache and without, greedily and with four beams, the translations are the same."""
    model = bench.opened.model
    for beams in (1, 4):
        settings = USUAL | {"num_beams": beams, "max_new_tokens": 6, "min_new_tokens": 4}
        cached = model.generate(**bench.source, **settings, use_cache=True)
        whole = model.generate(**bench.source, **settings, use_cache=False)
        if not torch.equal(cached, whole):
            raise Failed(f"with a cache other translations than without ({beams} beams)", CACHES)


def steps(bench: Bench) -> None:
    """Step by step a translation has the logits of one pass; so have other sentences after it."""
    model = bench.opened.model
    turned = {name: tensor.roll(1, dims=0) for name, tensor in bench.source.items()}
    for source in (bench.source, turned):
        found = model.generate(**source, **FULL, output_logits=True)
        logits = torch.stack(found.logits, dim=1)
        whole, _ = _one_pass(bench, source, found.sequences)
        if _close(logits, whole):
            continue
        after = " after other sentences of the same shape" if source is turned else ""
        raise Failed(
            f"step by step{after}, logits differ by {apart(logits, whole)} from those of one pass "
            "over the same translation",
            "Keep nothing of a sentence on the module" if after else CACHES,
        )


def reuse(bench: Bench) -> None:
    """A memory that one translation has read gives another one the logits of a fresh memory."""
    model = bench.opened.model
    if not any(one.encoders for one in model.placement.placed):
        raise Skipped("it reads no memory")
    with torch.no_grad():
        ids = model.prepare_decoder_input_ids_from_labels(bench.batch["labels"])
        fresh = model(**bench.source, decoder_input_ids=ids).logits
        with _same_memories(model, bench.source):
            model(**bench.source, decoder_input_ids=ids[:, -1:])
            found = model(**bench.source, decoder_input_ids=ids).logits
    if not _close(found, fresh):
        raise Failed(
            f"once another translation has read the memory, logits differ by {apart(found, fresh)}",
            "What is kept in `memory.projected` depends on x: keep only what depends on the "
            "memory alone",
        )


@contextmanager
def _same_memories(model: FusedModel, source: Batch) -> Iterator[None]:
    """Within it, every pass reads one and the same reusable memories, as the steps of decoding."""
    memories = model.memories(model.split_inputs(source)[0], source.get("attention_mask"))
    for memory in memories.values():
        memory.reusable = True
    model.__dict__["memories"] = lambda *_: memories
    try:
        yield
    finally:
        del model.__dict__["memories"]


def beams(bench: Bench) -> None:
    """With beams, every translation scores as in one pass over it, and as for the sentence alone.

    All beams are looked at: were rows taken for another sentence's, the first ones may be right.
    """
    model = bench.opened.model
    settings = FULL | {"num_beams": BEAMS, "num_return_sequences": BEAMS, "output_scores": True}
    found = model.generate(**bench.source, **settings)
    source = {n: t.repeat_interleave(BEAMS, dim=0) for n, t in bench.source.items()}
    logits, tokens = _one_pass(bench, source, found.sequences)
    whole = logits.log_softmax(dim=-1).gather(2, tokens[..., None]).sum(dim=(1, 2))
    remedy = (
        "Rows are sentences with their k beams adjacent: `repeat_interleave(k, dim=0)`, not "
        "`repeat`, or x as [B, k * T, D] (see fusion.glue.attention.MemoryAttention)"
    )
    scores = found.sequences_scores
    if not _close(scores, whole, 1e-3):
        raise Failed(
            f"with {BEAMS} beams, scores differ by {apart(scores, whole)} from those of one pass "
            "over the same translations",
            remedy,
        )
    for row, pair in enumerate(zip(TEXTS, TARGETS, strict=True)):
        single = bench.opened.processor(*([text] for text in pair))
        single.pop("labels")
        alone = model.generate(**single, **settings).sequences_scores
        mine = scores[row * BEAMS : (row + 1) * BEAMS]
        if not _close(mine, alone, 1e-3):
            raise Failed(
                f"with {BEAMS} beams, scores of a sentence differ by {apart(mine, alone)} from "
                "those of the sentence alone",
                remedy,
            )


def _one_pass(bench: Bench, source: Batch, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[B, U, V]` of one pass over what was generated, and its tokens `[B, U]`."""
    causal = bench.family.causal
    with torch.no_grad():
        given = sequences if causal else sequences[:, :-1]
        logits = bench.opened.model(**source, decoder_input_ids=given, use_cache=False).logits
    return logits.float(), sequences if causal else sequences[:, 1:]


def _close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    same = found.shape == expected.shape
    return same and torch.allclose(found, expected, atol=tolerance, rtol=1e-4)
