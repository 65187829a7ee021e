"""Torch checkpoints: state dicts of `torch.save`, with whatever else lies beside them.

Classes that are not here (a trainer's meters, its options) become stand-ins; a file that names
what only code would need is refused. See `machine` for how a pickle is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion.checkpoints.shards import Shards
from fusion.checkpoints.source import Source, TensorInfo, checked_shapes
from fusion.checkpoints.standins import StandIn
from fusion.checkpoints.stored import Stored
from fusion.checkpoints.torch_file import TorchFile, open_torch_file, told_of
from fusion.errors import SourceError

STATE_KEYS = ("model", "state_dict", "model_state_dict")
_MAX_DEPTH = 64
_MAX_VISITS = 1_000_000
_MAX_NAMES = 1 << 26  # characters
_ENDLESS = "not a whole torch file: nested without an end at"
_WALKED = (Stored, StandIn, dict, list, tuple)


class TorchSource(Source):
    """The tensors of one or more torch files, under the names that the nesting gives them.

    Where the top level holds no tensors of its own and exactly one of "model", "state_dict" and
    "model_state_dict" holds some, that mapping is the checkpoint, and what lies beside it (an
    optimizer, say) is left out. Otherwise every tensor counts, and nested mappings and lists give
    dotted names: `{"a": {"b": [x, y]}}` has `a.b.0` and `a.b.1`. Other values are passed over.
    """

    def __init__(
        self, location: str, files: tuple[Path, ...], shards: Shards | None = None
    ) -> None:
        self.location = location
        self.files = files
        self.digest_scope = "torch/1"
        self._shards = shards

    @cached_property
    def _found(self) -> dict[str, tuple[TorchFile, Stored]]:
        found: dict[str, tuple[TorchFile, Stored]] = {}
        for path in self.files:
            self.opening(path)
            opened = open_torch_file(path)
            with told_of(path):
                state = opened.load(lambda stored: stored)
                for name, stored in named_tensors(state, path).items():
                    opened.place(stored)
                    if name in found:
                        raise SourceError(f"{path}: {name} is also in {found[name][0].path.name}")
                    found[name] = (opened, stored)
        if self._shards is not None:
            self._shards.check({name: opened.path for name, (opened, _) in found.items()})
        if not found:
            raise SourceError(f"{self.location}: holds no named tensors")
        return found

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        infos = {n: TensorInfo(one.shape, one.dtype) for n, (_, one) in self._found.items()}
        return checked_shapes(self.location, infos)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def files_of(self, name: str) -> tuple[Path, ...]:
        return (self._found[name][0].path,)

    def check_stored(self, name: str) -> None:
        opened, stored = self._found[name]
        with told_of(opened.path):
            opened.check(stored)

    def read(self, name: str) -> Tensor:
        opened, stored = self._found[name]
        with told_of(opened.path):
            return opened.tensor(stored)


def named_tensors(state: Any, path: Path) -> dict[str, Stored]:
    """Name -> tensor of a loaded object, as `TorchSource` describes.

    Raises:
        SourceError: no mapping, two tensors of one name, or a kind of tensor that cannot be read.
    """
    top = _children(state)
    if top is None or isinstance(state, list | tuple):
        what = "tensor" if isinstance(state, Stored) else _kind(state)
        raise SourceError(f"{path}: holds a {what}; a state dict was expected")
    flat = dict(_walk(state, path))
    usual = [key for key in STATE_KEYS if any(name.startswith(f"{key}.") for name in flat)]
    own = any(isinstance(value, Stored) for _, value in top)
    if len(usual) == 1 and not own:
        prefix = f"{usual[0]}."
        return {n.removeprefix(prefix): t for n, t in flat.items() if n.startswith(prefix)}
    return flat


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, StandIn) and value.entries:
        return list(value.entries.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return None


def _walk(state: Any, path: Path) -> Iterator[tuple[str, Stored]]:
    """Depth first, in the file's order; an object inside itself is an error, not a loop."""
    seen: set[str] = set()
    waiting: list[tuple[str, Any, int]] = [("", state, 0)]
    visits = named = 0
    while waiting:
        name, value, depth = waiting.pop()
        visits += 1
        if depth > _MAX_DEPTH or visits > _MAX_VISITS:
            raise SourceError(f"{path}: {_ENDLESS} {name[:80]}")
        if isinstance(value, Stored):
            if name in seen:
                raise SourceError(f"{path}: two tensors are called {name}")
            seen.add(name)
            yield name, value
        elif isinstance(value, StandIn) and value.stands_for.module == "torch._utils":
            raise SourceError(f"{path}: {name}: a tensor of a kind that is not supported: {value}")
        children = _children(value) or []
        prefix = f"{name}." if depth else ""
        for key, child in reversed(children):
            if isinstance(child, _WALKED):
                waiting.append((f"{prefix}{key}", child, depth + 1))
                named += len(waiting[-1][0])
                if named > _MAX_NAMES:  # a few objects under long keys, over and over
                    raise SourceError(f"{path}: {_ENDLESS} {name[:80]}")


def _kind(value: Any) -> str:
    if isinstance(value, StandIn):
        return f"{value.stands_for} (a whole object: save its state_dict() instead)"
    return type(value).__name__


def load_pickle(path: Path) -> Any:
    """Everything that a torch file holds: dicts, lists, numbers, strings, tensors.

    Tensors are memory-mapped where the format allows. An object of any other class is a
    `standins.StandIn` with what the pickle says of it; `vars()` gives an `argparse.Namespace`'s
    options.

    Raises:
        SourceError: missing, damaged, or refused since it could run code.
    """
    opened = open_torch_file(path)
    shared: dict[tuple[str, int, int], Tensor] = {}

    def tensor(stored: Stored) -> Tensor:
        storage = stored.storage
        key = (storage.key, storage.first, storage.size)
        if key not in shared:
            shared[key] = opened.whole(stored)
        flat = shared[key].view(stored.dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset)

    with told_of(path):
        return opened.load(tensor)


def open_torch(path: Path, location: str | None = None) -> Source:
    """A single .pt, .pth or .bin file."""
    return TorchSource(location or str(path), (path,))
