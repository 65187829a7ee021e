"""Files of torch.save give their tensors whatever else lies in them."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusion.checkpoints.directory import open_source
from fusion.checkpoints.source import TensorInfo
from fusion.checkpoints.standins import StandIn
from fusion.checkpoints.torch import load_pickle, open_torch
from fusion.errors import SourceError

ZIP_AND_STREAM = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "cache"))


def save(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def same(one: Tensor, other: Tensor) -> bool:
    """Equal in shape, dtype and every byte."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other) if t.numel()]
    return not flat or torch.equal(*flat)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@ZIP_AND_STREAM
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, zipped: bool) -> None:
    state = {str(dtype): torch.tensor([0, 1, 3]).to(dtype) for dtype in DTYPES}
    source = open_torch(save(tmp_path / "m.pt", state, zipped))
    for name, tensor in state.items():
        assert source.tensors()[name] == TensorInfo((3,), tensor.dtype)
        assert same(source.read(name), tensor)


@ZIP_AND_STREAM
def test_views_ties_and_empty_tensors_come_back(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 7),
        "expanded": torch.ones(1, 1).expand(3, 4),
        "parameter": nn.Parameter(base.clone()),
    }
    path = save(tmp_path / "m.pt", state, zipped)
    source, whole = open_torch(path), load_pickle(path)
    for name, tensor in state.items():
        assert same(source.read(name), tensor.detach()), name
        assert same(whole[name], tensor.detach()), name
        assert whole[name].stride() == tensor.stride()
    assert whole["base"].data_ptr() == whole["tied"].data_ptr() == whole["transposed"].data_ptr()
    assert whole["base"].data_ptr() != whole["parameter"].data_ptr()


def test_tensors_in_the_order_and_under_the_names_of_the_file(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    source = open_torch(save(tmp_path / "m.pt", module.state_dict()))
    assert list(source.tensors()) == list(module.state_dict())


ONE = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (ONE, ["w"]),
        ({"model": ONE, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, "epoch": 3}, ["w"]),
        ({"state_dict": collections.OrderedDict(ONE), "lr": 0.1}, ["w"]),
        ({"model_state_dict": {"a": {"b": torch.ones(2)}}}, ["a.b"]),
        ({"model": ONE, "state_dict": ONE}, ["model.w", "state_dict.w"]),
        ({"model": ONE, "scale": torch.ones(1)}, ["model.w", "scale"]),
        ({"model": {"name": "x"}, "state_dict": ONE}, ["w"]),
        ({"generator": ONE, "net": {"x": [torch.ones(1), {"y": torch.ones(1)}]}}, None),
        ({0: torch.ones(1), "a": 3}, ["0"]),
    ],
)
def test_names_come_from_the_nesting(tmp_path: Path, content: Any, names: list[str] | None) -> None:
    source = open_torch(save(tmp_path / "m.pt", content))
    assert list(source.tensors()) == (names or ["generator.w", "net.x.0", "net.x.1.y"])


def test_two_tensors_of_one_name_are_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})
    with pytest.raises(SourceError, match=r"m\.pt: two tensors are called a\.b"):
        open_torch(path).tensors()


class Colour(enum.Enum):
    RED = 1


class Meter:
    def __init__(self) -> None:
        self.average = torch.tensor([2.5])


class Configuration(dict[str, Any]):
    """A kind of dict, as configuration libraries have them."""


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 7


def others() -> dict[str, Any]:
    config = Configuration(width=3)
    config.frozen = True  # type: ignore[attr-defined]
    return {
        "args": argparse.Namespace(arch="transformer", layers=[1, 2]),
        "meter": Meter(),
        "colour": Colour.RED,
        "config": config,
        "slotted": Slotted(),
        "loss": np.float64(1.25),
        "array": np.arange(3),
        "counts": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "path": Path("x/y"),
        "bytes": b"\x00\xff",
        "plain": {"t": (1, -2, 3.5, None, True), "s": {1, 2}, "f": frozenset("a"), "c": 1 + 2j},
        "large": 2**80,
        "text": "ß" * 300,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@ZIP_AND_STREAM
def test_what_lies_beside_the_tensors_is_kept_as_plain_data_or_stand_ins(
    tmp_path: Path, zipped: bool, protocol: int
) -> None:
    path = tmp_path / "m.pt"
    content = {"model": ONE} | others()
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = load_pickle(path)
    assert vars(found["args"]) == {"arch": "transformer", "layers": [1, 2]}
    assert found["args"].arch == "transformer"
    assert torch.equal(found["meter"].average, torch.tensor([2.5]))
    assert str(found["meter"].stands_for) == f"{__name__}.Meter"
    by_name = Colour.RED.__reduce_ex__(2)[0] is getattr  # as Python 3.11.2 pickles it
    assert found["colour"].arguments == (("RED",) if by_name else (1,))
    assert found["config"].entries == {"width": 3}
    assert found["config"].frozen is True
    assert found["slotted"].value == 7
    assert found["counts"] == {"a": 2, "b": 1}
    assert found["default"] == {"a": [1]}
    assert found["size"] == (2, 3)
    assert found["dtype"] is torch.float16
    for name in ("bytes", "plain", "large", "text"):
        assert found[name] == content[name]
    for name in ("loss", "array", "device", "path"):
        assert isinstance(found[name], StandIn)
    assert list(open_torch(path).tensors()) == ["w"]


def test_classes_that_are_not_installed_are_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "vanished_toolkit.py").write_text(
        "class Meter:\n"
        "    def __init__(self): self.sum = 3\n"
        "    def __setstate__(self, state): raise SystemExit('it ran')\n"
    )
    program = (
        "import torch, vanished_toolkit as v\n"
        "torch.save({'model': {'w': torch.ones(2)}, 'meters': [v.Meter()]}, 'm.pt')\n"
    )
    paths = os.pathsep.join([str(folder), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "m.pt", weights_only=False)
    assert torch.equal(open_torch(tmp_path / "m.pt").read("w"), torch.ones(2))
    assert load_pickle(tmp_path / "m.pt")["meters"][0].sum == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: torch.ones(2), "holds a tensor; a state dict was expected"),
        (lambda: nn.Linear(2, 2), r"holds a torch\.nn\.modules\.linear\.Linear \(a whole object"),
        (lambda: {"a": torch.ones(2).to_sparse()}, "a: a tensor of a kind that is not supported"),
        (
            lambda: {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
            "a storage of unknown kind torch.QInt8Storage",
        ),
        (lambda: {"a": torch.ones(2, dtype=torch.complex64).conj()}, "lazy conjugate"),
        (
            lambda: {"a": torch.ones(2, device="meta")},
            "a: a tensor of a kind that is not supported",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_or_no_state_dict_is_named(
    tmp_path: Path, content: Callable[[], Any], message: str
) -> None:
    path = save(tmp_path / "m.pt", content())
    with pytest.raises(SourceError, match=rf"m\.pt: .*{message}"):
        open_torch(path).tensors()


def written(tmp_path: Path) -> dict[str, Callable[[], None]]:
    """Files of other kinds under a torch suffix, by the error that they should give."""
    path = tmp_path / "m.pt"

    def tar() -> None:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())

    return {
        "it is empty": lambda: path.write_bytes(b"") and None,
        "a tar file, as torch wrote before": tar,
        "a pickle that torch.save did not write": lambda: (
            path.write_bytes(pickle.dumps({"a": 1})) and None
        ),
        "not a whole torch file": lambda: path.write_bytes(b"\x80\x02garbage") and None,
        "a TorchScript archive": lambda: torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path),
    }


@pytest.mark.parametrize("message", list(written(Path("x"))))
@pytest.mark.filterwarnings("ignore")
def test_files_of_another_kind_are_one_clear_error(tmp_path: Path, message: str) -> None:
    written(tmp_path)[message]()
    with pytest.raises(SourceError, match=rf"m\.pt: .*{message}"):
        open_torch(tmp_path / "m.pt").tensors()
    with pytest.raises(SourceError, match=r"m\.pt: "):
        open_source(tmp_path / "m.pt").tensors()


@ZIP_AND_STREAM
def test_a_file_cut_anywhere_is_one_clear_error(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "m.pt", {"a": torch.arange(100.0), "b": [1, "x"]}, zipped)
    whole = path.read_bytes()
    for kept in range(0, len(whole), 7):
        path.write_bytes(whole[:kept])
        with pytest.raises(SourceError, match=r"m\.pt: not a whole"):
            open_source(path).tensors()


@ZIP_AND_STREAM
def test_a_file_with_a_changed_byte_is_read_or_is_one_error(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "m.pt", {"a": torch.arange(6.0).reshape(2, 3), "b": [1, "x"]}, zipped)
    whole = bytearray(path.read_bytes())
    refused = 0
    for place in range(0, len(whole), 3):
        changed = whole.copy()
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            source = open_torch(path)
            for name in source.tensors():
                source.read(name)
        except SourceError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > len(whole) // 24


def test_a_damaged_pickle_in_a_zip_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a": torch.ones(2), "lr": "0.25"})
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75"))
    with pytest.raises(SourceError, match=r"data\.pkl is damaged: its checksum differs"):
        open_torch(path).tensors()


def test_a_zip_written_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "m.pt", ONE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(open_torch(path).read("w"), torch.ones(2))


def test_a_tensor_read_may_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", ONE)
    before = path.read_bytes()
    open_torch(path).read("w").mul_(5)
    assert path.read_bytes() == before
    assert torch.equal(open_torch(path).read("w"), torch.ones(2))


def test_a_number_of_elements_that_the_stream_tells_twice_must_agree(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"a": torch.arange(4.0)}, zipped=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-24] + (2).to_bytes(8, "little") + whole[-16:])
    with pytest.raises(SourceError, match="a storage is missing or smaller than told"):
        open_torch(path).tensors()


@pytest.mark.parametrize(
    "name",
    [
        "fairseq-sym-math/checkpoint_best.pt",
        "fairseq-written-tiny/checkpoint.pt",
        "fairseq-written-tiny/io.pt",
        "hf-bert-xsmall-dummy/pytorch_model.bin",
    ],
)
def test_files_that_others_wrote_give_what_torch_load_gives(name: str) -> None:
    folder = os.environ.get("FUSION_CHECKPOINTS")
    if not folder:
        pytest.skip("FUSION_CHECKPOINTS, the folder of checkpoints that others wrote, is not set")
    path = Path(folder) / name
    meters = [f"fairseq.meters.{kind}Meter" for kind in ("Time", "Average", "Stopwatch")]
    known: list[Any] = [(type("Meter", (), {}), meter) for meter in meters]
    with torch.serialization.safe_globals([argparse.Namespace, *known]):
        content = torch.load(path, weights_only=True)
    state = content.get("model", content)
    source, whole = open_torch(path), load_pickle(path)
    whole = whole.get("model", whole)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    assert set(source.tensors()) == set(tensors)
    for key, value in tensors.items():
        assert same(source.read(key), value)
        assert same(whole[key], value)
    if "args" in content:
        assert vars(load_pickle(path)["args"]) == vars(content["args"])
