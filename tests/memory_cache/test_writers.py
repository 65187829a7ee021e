"""Writers that are killed, and writers at the same time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from datasets import Dataset

import fusion
from fusion.composition import compose
from fusion.memory_cache.fill import Filler, Sentences, Work, filled
from fusion.memory_cache.listing import bad_blocks, caches, prune
from fusion.memory_cache.reader import Layout, MemoryReader
from fusion.memory_cache.store import Cache

if TYPE_CHECKING:
    from fusion.recipe import Recipe

SENTENCES, WIDTH, BLOCK = 3000, 24, 6000
FORM = "fp32"

PROGRAM = """
import json, os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModel
from fusion.encoders.part import EncoderPart
from fusion.memory_cache.fill import Filler, Sentences, Work, filled
from fusion.memory_cache.reader import Layout
from fusion.memory_cache.store import Cache

root, source, form, width, block, options = sys.argv[1:]
options = json.loads(options)
class Loud(Filler):
    def __call__(self, sentences):
        states = super().__call__(sentences)
        print(len(sentences), flush=True)
        return states

model = AutoModel.from_pretrained(source, add_pooling_layer=False)
part = EncoderPart(model, layer=-1, freeze=True, dropout=False, limit=64)
filler = Loud(part, Layout(form, int(width), None), 0, torch.device("cpu"), 512)
column = Dataset.load_from_disk(f"{root}/ids")
cache = Cache(Path(root, "cache"), options["key"])
names = (cache.name,)
work = Work(Sentences(column), int(block), options["max_bytes"], names, lambda text: None)
PartialState(cpu=True)  # one rank, or what a launcher says
os.write(1, b"ready\\n")  # at once: two ranks may say it together
limit = time.monotonic() + 120  # nobody may be left to say it
while not Path(root, "go").exists() and time.monotonic() < limit:
    time.sleep(0.001)
with filled(cache, filler, work):
    pass
print("done", flush=True)
"""


def random_ids(seed: int = 4) -> list[list[int]]:
    """Different sentences of 3 to 14 ids."""
    rng = Random(seed)
    return [[2, *(rng.randrange(5, 80) for _ in range(rng.randrange(1, 13))), 3, i % 80]
            for i in range(SENTENCES)]  # fmt: skip


OTHER = Sentences(Dataset.from_dict({"ids": random_ids(seed=9)}))


class Place:
    """A folder with ids, a cache, and an encoder."""

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root, self.source = root, recipe.encoders["bert"].source
        self.part = compose(recipe).model.encoder_parts["bert"]
        self.sentences = Sentences(Dataset.from_dict({"ids": random_ids()}))
        self.sentences.column.save_to_disk(root / "ids")

    @property
    def cache(self) -> Cache:
        return Cache(self.root / "cache", {})

    def start(
        self,
        *launcher: str,
        largest_file: int = resource.RLIM_INFINITY,
        key: dict[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> subprocess.Popen[str]:
        """A writer, or several with a launcher, that wait for the file `go`."""
        home = str(Path(fusion.__file__).parents[1])
        program = self.root / "writer.py"
        program.write_text(PROGRAM, encoding="utf-8")
        options = json.dumps({"key": key or {}, "max_bytes": max_bytes})
        arguments = [str(self.root), self.source, FORM, str(WIDTH), str(BLOCK), options]
        process = subprocess.Popen(
            [sys.executable, *launcher, str(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file,) * 2),
        )
        assert process.stdout is not None
        if (said := process.stdout.readline()) != "ready\n":
            with process:
                process.kill()
            raise AssertionError(said)
        return process

    def go(self) -> None:
        (self.root / "go").touch()

    def finish(self) -> None:
        """Fill here what is missing."""
        self.fill(self.sentences)

    def fill(self, sentences: Sentences, max_bytes: int | None = None) -> list[str]:
        """Fill the cache here; what is said."""
        with self.filled(sentences, max_bytes) as said:
            return said

    @contextmanager
    def filled(self, sentences: Sentences, max_bytes: int | None = None) -> Iterator[list[str]]:
        """The cache, filled here and held; what is said."""
        said: list[str] = []
        work = Work(sentences, BLOCK, max_bytes, (self.cache.name,), said.append)
        filler = Filler(self.part, Layout(FORM, WIDTH, None), 0, torch.device("cpu"), 512)
        with filled(self.cache, filler, work):
            yield said

    def stored(self, sentences: Sentences | None = None) -> int:
        """Sentences in whole blocks; a block that is there is whole."""
        cache = self.cache
        assert bad_blocks(cache.paths()) == {}
        cache.refresh()
        assert len(cache.blocks) == len(cache.paths())
        return int(cache.locate((sentences or self.sentences).digests).found.sum())

    def check(self) -> None:
        """Every sentence is there, with the states that the encoder gives."""
        cache = self.cache
        cache.refresh()
        places, tokens = cache.locate(self.sentences.digests), self.sentences.tokens
        assert places.found.all()
        reader = MemoryReader(places, Layout(FORM, WIDTH, None), tokens)
        for length in np.unique(tokens):
            rows = np.flatnonzero(tokens == length)
            ids = torch.tensor(self.sentences.ids(rows))
            with torch.no_grad():
                expected = self.part(ids).states
            assert torch.allclose(reader.gather(rows.tolist()), expected, atol=2e-6)


@pytest.fixture
def place(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> Place:
    return Place(tmp_path, make_recipe())


def lines(process: subprocess.Popen[str]) -> Iterator[int]:
    """Sentences of each block as it is encoded, before it is written."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith("\n") and line != "done\n":
            yield int(line)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_loses_one_block_at_most_and_is_taken_up_again(
    place: Place, seed: int
) -> None:
    rng = Random(seed)
    encoded, last = 0, 0
    wanted = rng.randrange(1, 60)
    with place.start() as writer:
        place.go()
        for number, last in enumerate(lines(writer), 1):
            encoded += last
            if number == wanted:
                time.sleep(rng.random() * 0.003)
                os.kill(writer.pid, signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    stored = place.stored()
    assert encoded - last <= stored <= encoded < SENTENCES
    place.finish()
    assert place.stored() == len(place.sentences)
    place.check()


def test_two_writers_at_once_share_the_work_and_corrupt_nothing(place: Place) -> None:
    with place.start() as one, place.start() as two:
        place.go()
        encoded = [sum(lines(writer)) for writer in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    assert place.stored() == len(place.sentences)
    place.check()
    assert len(place.sentences) <= sum(encoded) < 2 * len(place.sentences)


def test_a_cache_that_is_being_filled_is_not_dropped_for_another(place: Place) -> None:
    root = place.cache.root
    with place.start() as writer:
        place.go()
        for number, _ in enumerate(lines(writer), 1):
            if number == 5:
                removed, (problem,) = prune(root, 0, None)
                assert removed == [] and "is not removed: a run is filling it" in problem
    assert writer.returncode == 0
    place.check()
    assert len(prune(root, 0, None)[0]) == 1


def test_a_cache_that_is_being_filled_is_listed_at_any_moment(place: Place) -> None:
    with place.start() as writer:
        place.go()
        assert next(lines(writer))
        counts = {len(caches(place.cache.root)) for _ in range(2000) if writer.poll() is None}
        for _ in lines(writer):
            pass
    assert writer.returncode == 0
    assert counts == {1}


def test_blocks_that_another_run_writes_do_not_go_for_another_text(place: Place) -> None:
    said: list[str] = []
    with place.start() as writer:
        place.go()
        for number, _ in enumerate(lines(writer), 1):
            if number == 20:
                said = place.fill(OTHER, max_bytes=15 * BLOCK)
    assert writer.returncode == 0
    place.check()
    assert sum("another run is filling it, so its other blocks stay" in text for text in said) == 1


def test_blocks_of_another_text_go_where_no_other_run_is(place: Place) -> None:
    place.finish()
    (whole,) = caches(place.cache.root)
    limit = whole.bytes * 11 // 10
    assert len(place.fill(OTHER, limit)) == 1
    assert place.stored(OTHER) == len(OTHER)
    assert 0 < place.stored() < len(place.sentences)
    assert caches(place.cache.root)[0].bytes <= limit


def test_a_cache_that_is_filled_is_not_dropped_before_its_blocks_are_mapped(place: Place) -> None:
    with place.filled(place.sentences):
        removed, problems = prune(place.cache.root, 0, None)
    assert removed == []
    assert problems == [f"{place.cache.directory}: is not removed: a run is filling it"]
    place.check()


@pytest.mark.slow
def test_the_ranks_of_a_run_are_one_run(place: Place) -> None:
    place.fill(OTHER)
    (whole,) = caches(place.cache.root)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with place.start(*launcher, max_bytes=whole.bytes * 11 // 10) as writers:
        place.go()
        assert writers.stdout is not None and writers.stdout.read()
    assert writers.returncode == 0
    place.check()


def test_two_writers_of_different_caches_pass_max_bytes_by_a_block_each_at_most(
    place: Place,
) -> None:
    place.finish()
    (whole,) = caches(place.cache.root)
    prune(place.cache.root, 0, None)
    limit = whole.bytes * 11 // 10
    keys = [{"name": name} for name in ("one", "two")]
    with (
        place.start(key=keys[0], max_bytes=limit) as one,
        place.start(key=keys[1], max_bytes=limit) as two,
    ):
        place.go()
        for writer in (one, two):
            for _ in lines(writer):
                pass
    assert (one.returncode, two.returncode) == (0, 0)
    found = caches(place.cache.root)
    assert len(found) == 2
    largest = max(path.stat().st_size for cache in found for path in cache.blocks)
    assert limit * 0.95 < sum(cache.bytes for cache in found) <= limit + 2 * largest


def test_a_cache_that_is_removed_while_it_is_written_is_written_to_the_end(place: Place) -> None:
    with place.start() as writer:
        place.go()
        for number, _ in enumerate(lines(writer), 1):
            if number == 20:
                shutil.rmtree(place.cache.directory, ignore_errors=True)
    assert writer.returncode == 0
    assert 0 < place.stored() < len(place.sentences)
    place.finish()
    place.check()


def test_where_there_is_no_room_the_rest_stays_missing_and_no_half_of_a_block_is_left(
    place: Place,
) -> None:
    with place.start(largest_file=BLOCK // 2) as writer:
        place.go()
        assert sum(1 for _ in lines(writer)) == 1, "it goes on after the disk is full"
    assert writer.returncode == 0
    assert [path.name for path in place.cache.directory.iterdir()] == ["cache.json"]
    place.finish()
    place.check()
