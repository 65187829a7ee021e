"""The names that torch.save writes, and what stands for them: storages, tensors, dtypes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion.checkpoints.machine import Made
from fusion.checkpoints.standins import Named, PickleError, StandIn
from fusion.checkpoints.stored import Storage, Stored, view

TensorMaker = Callable[[Stored], Any]


@dataclass(frozen=True, slots=True)
class StorageKind:
    """A storage class; dtype None is `UntypedStorage`."""

    dtype: torch.dtype | None


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": None,
}


def _dtypes() -> dict[str, torch.dtype]:
    names = {name: getattr(torch, name) for name in dir(torch)}
    return {f"torch.{n}": found for n, found in names.items() if isinstance(found, torch.dtype)}


def _kinds() -> dict[str, StorageKind]:
    return {
        f"{module}.{name}": StorageKind(dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in _STORAGES.items()
    }


_FIXED: dict[str, Any] = {
    **_dtypes(),
    **_kinds(),
    "torch.Size": Made("torch.Size", lambda sizes=(): tuple(sizes)),
    "torch.serialization._get_layout": Made("_get_layout", lambda name: name),
}


def torch_names(make: TensorMaker) -> dict[str, Any]:
    """Full name -> what stands for it, for a pickle machine.

    Args:
        make: what a tensor of the file becomes
    """

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        if len(rest) > 2:
            _refuse_flags(rest[2])
        kind = _storage(storage)
        return make(view(kind, kind.dtype or torch.uint8, offset, size, stride))

    def rebuild_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        _, _, dtype, *metadata = rest
        _refuse_flags(*metadata)
        if not isinstance(dtype, torch.dtype):
            raise PickleError("a tensor whose dtype is none")
        return make(view(_storage(storage), dtype, offset, size, stride))

    def parameter(data: Any = None, *rest: Any) -> Any:
        if not isinstance(data, Stored | Tensor | StandIn):
            raise PickleError("a parameter that is no tensor")
        return data

    def of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        if isinstance(function, Made) and isinstance(arguments, tuple):
            return function(*arguments)
        return StandIn(function if isinstance(function, Named) else Named("torch", "Tensor"))

    return _FIXED | {
        "torch._utils._rebuild_tensor": Made("_rebuild_tensor", rebuild),
        "torch._utils._rebuild_tensor_v2": Made("_rebuild_tensor_v2", rebuild),
        "torch._utils._rebuild_tensor_v3": Made("_rebuild_tensor_v3", rebuild_v3),
        "torch._utils._rebuild_parameter": Made("_rebuild_parameter", parameter),
        "torch._utils._rebuild_parameter_with_state": Made("_rebuild_parameter", parameter),
        "torch.nn.parameter.Parameter": Made("Parameter", parameter),
        "torch._tensor._rebuild_from_type_v2": Made("_rebuild_from_type_v2", of_type),
    }


def _storage(value: Any) -> Storage:
    if not isinstance(value, Storage):
        raise PickleError("a tensor without a storage")
    return value


def _refuse_flags(metadata: Any = None) -> None:
    if metadata:
        raise PickleError("a tensor with a lazy conjugate or negative; save it resolved")


def persistent_storage(saved_id: Any) -> Any:
    """The storage (or, in old files, the class) of a persistent id.

    Raises:
        PickleError: it is no id that torch.save writes.
    """
    kind, *rest = saved_id if isinstance(saved_id, tuple) and saved_id else (None,)
    if kind == "module" and rest:
        return rest[0]  # a class saved with its source code
    if kind != "storage" or len(rest) not in (4, 5):
        raise PickleError("a persistent id that is no storage")
    of, key, _, count = rest[:4]
    if not isinstance(of, StorageKind):
        raise PickleError(f"a storage of unknown kind {of}"[:120])
    if not isinstance(key, str) or type(count) is not int or not 0 <= count < 1 << 56:
        raise PickleError("a storage without a name or of impossible size")
    width = of.dtype.itemsize if of.dtype is not None else 1
    first, size = 0, count * width
    if len(rest) == 5 and rest[4] is not None:
        first, size = _part(rest[4], width, size)
    return Storage(key, of.dtype, first, size)


def _part(metadata: Any, width: int, size: int) -> tuple[int, int]:
    """Start and size in bytes of a view of a storage."""
    numbers = metadata[1:] if isinstance(metadata, tuple) else ()
    if len(numbers) != 2 or not all(type(n) is int and n >= 0 for n in numbers):
        raise PickleError("a view of a storage without start and size")
    start, length = numbers[0] * width, numbers[1] * width
    if start + length > size:
        raise PickleError("a view that reaches outside of its storage")
    return start, length
