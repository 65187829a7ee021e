"""What is written is there whole or not at all, and a full disk is one message with the place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fusion.errors import NoRoomError
from fusion.writing import whole, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_a_directory_get_their_place_at_the_end(tmp_path: Path) -> None:
    with whole(tmp_path / "deep" / "file") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path / "deep" and names(tmp_path / "deep")[0] != "file"
    with whole(tmp_path / "deep" / "folder") as temporary:
        temporary.mkdir()
        (temporary / "inner").write_text("1")
    with whole(tmp_path / "deep" / "folder") as temporary:
        temporary.mkdir()
        (temporary / "other").write_text("2")
    assert names(tmp_path / "deep") == ["file", "folder"]
    assert names(tmp_path / "deep" / "folder") == ["other"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_the_place_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(error), whole(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), whole(tmp_path / "b") as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise error
    assert names(tmp_path) == ["a.json"]
    assert "old" in (tmp_path / "a.json").read_text()


FULL = """
import resource, sys
from pathlib import Path
import torch
from fusion.errors import NoRoomError
from fusion.checkpoints.fairseq_files import write_fairseq
from fusion.saved import write_tensors
from fusion.writing import whole, write_json
place = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
ways = {
    "a.json": lambda path: write_json(path, {"a": "x" * 9000}),
    "a.safetensors": lambda path: write_tensors({"a": torch.ones(9000)}, path),
    "a.pt": lambda path: write_fairseq({"a": torch.ones(9000)}, {}, path),
    "folder": lambda path: (path.mkdir(), write_tensors({"a": torch.ones(9000)}, path / "b")),
}
for name, write in ways.items():
    try:
        if name == "folder":
            with whole(place / name) as temporary:
                write(temporary)
        else:
            write(place / name)
    except NoRoomError as error:
        print(error)
"""


def test_a_disk_without_room_is_one_message_that_names_the_place(tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True
    )
    assert program.stdout.splitlines() == [
        f"{tmp_path}/a.json: cannot be written: File too large",
        f"{tmp_path}/a.safetensors: cannot be written: File too large",
        f"{tmp_path}/a.pt: cannot be written: File too large",
        f"{tmp_path}/folder: cannot be written: File too large",
    ], program.stderr[-2000:]
    assert names(tmp_path) == []


def test_what_is_no_lack_of_room_is_not_called_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole(tmp_path / "a") as temporary:
        temporary.write_bytes((tmp_path / "missing").read_bytes())
    with pytest.raises(RuntimeError, match="of its own"), whole(tmp_path / "a"):
        raise RuntimeError("of its own")
    outer = whole(tmp_path / "outer")
    with pytest.raises(NoRoomError, match="outer: cannot be written: why"), outer:
        raise NoRoomError("inner", "why")
