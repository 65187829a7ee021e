"""Writers that are killed, and writers at the same time."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from datasets import Dataset

import fusion
from fusion.composition import compose
from fusion.errors import FusionError
from fusion.memory_cache.fill import Filler, Sentences, Work, fill
from fusion.memory_cache.listing import bad_blocks, prune
from fusion.memory_cache.reader import Layout, MemoryReader
from fusion.memory_cache.store import Cache

if TYPE_CHECKING:
    from fusion.recipe import Recipe

SENTENCES, WIDTH, BLOCK = 3000, 24, 6000
FORM = "fp32"

PROGRAM = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from datasets import Dataset
from transformers import AutoModel
from fusion.encoders.part import EncoderPart
from fusion.memory_cache.fill import Filler, Sentences, Work, fill
from fusion.memory_cache.reader import Layout
from fusion.memory_cache.store import Cache

root, source, form, width, block = sys.argv[1:]
class Loud(Filler):
    def __call__(self, sentences):
        states = super().__call__(sentences)
        print(len(sentences), flush=True)
        return states

model = AutoModel.from_pretrained(source, add_pooling_layer=False)
part = EncoderPart(model, layer=-1, freeze=True, dropout=False, limit=64)
filler = Loud(part, Layout(form, int(width), None), 0, torch.device("cpu"), 512)
column = Dataset.load_from_disk(f"{root}/ids")
work = Work(Sentences(column), int(block), None, (), lambda text: None)
print("ready", flush=True)
while not Path(root, "go").exists():
    time.sleep(0.001)
fill(Cache(Path(root, "cache"), {}), filler, work)
print("done", flush=True)
"""


def random_ids() -> list[list[int]]:
    """Different sentences of 3 to 14 ids."""
    rng = Random(4)
    return [[2, *(rng.randrange(5, 80) for _ in range(rng.randrange(1, 13))), 3, i % 80]
            for i in range(SENTENCES)]  # fmt: skip


Start = Callable[[], subprocess.Popen[str]]


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

    def start(self, largest_file: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
        """A writer that waits for the file `go`."""
        home = str(Path(fusion.__file__).parents[1])
        arguments = [str(self.root), self.source, FORM, str(WIDTH), str(BLOCK)]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file,) * 2),
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def go(self) -> None:
        (self.root / "go").touch()

    def finish(self) -> None:
        """Fill here what is missing."""
        work = Work(self.sentences, BLOCK, None, (), lambda text: None)
        filler = Filler(self.part, Layout(FORM, WIDTH, None), 0, torch.device("cpu"), 512)
        fill(self.cache, filler, work)

    def stored(self) -> int:
        """Sentences in whole blocks; a block that is there is whole."""
        cache = self.cache
        assert bad_blocks(cache.paths()) == {}
        cache.refresh()
        assert len(cache.blocks) == len(cache.paths())
        return int(cache.locate(self.sentences.digests).found.sum())

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
    with place.start() as writer:
        place.go()
        for number, _ in enumerate(lines(writer), 1):
            if number == 5:
                with pytest.raises(FusionError, match="is not removed: a run is filling it"):
                    prune(place.cache.root, 0, None)
    assert writer.returncode == 0
    place.check()
    assert len(prune(place.cache.root, 0, None)) == 1


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
