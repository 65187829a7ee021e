"""fairseq's Transformers: a file of its own, one that others trained, and files by its layout."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.fairseq_layout import LAYOUTS, SHAPE, exact_table, options, save, state, write
from checkpoints.foreign_models import batch, checkpoints, filled, host_of, logits, random_weights
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, MarianMTModel

from fusion.backwards import backwards
from fusion.checkpoints.fairseq import describe_fairseq, open_fairseq
from fusion.checkpoints.fairseq_files import read_dictionary, write_fairseq
from fusion.checkpoints.foreign import load
from fusion.errors import ModelError, ShapeError, SourceError
from fusion.hosts.transformer_config import to_marian

# --- fairseq-written-tiny -------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_a_file_that_fairseq_wrote_are_those_of_its_model(
    dtype: str, tolerance: float, side: str
) -> None:
    folder = checkpoints("fairseq-written-tiny")
    host = host_of(
        describe_fairseq(folder / "checkpoint.pt"), open_fairseq(folder / "checkpoint.pt")
    )
    io = torch.load(folder / "io.pt", weights_only=True)
    given = io[f"src_tokens_{side}"], io["prev_output_tokens"]
    mine = logits(host.to(getattr(torch, dtype)), *given, pad=1)
    assert (mine - io[f"logits_{side}_{dtype}"]).abs().max() <= tolerance
    encoded = host.get_encoder()(given[0], (given[0] != 1).long()).last_hidden_state
    real = given[0] != 1
    theirs = io[f"encoder_out_{side}_{dtype}"].transpose(0, 1)
    assert (encoded - theirs)[real].abs().max() <= tolerance


def test_positions_are_bit_for_bit_those_of_fairseq() -> None:
    folder = checkpoints("fairseq-written-tiny")
    host = host_of(
        describe_fairseq(folder / "checkpoint.pt"), open_fairseq(folder / "checkpoint.pt")
    )
    table = torch.load(folder / "io.pt", weights_only=True)["position_table"]
    assert torch.equal(host.model.encoder.embed_positions.weight[: len(table)], table)


def test_a_marian_export_gives_the_same_logits_without_padding_on_the_left(
    tmp_path: Path,
) -> None:
    folder = checkpoints("fairseq-written-tiny")
    host = host_of(
        describe_fairseq(folder / "checkpoint.pt"), open_fairseq(folder / "checkpoint.pt")
    )
    config, tensors = to_marian(host)
    config.save_pretrained(tmp_path)
    separate = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(separate, tmp_path / "model.safetensors", {"format": "pt"})
    plain = MarianMTModel.from_pretrained(tmp_path).eval()
    io = torch.load(folder / "io.pt", weights_only=True)
    given = io["src_tokens_right"], io["prev_output_tokens"]
    real = given[1] != 1
    difference = logits(plain, *given, pad=1) - io["logits_right_float32"]
    assert difference[real].abs().max() <= 1e-5


# --- fairseq-sym-math -----------------------------------------------------------------------------


def indexed(prefix: Path) -> list[list[int]]:
    """Sentences of a memory-mapped IndexedDataset (fairseq/data/indexed_dataset.py)."""
    header = prefix.with_name(f"{prefix.name}.idx").read_bytes()
    assert header[:9] == b"MMIDIDX\x00\x00"
    code, count = struct.unpack("<BQ", header[17:26])
    dtype = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}[code]
    sizes = np.frombuffer(header, np.int32, count, offset=26)
    tokens = np.fromfile(prefix.with_name(f"{prefix.name}.bin"), dtype).astype(int)
    ends = np.cumsum(sizes)
    return [tokens[end - size : end].tolist() for size, end in zip(sizes, ends, strict=True)]


def padded(rows: list[list[int]], left: bool) -> Tensor:
    longest = max(map(len, rows))
    fill = [[1] * (longest - len(row)) for row in rows]
    return torch.tensor(
        [(f + r) if left else (r + f) for f, r in zip(fill, rows, strict=True)], dtype=torch.long
    )


def pairs() -> tuple[Any, list[tuple[list[int], list[int]]]]:
    folder = checkpoints("fairseq-sym-math")
    path = folder / "checkpoint_best.pt"
    described = describe_fairseq(path)
    prefix = folder / "data-bin" / "valid.sym-math.sym"
    both = zip(indexed(prefix), indexed(prefix.with_name("valid.sym-math.math")), strict=True)
    return host_of(described, open_fairseq(path)), list(both)


def test_a_trained_file_has_the_loss_on_its_validation_set_that_fairseq_recorded() -> None:
    host, both = pairs()
    both.sort(key=lambda pair: len(pair[0]))
    lost, right, count = 0.0, 0, 0
    for start in range(0, len(both), 128):
        rows = both[start : start + 128]
        source = padded([s for s, _ in rows], left=True)
        target = padded([t for _, t in rows], left=False)
        shifted = torch.cat([torch.full_like(target[:, :1], 2), target[:, :-1]], dim=1)
        scores = logits(host, source, shifted, pad=1)
        real = target != 1
        lost += float(F.cross_entropy(scores[real], target[real], reduction="sum"))
        right += int((scores.argmax(-1) == target)[real].sum())
        count += int(real.sum())
    recorded = load(checkpoints("fairseq-sym-math") / "checkpoint_best.pt")["extra_state"]
    bits = lost / count / math.log(2)
    print(
        f"{len(both)} pairs, {count} tokens: {bits:.4f} bits a token "
        f"(fairseq: {recorded['val_loss']}), {right / count:.1%} of tokens right"
    )
    assert bits == pytest.approx(recorded["val_loss"], abs=6e-4)
    assert right / count > 0.669


# --- Files by the documented layout ---------------------------------------------------------------


@pytest.mark.parametrize("left", [True, False], ids=["left-padded", "right-padded"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_computes_what_plain_arithmetic_does(
    tmp_path: Path, layout: dict[str, Any], left: bool
) -> None:
    path, model = write(tmp_path / "model.pt", layout)
    host = host_of(describe_fairseq(path), open_fairseq(path)).double()
    if not layout.get("learned"):
        for stack in (host.model.encoder, host.model.decoder):
            table = stack.embed_positions.weight
            table.copy_(exact_table(len(table)))
    source, target = batch(SHAPE, 1, 4, left)
    mine, theirs = logits(host, source, target, pad=1), model(source, target)
    assert (mine - theirs)[target != 1].abs().max() <= 1e-10


@pytest.mark.parametrize("name", ["split", "learned positions", "all shared", "pre-norm"])
def test_decoding_step_by_step_with_a_cache_equals_the_full_pass(tmp_path: Path, name: str) -> None:
    path, _ = write(tmp_path / "model.pt", LAYOUTS[name])
    host = host_of(describe_fairseq(path), open_fairseq(path))
    source, _ = batch(SHAPE, 1, 4, left=True)
    mask = (source != 1).long()
    made = host.generate(
        input_ids=source,
        attention_mask=mask,
        num_beams=1,
        do_sample=False,
        max_new_tokens=8,
        output_logits=True,
        return_dict_in_generate=True,
    )
    steps = torch.stack(made.logits, dim=1)
    full = logits(host, source, made.sequences[:, :-1], pad=1)
    open_rows = (made.sequences[:, 1:] == 2).long().cumsum(1) <= 1
    assert (steps - full)[open_rows & (made.sequences[:, 1:] != 1)].abs().max() <= 1e-5


def test_a_saved_host_comes_back_through_transformers_bit_for_bit(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.pt", LAYOUTS["learned positions"])
    host = host_of(describe_fairseq(path), open_fairseq(path))
    host.save_pretrained(tmp_path / "saved")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").eval()
    source, target = batch(SHAPE, 1, 4, left=True)
    assert torch.equal(logits(again, source, target, pad=1), logits(host, source, target, pad=1))


def test_a_model_saved_on_meta_and_loaded_computes_its_positions(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.pt", LAYOUTS["split"])
    host = host_of(describe_fairseq(path), open_fairseq(path))
    tensors = {k: v for k, v in host.state_dict().items() if "embed_positions" not in k}
    host.save_pretrained(tmp_path / "saved", state_dict=tensors)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        assert torch.equal(again.state_dict()[name], host.state_dict()[name])


# --- Back to fairseq ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rules_run_backwards_write_the_file_again_bit_for_bit(
    tmp_path: Path, layout: dict[str, Any]
) -> None:
    path, _ = write(tmp_path / "model.pt", layout)
    check_round_trip(path, tmp_path / "again.pt")


@pytest.mark.parametrize(
    "name", ["fairseq-written-tiny/checkpoint.pt", "fairseq-sym-math/checkpoint_best.pt"]
)
def test_real_files_are_written_again_bit_for_bit(tmp_path: Path, name: str) -> None:
    folder, file = name.split("/")
    check_round_trip(checkpoints(folder) / file, tmp_path / "again.pt")


def check_round_trip(path: Path, again: Path) -> None:
    described = describe_fairseq(path)
    host, ledger = filled(described, open_fairseq(path))
    tensors = backwards(ledger, host.state_dict())
    write_fairseq(tensors, described.arguments, again, described.copies)
    before, after = load(path)["model"], load(again)["model"]
    assert set(after) == set(before)
    for name, tensor in before.items():
        if not name.endswith("_float_tensor"):  # uninitialised memory
            assert torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype, name
    told = describe_fairseq(again)
    assert told.config == described.config and told.rules == described.rules
    assert told.arguments == described.arguments


# --- What cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"adaptive_softmax_cutoff": "100,200"}, "adaptive_softmax_cutoff: '100,200'"),
        ({"cross_self_attention": True}, "cross_self_attention: True"),
        ({"activation_fn": "glu"}, "activation_fn: 'glu'"),
    ],
)
def test_an_option_that_the_host_has_no_counterpart_of_is_named(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    tensors = state(random_weights(SHAPE), output="decoder.embed_out")
    path = save(tmp_path / "model.pt", tensors, options(**changed))
    with pytest.raises(SourceError, match=f"model.pt: not supported: {named}"):
        describe_fairseq(path)


def test_embeddings_that_are_said_to_be_shared_but_differ_are_an_error(tmp_path: Path) -> None:
    weights = random_weights(SHAPE)
    tensors = state(weights, output="decoder.output_projection.weight")
    path = save(tmp_path / "model.pt", tensors, options(share_decoder_input_output_embed=True))
    with pytest.raises(SourceError, match=r"output_projection\.weight differs from decoder"):
        describe_fairseq(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "no fairseq checkpoint: no model"),
        ({"model": {"encoder.embed_tokens.weight": torch.zeros(4, 8)}}, "neither args nor cfg"),
    ],
)
def test_a_file_of_something_else_is_one_clear_error(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(SourceError, match=message):
        describe_fairseq(tmp_path / "other.pt")


def test_dictionaries_start_with_four_special_tokens_and_must_fit_the_embeddings(
    tmp_path: Path,
) -> None:
    path, _ = write(tmp_path / "model.pt", LAYOUTS["split"])
    assert describe_fairseq(path).source_vocabulary is None
    words = [f"w{i} {9 - i % 9}" for i in range(SHAPE.source_words - 4)]
    (tmp_path / "dict.de.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    described = describe_fairseq(path)
    assert described.source_vocabulary == read_dictionary(tmp_path / "dict.de.txt")
    assert described.source_vocabulary[:5] == ["<s>", "<pad>", "</s>", "<unk>", "w0"]
    assert described.notes == ("no dict.LANG.txt of the target side was found",)
    (tmp_path / "dict.de.txt").write_text("\n".join(words[1:]) + "\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"dict\.de\.txt: 23 tokens for 24 rows"):
        describe_fairseq(path)
    (tmp_path / "dict.de.txt").write_text("\n".join([*words, words[0]]) + "\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"dict\.de\.txt:21: 'w0' is there twice"):
        describe_fairseq(path)


def test_what_marian_cannot_do_is_named_on_export(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.pt", LAYOUTS["pre-norm"])
    with pytest.raises(ModelError, match="no encoder_normalize_before: True"):
        to_marian(host_of(describe_fairseq(path), open_fairseq(path)))


def test_more_tokens_than_positions_are_an_error(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model.pt", LAYOUTS["split"])
    host = host_of(describe_fairseq(path), open_fairseq(path))
    long = torch.full((1, 41), 5)
    with pytest.raises(ShapeError, match="41 tokens; the model has 40 positions"):
        logits(host, long, long, pad=1)
