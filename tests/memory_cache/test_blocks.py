"""Blocks on disk: whole or not there, checked, found by content."""

from __future__ import annotations

import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fusion.errors import FusionError
from fusion.memory_cache.listing import bad_blocks, caches, prune, shown_bytes
from fusion.memory_cache.store import (
    DIGEST_TYPE,
    BadBlock,
    Cache,
    check_block,
    default_directory,
    digest_of,
    read_block,
)


def written(root: Path, sentences: list[list[int]], name: str = "one") -> Cache:
    """A cache with one block; a token's 6 bytes are its id."""
    cache = Cache(root, {"name": name}, {"source": name})
    cache.open()
    digests = np.array([digest_of(ids) for ids in sentences], DIGEST_TYPE)
    tokens = np.array([len(ids) for ids in sentences], np.uint32)
    states = b"".join(bytes([token % 256] * 6) for ids in sentences for token in ids)
    cache.write(digests, tokens, states)
    cache.refresh()
    return cache


SENTENCES = [[7, 8, 9], [7], [9, 8, 7, 6]]


def test_a_sentence_is_found_by_its_ids_and_no_other(tmp_path: Path) -> None:
    cache = written(tmp_path, SENTENCES)
    asked = [[9, 8, 7, 6], [9, 8, 7], [7], [7, 8, 9], [70, 8, 9], [], [7, 0]]
    places = cache.locate(np.array([digest_of(ids) for ids in asked], DIGEST_TYPE))
    assert places.found.tolist() == [True, False, True, True, False, False, False]
    raw = places.paths[0].read_bytes()
    for ids, found, start in zip(asked, places.found, places.start, strict=True):
        if found:
            expected = b"".join(bytes([token] * 6) for token in ids)
            assert raw[start : start + len(expected)] == expected


def test_a_digest_that_ends_in_zero_bytes_is_found(tmp_path: Path) -> None:
    zeros = next([n] for n in range(2**17) if digest_of([n])[-2:] == b"\0\0")
    cache = written(tmp_path, [[1], zeros, [2]])
    assert cache.locate(np.array([digest_of(zeros)], DIGEST_TYPE)).found.all()
    assert not cache.locate(np.array([digest_of([3])], DIGEST_TYPE)).found.any()


def test_any_flipped_byte_of_a_block_is_found(tmp_path: Path) -> None:
    path = written(tmp_path, SENTENCES).paths()[0]
    check_block(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(BadBlock):
            check_block(path)


def test_a_block_cut_anywhere_is_found_without_reading_its_states(tmp_path: Path) -> None:
    path = written(tmp_path, SENTENCES).paths()[0]
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadBlock):
            read_block(path)


def test_another_key_is_another_cache(tmp_path: Path) -> None:
    one, two = written(tmp_path, SENTENCES), Cache(tmp_path, {"name": "two"})
    two.open()
    assert not two.locate(np.array([digest_of([7])], DIGEST_TYPE)).found.any()
    assert one.directory != two.directory


def test_only_abandoned_unfinished_files_are_removed(tmp_path: Path) -> None:
    cache = written(tmp_path, SENTENCES)
    old, new = cache.directory / ".a.block.host.1.tmp", cache.directory / ".b.block.host.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.open()
    assert not old.exists() and new.exists()
    assert len(cache.blocks) == 1


def test_prune_removes_the_least_recently_used_until_the_rest_fits(tmp_path: Path) -> None:
    names = ["b", "c", "a"]
    for age, name in zip((300, 200, 100), names, strict=True):
        directory = written(tmp_path, SENTENCES, name).directory
        os.utime(directory / "cache.json", (time.time() - age, time.time() - age))
    (tmp_path / "notes.txt").write_text("not a cache", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    assert [one.about["source"] for one in caches(tmp_path)] == names
    size = caches(tmp_path)[0].bytes

    def pruned(max_bytes: int | None, since: float | None = None) -> list[str]:
        removed, problems = prune(tmp_path, max_bytes, since)
        assert problems == []
        return [one.about["source"] for one in removed]

    assert pruned(2 * size) == ["b"]
    assert pruned(2 * size) == []
    assert pruned(None, time.time() - 150) == ["c"]
    assert pruned(0) == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "notes.txt"]


def test_a_folder_that_another_program_made_is_no_cache_and_stays(tmp_path: Path) -> None:
    app = tmp_path / "my-app"
    like_a_cache = written(tmp_path, SENTENCES).directory
    for folder in (app, like_a_cache):
        (folder / "src").mkdir(parents=True)
        (folder / "cache.json").write_text('{"v": 1}', encoding="utf-8")
        (folder / "src" / "thesis.txt").write_text("of years", encoding="utf-8")
    (written(tmp_path, SENTENCES, "two").directory / ".thesis.tmp").mkdir()
    assert caches(tmp_path) == []
    assert prune(tmp_path, 0, float("inf")) == ([], [])
    assert (app / "src" / "thesis.txt").is_file() and (like_a_cache / "src").is_dir()


@pytest.mark.parametrize("damage", ["[", "", '{"about": {}, "key": {}}', None])
def test_a_damaged_description_is_listed_with_its_last_use_and_mended_when_it_is_used(
    tmp_path: Path, damage: str | None
) -> None:
    cache = written(tmp_path, SENTENCES, "damaged")
    old = written(tmp_path, SENTENCES, "old").directory / "cache.json"
    os.utime(old, (time.time() - 100, time.time() - 100))
    path = cache.directory / "cache.json"
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage, encoding="utf-8")
    assert [one.name for one in caches(tmp_path)] == [old.parent.name, cache.name]
    assert bad_blocks(caches(tmp_path)[1].blocks) == {}
    cache.open()
    assert caches(tmp_path)[1].about == {"source": "damaged"}
    path.write_text("[", encoding="utf-8")
    assert len(prune(tmp_path, 0, None)[0]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_named_as_a_block_is_none(tmp_path: Path) -> None:
    cache = written(tmp_path, SENTENCES)
    (cache.directory / "a.block").mkdir()
    cache.refresh()
    assert len(cache.paths()) == len(cache.blocks) == 1


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(FusionError, match=r"memory_cache\.dir: .*file/\w+: cannot be written"):
        Cache(tmp_path / "file", {}).open()


def test_a_cache_that_is_dropped_while_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, mark = written(tmp_path, SENTENCES), os.utime

    def drop_and_mark(path: Path) -> None:
        prune(tmp_path, 0, None)
        mark(path)

    monkeypatch.setattr(os, "utime", drop_and_mark)
    cache.open()
    assert caches(tmp_path)[0].about == {"source": "one"} and cache.blocks == {}


def test_directories_that_come_and_go_are_no_error(tmp_path: Path) -> None:
    written(tmp_path, SENTENCES)
    others = [tmp_path / f"{number:032x}" for number in range(20)]
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for path in others:
                path.mkdir()
            for path in others:
                path.rmdir()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(come_and_go)
        try:
            counts = {len(caches(tmp_path)) for _ in range(2000)}
        finally:
            stop.set()
    other.result()
    assert counts == {1}


def test_no_half_of_a_description_is_left_where_there_is_no_room(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
    try:
        with pytest.raises(FusionError, match=r"cannot be written: File too large"):
            Cache(tmp_path, {}).open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_default_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_directory() == Path("/somewhere/fusion/memory")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_directory() == Path.home() / ".cache" / "fusion" / "memory"


def test_sizes_are_shown_as_max_bytes_reads_them() -> None:
    assert [shown_bytes(n) for n in (0, 999, 1000, 668_200_000, 2 * 10**12, 5 * 10**15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "668.2 MB", "2.0 TB", "5000.0 TB",
    ]  # fmt: skip
