"""Small files that ask for more memory, depth or time than they are worth: one error each.

All are opened in one process of its own, which may take 512 MB more than it has after its imports.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled import entry, integer, name, numbers, tensor, text, write_stream, write_zip

PROGRAM = """
import json, resource, sys
from pathlib import Path
from fusion.checkpoints.directory import open_source
from fusion.checkpoints.torch import load_pickle
from fusion.errors import SourceError
taken = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmSize")]
limit = int(taken[0].split()[1]) * 1024 + (512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = {}
for path in sys.argv[1:]:
    def use():
        source = open_source(path)
        for key in source.tensors():
            source.digest(key)
    actions = {"open": use}
    if Path(path).parent.name == "nested":
        actions["load"] = lambda: load_pickle(Path(path))
    for how, action in actions.items():
        try:
            action()
            said[f"{Path(path).stem} {how}"] = "read"
        except SourceError as error:
            said[f"{Path(path).stem} {how}"] = str(error)
print(json.dumps(said))
"""

DEEP = 200_000  # far more than a C stack bears
MANY = 1_100_000
BODIES: dict[str, tuple[bytes, str]] = {
    "memo far away": (b"}r\xff\xff\xff\xff0j\xfe\xff\xff\xff", "memo 4294967294 was never set"),
    "bytes of an exabyte": (b"\x8e" + struct.pack("<Q", 1 << 60), "ends early"),
    "text of an exabyte": (b"\x8d" + struct.pack("<Q", 1 << 60), "ends early"),
    "bytearray of an exabyte": (b"\x96" + struct.pack("<Q", 1 << 60), "ends early"),
    "bytes of a negative length": (b"T" + struct.pack("<i", -5), "ends early"),
    "number of 2 GB": (b"\x8b" + struct.pack("<i", 2**31 - 1), "a number of 2147483647 bytes"),
    "number of many digits": (b"L" + b"9" * 900_000 + b"L\n", "a number of too many digits"),
    "a deep key": (b"})" + b"\x85" * DEEP + b"Ns", "a key of too many parts"),
    "a huge number as key": (b"}" + integer(1 << 400) + b"Ns", "a key that is a huge number"),
    "sets without end": (b"(" + b"\x8f" * MANY + b"l", "more than 1000000 objects"),
    "marks without end": (b"(" * MANY, "more than 1000000 objects"),
    "steps without end": (b"N0" * 5 * MANY, "more than 10000000 instructions"),
    "one text copied often": (
        name("_codecs", "encode") + b"p0\n0" + text("x" * 400_000) + text("latin1") + b"\x86p1\n0("
        b"" + b"g0\ng1\nR" * 20_000 + b"l",
        "copies more than it holds",
    ),
    "a bytearray by its size": (
        name("builtins", "bytearray") + b"(" + integer(1 << 40) + b"tR",
        "a bytearray of no bytes",
    ),
    "a storage of petabytes": (
        entry("a", tensor(1 << 50, (1 << 50,), (1,))),
        "holds 4 bytes, 4503599627370496 are told",
    ),
    "a tensor expanded to petabytes": (
        entry("a", tensor(1, (1 << 50,), (0,))),
        "claims more than its storage of 4 bytes",
    ),
    "a product that overflows": (
        entry("a", tensor(1, (1 << 61, 1 << 61, 4), (0, 0, 0))),
        "claims more than its storage of 4 bytes",
    ),
}
# Read whole by load_pickle, which does not look at the nesting; refused as a source of tensors.
NESTED: dict[str, tuple[bytes, str]] = {
    "a deep list": (
        b"}" + text("a") + b"]" * DEEP + b"a" * (DEEP - 1) + b"s",
        "nested without an end",
    ),
    "a deep dict": (
        (b"}" + text("a")) * DEEP + b"N" + b"s" * DEEP,
        "nested without an end",
    ),
    "a list of itself": (entry("a", b"]p0\ng0\na"), "nested without an end"),
    "lists that double": (
        entry("a", b"]" + b"".join(b"p%d\n0](g%d\ng%d\ne" % (n, n, n) for n in range(60))),
        "nested without an end",
    ),
    "one dict under a long name, over and over": (
        b"}" + text("x" * 400_000) + b"]" + entry("a", b"]") + b"p0\n0(" + b"g0\n" * 40_000 + b"es",
        "nested without an end",
    ),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bombs")
    four = {"0": bytes(4)}
    files = [write_zip(folder / f"{key}.pt", body, four) for key, (body, _) in BODIES.items()]
    nested = folder / "nested"
    nested.mkdir()
    files += [write_zip(nested / f"{key}.pt", body, four) for key, (body, _) in NESTED.items()]
    rest = struct.pack("<q", 1 << 50)
    stream = entry("a", tensor(1, (1,), (1,), stream=True))
    files.append(write_stream(folder / "a stream of petabytes.pt", stream, ["0"], rest))
    files.append(
        write_zip(
            folder / "a pickle that inflates.pt", b"N" * (1 << 28), four, zipfile.ZIP_DEFLATED
        )
    )
    inflates = folder / "an array that inflates.npz"
    np.savez_compressed(inflates, a=np.zeros(1 << 28, np.uint8))
    huge = folder / "a header of exabytes.safetensors"
    huge.write_bytes(struct.pack("<Q", 1 << 60) + b"{}" + bytes(100))
    deep = folder / "a deep header.safetensors"
    deep.write_bytes(struct.pack("<Q", 4 * DEEP) + b'{"a' + b"[" * (4 * DEEP))
    environment = os.environ | {"FUSION_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, [*files, inflates, huge, deep])],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, str] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("bomb", BODIES)
def test_a_pickle_that_would_blow_up_is_one_error(said: dict[str, str], bomb: str) -> None:
    assert BODIES[bomb][1] in said[f"{bomb} open"]
    assert "not a whole torch file" in said[f"{bomb} open"]


@pytest.mark.parametrize("bomb", NESTED)
def test_nesting_without_end_is_no_crash_and_no_tensors(said: dict[str, str], bomb: str) -> None:
    assert NESTED[bomb][1] in said[f"{bomb} open"]
    assert said[f"{bomb} load"] == "read"


@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        ("a stream of petabytes", "it ends before its storages do"),
        ("a pickle that inflates", "is compressed, which torch.save never does"),
        ("an array that inflates", "would inflate from"),
        ("a header of exabytes", "not a whole safetensors file"),
        ("a deep header", "not a whole safetensors file"),
    ],
)
def test_a_file_that_promises_more_than_it_holds_is_one_error(
    said: dict[str, str], bomb: str, message: str
) -> None:
    assert message in said[f"{bomb} open"]


def test_these_files_are_like_torch_s_own_but_for_their_claims(tmp_path: Path) -> None:
    body = entry("a", tensor(6, (2, 3), (3, 1)))
    path = write_zip(tmp_path / "a.pt", body, {"0": struct.pack("<6f", *range(6))})
    expected = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(torch.load(path, weights_only=True)["a"], expected)
    stream = entry("a", tensor(6, (2, 3), (3, 1), stream=True))
    rest = struct.pack("<q6f", 6, *range(6))
    old = write_stream(tmp_path / "b.pt", stream, ["0"], rest)
    assert torch.equal(torch.load(old, weights_only=True)["a"], expected)
    assert numbers(1) == b"(\x8a\x01\x01t"
