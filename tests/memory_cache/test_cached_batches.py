"""Batches made from the cache are the batches made without it, and never stale."""

from __future__ import annotations

import importlib
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fusion.data import TokenBatchSampler
from fusion.errors import FusionError, TrainingError
from fusion.memory_cache.listing import bad_blocks, caches
from fusion.memory_cache.reader import MemoryReader
from fusion.memory_cache.store import Cache, Places, read_block
from fusion.recipe import MemoryCacheSpec
from fusion.registry import ENCODERS as BUILDERS

if TYPE_CHECKING:
    from .conftest import Setup

    SetupMaker = Callable[..., Setup]

ENCODERS: list[dict[str, Any]] = [
    {},
    {"layer": 1},
    {"layer": "mix"},
    {"overflow": "windows", "max_length": 12},
    {"overflow": "truncate", "max_length": 9, "layer": "mix"},
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=str)
def test_memory_from_disk_is_the_memory_computed_on_the_fly(
    setup: SetupMaker, encoder: dict[str, Any]
) -> None:
    made = setup(encoder=encoder)
    prepared = made.prepare()
    assert prepared.reports["bert"].share == 1.0
    assert "bert_input_ids" not in prepared.train.column_names
    made.check(prepared)


@pytest.mark.parametrize("encoder", [{}, {"layer": "mix"}], ids=str)
@pytest.mark.parametrize(
    "form, error", [("fp16", 0.002), ("bf16", 0.02), ("int8", 0.04), ("q3", 1)]
)
def test_smaller_formats_differ_by_their_error_and_are_as_small_as_they_say(
    setup: SetupMaker, encoder: dict[str, Any], form: str, error: float
) -> None:
    made = setup(encoder=encoder, cache={"format": form})
    prepared = made.prepare()
    made.check(prepared, atol=error)
    with pytest.raises(AssertionError):
        made.check(prepared, atol=error / 1000)
    blocks = [read_block(path) for path in made.directory().glob("*.block")]
    layers = 3 if encoder else 1
    assert {block.token_bytes for block in blocks} == {
        layers * {"fp16": 48, "bf16": 48, "int8": 28, "q3": 12}[form]
    }


def test_an_equal_sentence_is_stored_once(setup: SetupMaker) -> None:
    made = setup()
    made.prepare()
    ids = {tuple(row) for row in made.train["bert_input_ids"]}
    assert len(ids) <= 150 < len(made.train)
    blocks = [read_block(path) for path in made.directory().glob("*.block")]
    assert len(blocks) > 3
    assert sum(len(block.digests) for block in blocks) == len(ids)
    assert sum(int(block.tokens.sum()) for block in blocks) == sum(map(len, ids))


def test_batches_are_the_same_with_and_without_a_cache(setup: SetupMaker) -> None:
    made = setup()
    prepared = made.prepare()
    with_cache, without = (
        list(TokenBatchSampler(train["lengths"], 512, seed=1))
        for train in (prepared.train, made.train)
    )
    assert with_cache == without


def test_a_batch_without_padding_has_no_mask(setup: SetupMaker) -> None:
    made = setup()
    prepared = made.prepare()
    batch = prepared.collate([prepared.train[0]])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "bert_memory"}


def test_the_second_recipe_computes_nothing(setup: SetupMaker) -> None:
    first, second = setup(), setup()
    first.prepare()
    before = {path: path.stat().st_mtime_ns for path in first.directory().glob("*.block")}
    renamed = second.recipe.model_copy(update={"name": "another", "seed": 5})
    second.recipe = renamed
    second.check(second.prepare())
    after = {path: path.stat().st_mtime_ns for path in first.directory().glob("*.block")}
    assert before == after
    assert any("the other 0 take 0 bytes" in line for line in second.said)


def test_new_sentences_are_added_to_what_is_there(setup: SetupMaker) -> None:
    made = setup()
    whole = made.train
    made.train = whole.select(range(60))
    made.prepare()
    first = set(made.directory().glob("*.block"))
    made.train = whole
    made.check(made.prepare())
    assert first < set(made.directory().glob("*.block"))


def changed_weights(made: Setup, folder: Path) -> Path:
    """A copy of the encoder in which one value of one tensor is another."""
    copy = folder / "changed"
    shutil.copytree(made.recipe.encoders["bert"].source, copy)
    tensors = load_file(copy / "model.safetensors")
    name = "embeddings.LayerNorm.bias"
    tensors[name][0] += 0.5
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    "change",
    [
        {"source": "changed"},
        {"layer": 1},
        {"layer": "mix"},
        {"max_length": 9},
        {"max_length": 9, "overflow": "windows"},
    ],
    ids=str,
)
def test_another_encoder_layer_limit_or_policy_never_reads_stale_memory(
    setup: SetupMaker, tmp_path: Path, change: dict[str, Any]
) -> None:
    first = setup()
    first.prepare()
    if "source" in change:
        change = {"source": str(changed_weights(first, tmp_path))}
    second = setup(encoder=change)
    second.check(second.prepare())
    assert len(caches(tmp_path / "cache")) == 2
    first.check(first.prepare())


def test_another_policy_alone_is_another_cache(setup: SetupMaker, tmp_path: Path) -> None:
    setup(encoder={"overflow": "truncate"}).prepare()
    setup(encoder={"overflow": "windows"}).prepare()
    assert len(caches(tmp_path / "cache")) == 2


def test_another_format_is_another_cache(setup: SetupMaker, tmp_path: Path) -> None:
    for form in ("fp32", "fp16", "bf16"):
        setup(cache={"format": form}).prepare()
    found = caches(tmp_path / "cache")
    assert {one.key["format"] for one in found} == {"fp32", "fp16", "bf16"}


@pytest.mark.parametrize("place", ["head", "digests", "states", "checksum", "cut"])
def test_a_damaged_block_is_dropped_and_computed_again(setup: SetupMaker, place: str) -> None:
    made = setup()
    made.prepare()
    path = sorted(made.directory().glob("*.block"))[1]
    raw = bytearray(path.read_bytes())
    at = {"head": 3, "digests": 40, "states": len(raw) // 2, "checksum": len(raw) - 3}
    if place == "cut":
        raw = raw[:-10]
    else:
        raw[at[place]] ^= 64
    path.write_bytes(raw)
    assert list(bad_blocks(made.directory().glob("*.block"))) == [path]

    prepared = made.prepare()
    said = [line for line in made.said if "dropped, to be computed again" in line]
    assert len(said) == 1 and path.name in said[0]
    assert prepared.reports["bert"].share == 1.0
    made.check(prepared)
    assert bad_blocks(made.directory().glob("*.block")) == {}


def test_the_least_recently_used_other_cache_goes_first(setup: SetupMaker, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for age, layer in ((100, 0), (300, 1)):
        setup(encoder={"layer": layer}).prepare()
        newest = max(caches(root), key=lambda one: one.used)
        stamp = time.time() - age
        os.utime(newest.directory / "cache.json", (stamp, stamp))
    sizes = [one.bytes for one in caches(root)]
    limit = sum(sizes) + sizes[0] // 2
    made = setup(cache={"max_bytes": limit})
    prepared = made.prepare()
    assert {one.key["layer"] for one in caches(root)} == {0, -1}
    assert prepared.reports["bert"].share == 1.0
    assert sum(one.bytes for one in caches(root)) <= limit
    assert sum("used least recently" in line for line in made.said) == 1


def with_room_for_one_text(setup: SetupMaker, root: Path) -> tuple[Setup, int]:
    """One half of the text is cached; what trains on the other, and its max_bytes."""
    made = setup()
    whole = made.train
    made.train = whole.select(range(75))
    made.prepare()
    limit = int(caches(root)[0].bytes * 1.2)
    made = setup(cache={"max_bytes": limit})
    made.train = whole.select(range(75, 150))
    return made, limit


def test_blocks_of_other_text_go_before_this_text_is_left_out(
    setup: SetupMaker, tmp_path: Path
) -> None:
    made, limit = with_room_for_one_text(setup, tmp_path / "cache")
    assert made.prepare().reports["bert"].share > 0.9
    assert caches(tmp_path / "cache")[0].bytes <= limit


def test_a_block_that_another_run_removed_first_is_no_error(
    setup: SetupMaker, tmp_path: Path
) -> None:
    made, limit = with_room_for_one_text(setup, tmp_path / "cache")

    def say(text: str) -> None:
        if "different sentences" in text:  # before there is made room for them
            for path in sorted(made.directory().glob("*.block"))[::2]:
                path.unlink()

    prepared = made.prepare(say)
    assert prepared.reports["bert"].share > 0.9
    assert caches(tmp_path / "cache")[0].bytes <= limit


def test_the_room_on_a_full_disk_is_what_dropped_caches_leave(
    setup: SetupMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    setup(encoder={"layer": 1}).prepare()
    (old,) = caches(root)

    def disk_usage(path: Path) -> SimpleNamespace:
        """Of a disk that one cache fills."""
        return SimpleNamespace(free=old.bytes * 1.1 - sum(one.bytes for one in caches(root)))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    made = setup(cache={"max_bytes": old.bytes * 11 // 10})
    assert made.prepare().reports["bert"].share == 1.0
    assert not old.directory.exists()


def test_what_fits_is_cached_and_the_rest_is_computed_on_the_fly(
    setup: SetupMaker, tmp_path: Path
) -> None:
    setup().prepare()
    size = caches(tmp_path / "cache")[0].bytes
    shutil.rmtree(tmp_path / "cache")
    made = setup(cache={"max_bytes": size // 2})
    prepared = made.prepare()
    share = prepared.reports["bert"].share
    assert 0.35 < share < 0.5
    assert sum(one.bytes for one in caches(tmp_path / "cache")) <= size // 2
    assert f"{share:.1%} of the encoder's tokens are read from" in made.said[-1]
    assert f"the other {1 - share:.1%} are computed on the fly" in made.said[-1]
    made.check(prepared)
    cached = np.flatnonzero(made.reader(prepared).cached)
    other = np.flatnonzero(~made.reader(prepared).cached)
    mixed = prepared.collate([prepared.train[int(i)] for i in (cached[0], other[0])])
    assert mixed["bert_cached"].tolist() == [True, False]
    alone = prepared.collate([prepared.train[int(other[0])]])
    assert "bert_memory" not in alone and "bert_input_ids" in alone


def test_a_mix_of_cached_and_other_sentences_of_all_layers_is_put_together(
    setup: SetupMaker,
) -> None:
    made = setup(encoder={"layer": "mix"}, cache={"max_bytes": 250_000})
    prepared = made.prepare()
    assert 0.1 < prepared.reports["bert"].share < 0.9
    made.check(prepared)


@pytest.mark.parametrize(
    "encoder, reason",
    [
        ({"freeze": False}, "the encoder is trained (freeze: false)"),
        ({"encoder_dropout": True}, "the encoder's dropout is on (encoder_dropout: true)"),
    ],
)
def test_the_cache_is_off_and_says_why_where_memory_changes(
    setup: SetupMaker, tmp_path: Path, encoder: dict[str, Any], reason: str
) -> None:
    made = setup(encoder=encoder)
    prepared = made.prepare()
    assert made.said == [
        line for line in made.said if f"memory cache of bert: off: {reason}" in line
    ]
    assert made.said
    assert prepared.train is made.train
    assert reason in str(prepared.reports["bert"].off)
    assert not (tmp_path / "cache").exists()


def test_a_cache_knows_the_code_that_its_memory_was_computed_by(setup: SetupMaker) -> None:
    made = setup()
    made.prepare()
    (cache,) = caches(made.directory().parent)
    part = made.composition.model.encoder_parts["bert"]
    code = Path(str(sys.modules[type(part).__module__].__file__)).read_bytes()
    assert cache.key["code"][type(part).__module__] == sha256(code).hexdigest()
    assert cache.key["libraries"] == {"transformers": transformers.__version__}


def test_no_section_means_no_cache(setup: SetupMaker) -> None:
    made = setup()
    made.recipe = made.recipe.model_copy(update={"memory_cache": None})
    prepared = made.prepare()
    assert prepared.train is made.train and prepared.reports == {} and made.said == []


def test_a_size_is_said_before_anything_is_computed(setup: SetupMaker) -> None:
    made = setup()
    made.prepare()
    tokens = sum(len(ids) for ids in {tuple(row) for row in made.train["bert_input_ids"]})
    first = made.said[0]
    assert "different sentences, 0 are in" in first
    said = float(first.rsplit("take ", 1)[1].split()[0])
    actual = sum(path.stat().st_size for path in made.directory().glob("*.block")) / 1000
    assert actual <= said * 1.001 and said < actual * 1.1
    assert actual * 1000 > tokens * 24 * 4


def test_a_reader_goes_on_after_its_cache_is_removed(setup: SetupMaker) -> None:
    made = setup()
    prepared = made.prepare()
    shutil.rmtree(made.directory())
    made.check(prepared)


def test_rows_of_a_block_that_is_gone_before_it_is_mapped_are_not_cached(
    setup: SetupMaker,
) -> None:
    made = setup()
    reader = made.reader(made.prepare())
    places = Places(reader.paths, reader.block, reader.start)
    gone = reader.paths[1]
    gone.unlink()
    found = MemoryReader(places, reader.layout, reader.tokens)
    assert found.cached.tolist() == [block != 1 for block in reader.block]
    rows = [int(row) for row in np.flatnonzero(found.cached)]
    assert torch.equal(found.gather(rows), reader.gather(rows))
    gone.with_name("elsewhere").write_bytes(b"")
    with pytest.raises(FusionError, match=f"{gone} was removed; run the same command again"):
        pickle.loads(pickle.dumps(reader))


@contextmanager
def no_root() -> Iterator[None]:
    """As a user who may not read and write anywhere."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_cache_that_may_not_be_read_neither_counts_nor_ends_a_run_of_another(
    setup: SetupMaker, mode: int
) -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        hidden = Cache(Path(folder), {"of": "another user"})
        hidden.open()
        hidden.directory.chmod(mode)
        made = setup(cache={"dir": folder, "max_bytes": "1MB"})
        with no_root():
            prepared = made.prepare()
            assert hidden.name not in {cache.name for cache in caches(Path(folder))}
            with pytest.raises(FusionError, match=f"{hidden.directory}: cannot be written: "):
                hidden.open()
        assert prepared.reports["bert"].share == 1
        hidden.directory.chmod(0o755)
        assert hidden.name in {cache.name for cache in caches(Path(folder))}


def test_a_cache_that_may_only_be_read_is_read_and_the_rest_is_computed(
    setup: SetupMaker,
) -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = setup(cache={"dir": folder})
        whole = made.train
        made.train = whole.select(range(60))
        made.prepare()
        made.train = whole
        bad = sorted(made.directory().glob("*.block"))[0]
        bad.write_bytes(bad.read_bytes()[:-1] + b"?")
        made.directory().chmod(0o555)
        with no_root():
            prepared = made.prepare()
        made.directory().chmod(0o755)
        assert 0 < prepared.reports["bert"].share < 1
        assert bad.exists() and bad not in made.reader(prepared).paths
        assert any("may only be read; what it lacks is computed" in line for line in made.said)
        made.check(prepared)


OWN = """
from transformers import BertModel
from fusion import register_encoder

class Own(BertModel):
    pass

@register_encoder("own")
def own(config):
    return Own(config, add_pooling_layer=False)
"""


def test_other_code_of_an_encoder_of_ones_own_is_another_cache(
    setup: SetupMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "an_encoder_of_my_own.py"
    path.write_text(OWN, encoding="utf-8")
    importlib.import_module(path.stem)
    assert "own" in BUILDERS.names()
    made = setup(encoder={"builder": "own"})
    made.prepare()
    first = made.directory()
    made.check(made.prepare())
    assert made.directory() == first
    path.write_text(OWN + "# changed", encoding="utf-8")
    made.prepare()
    assert len(caches(tmp_path / "cache")) == 2
    path.unlink()
    reason = made.prepare().reports["bert"].off
    assert reason is not None and reason.startswith("the code of an_encoder_of_my_own.Own is in no")


HOOKED = """
from fusion import register_encoder
from fusion.encoders.auto import build_auto_encoder

@register_encoder("hooked")
def hooked(config):
    model = build_auto_encoder(config)
    model.embeddings.register_forward_hook(lambda module, given, states: FACTOR * states)
    return model
"""


def test_other_code_of_a_builder_of_ones_own_is_another_cache(
    setup: SetupMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = setup()
    auto.prepare()
    path = tmp_path / "a_builder_of_my_own.py"
    monkeypatch.syspath_prepend(tmp_path)
    for factor, found in ((2, 2), (3, 3)):
        path.write_text(f"FACTOR = {factor}\n{HOOKED}", encoding="utf-8")
        importlib.invalidate_caches()
        sys.modules.pop(path.stem, None)
        importlib.import_module(path.stem)
        made = setup(encoder={"builder": "hooked"})
        made.check(made.prepare())
        made.check(made.prepare())
        assert len(caches(tmp_path / "cache")) == found
    path.unlink()
    reason = made.prepare().reports["bert"].off
    assert reason is not None and reason.startswith("the code of a_builder_of_my_own.hooked is in")
    auto.check(auto.prepare())


def test_blocks_are_larger_where_there_would_be_too_many_to_map(
    setup: SetupMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.memory_cache.prepare.MOST_BLOCKS", 3)
    made = setup(cache={"block_bytes": 1024})
    reader = made.reader(made.prepare())
    assert reader.cached.all() and len(reader.paths) <= 4


def test_a_reader_can_be_sent_to_a_worker(setup: SetupMaker) -> None:
    made = setup()
    prepared = made.prepare()
    prepared.collate = pickle.loads(pickle.dumps(prepared.collate))
    made.check(prepared)


def test_an_encoder_that_gives_no_numbers_is_an_error_not_a_cache(
    setup: SetupMaker, tmp_path: Path
) -> None:
    made = setup()
    encoder = made.composition.model.encoder_parts["bert"].model
    with torch.no_grad():
        encoder.embeddings.LayerNorm.bias[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        made.prepare()
    assert caches(tmp_path / "cache")[0].blocks == ()


def test_training_reads_memory_in_place_of_running_the_encoder(setup: SetupMaker) -> None:
    made = setup()
    prepared = made.prepare()
    rows = [prepared.train[i] for i in range(8)]
    model = made.composition.model
    expected = model(**made.composition.processor.pad([made.train[i] for i in range(8)]))
    del model.encoders["bert"].model  # nothing is left to run
    found = model(**prepared.collate(rows))
    assert torch.allclose(found.loss, expected.loss, atol=1e-6)


def test_ids_or_memory_have_to_be_given(setup: SetupMaker) -> None:
    made = setup()
    prepared = made.prepare()
    batch = prepared.collate([prepared.train[0]])
    del batch["bert_memory"]
    with pytest.raises(FusionError, match="bert_input_ids is missing"):
        made.composition.model(**batch)


def test_a_recipe_is_the_same_with_an_fp32_cache_wherever_it_lies(setup: SetupMaker) -> None:
    recipe = setup().recipe

    def digest(**cache: Any) -> str:
        spec = MemoryCacheSpec.model_validate(cache)
        return recipe.model_copy(update={"memory_cache": spec}).digest()

    off = recipe.model_copy(update={"memory_cache": None}).digest()
    assert off == digest() == digest(dir="/elsewhere", max_bytes="20GB", block_bytes=10_000)
    assert len({off, digest(format="fp16"), digest(format="q3")}) == 3
    assert digest(format="q3") == digest(format="q3", dir="/elsewhere")
