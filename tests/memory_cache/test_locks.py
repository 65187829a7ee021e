"""Who uses a cache is asked before it, or a part of it, is dropped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fusion
from fusion.errors import FusionError
from fusion.memory_cache.listing import caches, drop, prune
from fusion.memory_cache.locks import unused, used
from fusion.memory_cache.store import Cache

if TYPE_CHECKING:
    from fusion.memory_cache.listing import Listing

    from .conftest import SetupMaker


@pytest.fixture
def three(tmp_path: Path) -> list[Listing]:
    """Caches without blocks."""
    for name in ("one", "two", "three"):
        Cache(tmp_path, {"name": name}).open()
    return caches(tmp_path)


def test_a_run_that_asked_in_vain_to_be_alone_still_uses_its_cache(three: list[Listing]) -> None:
    cache = three[0]
    with used(cache.directory) as one:
        with used(cache.directory), one.alone() as alone:
            assert not alone
        with pytest.raises(FusionError, match="is not removed: a run is filling it"):
            drop(cache)
        with one.alone() as alone:
            assert alone
    drop(cache)
    assert not cache.directory.exists()


def test_none_begins_to_use_a_cache_while_another_is_alone(three: list[Listing]) -> None:
    directory = three[0].directory

    def use() -> bool:
        with used(directory):
            return True

    with ThreadPoolExecutor(1) as pool:
        with used(directory) as one, one.alone() as alone:
            assert alone
            waiting = pool.submit(use)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert waiting.result(timeout=10)


def test_a_cache_that_is_dropped_while_a_run_waits_for_it_is_in_use_when_it_is_made_again(
    setup: SetupMaker, tmp_path: Path
) -> None:
    made, problems = setup(), []

    def say(text: str) -> None:
        if "different sentences" in text:
            problems.extend(prune(tmp_path / "cache", None, float("inf"))[1])

    made.prepare()
    directory = made.directory()
    with ThreadPoolExecutor(1) as pool:
        with unused(directory) as alone:
            assert alone
            waiting = pool.submit(made.prepare, say)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            shutil.rmtree(directory)
        prepared = waiting.result(timeout=60)
    assert problems == [f"{directory}: is not removed: a run is filling it"]
    assert prepared.reports["bert"].share == 1.0


def test_prune_goes_on_after_a_cache_that_is_not_removed(
    three: list[Listing], tmp_path: Path
) -> None:
    with used(three[0].directory):
        removed, problems = prune(tmp_path, None, float("inf"))
    assert removed == three[1:]
    assert problems == [f"{three[0].directory}: is not removed: a run is filling it"]
    assert caches(tmp_path) == three[:1]


def test_the_prune_command_says_what_went_and_ends_with_2_for_what_did_not(
    three: list[Listing], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fusion", "cache", "prune", "--dir", str(tmp_path), "--all"]
    home = str(Path(fusion.__file__).parents[1])
    with used(three[1].directory):
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": home, "COLUMNS": "300"},
            capture_output=True,
            text=True,
        )
    said = done.stdout.splitlines()
    assert said == [
        *(f"removed {one.directory}: 0 bytes" for one in (three[0], three[2])),
        f"{tmp_path}: 2 removed",
    ]
    assert done.stderr == f"fusion: {three[1].directory}: is not removed: a run is filling it\n"
    assert done.returncode == 2
