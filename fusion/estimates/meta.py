"""A forward and backward pass without values: parameters on meta, ids and masks real."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from fusion.estimates.work import Op, Work

_ATEN = torch.ops.aten
_ASKED = (_ATEN._local_scalar_dense.default, _ATEN.equal.default)
_DRAWING = (_ATEN.bernoulli_.float, _ATEN.native_dropout.default, _ATEN.uniform_.default)
_HALVES = (torch.bfloat16, torch.float16)


class MetaRun(TorchDispatchMode):
    """Counts operations and live bytes of what runs within it.

    Whatever depends on no parameter (ids, masks, positions) is computed for real, so that code that
    asks a mask a question gets its answer; a question to a tensor on meta is answered with no.

    Attributes:
        work: operations by the part that was running; `backward` is a part
        live: bytes that are alive, by the part that made them
        peak: the most that was ever alive; `at_peak` says whose it was

    Args:
        existing: tensors that were there before; they are not counted
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "host"
        self.work: dict[str, Work] = {}
        self.live: dict[str, int] = {}
        self._total = self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in existing:
            self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        kwargs = dict(kwargs or {})
        if any(tensor.is_meta for tensor in given):
            if func in _ASKED:
                return False
            if not all(tensor.is_meta for tensor in given):
                args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
            if "device" in kwargs:
                kwargs["device"] = "meta"
        elif "device" in kwargs and (given or not _is_float(kwargs.get("dtype"))):
            kwargs["device"] = "cpu"
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_meta]
        if made and not func.is_view:
            self._count(func, (args, kwargs, out), given, made)
            for tensor in made:
                self._hold(tensor)
        return out

    def _count(
        self, func: Any, call: tuple[Any, Any, Any], given: list[Tensor], made: list[Tensor]
    ) -> None:
        args, kwargs, out = call
        formula = flop_registry.get(func._overloadpacket)
        op = Op(
            flops=int(formula(*args, **kwargs, out_val=out)) if formula else 0,
            moved=sum(t.numel() * t.itemsize for t in (*given, *made)),
            drawn=made[0].numel() if func in _DRAWING else 0,
            half=any(t.dtype in _HALVES for t in given),
        )
        self.work.setdefault(self.part, Work()).ops[op] += 1

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size, part = storage.nbytes(), self.part
        weakref.finalize(storage, self._release, part, size)
        self.live[part] = self.live.get(part, 0) + size
        self._total += size
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, dict(self.live)

    def _release(self, part: str, size: int) -> None:
        self.live[part] -= size
        self._total -= size


def _is_float(dtype: torch.dtype | None) -> bool:
    return dtype is not None and (dtype.is_floating_point or dtype.is_complex)


_TO_HALF = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.mm,
    torch.addmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.mm,
}
_TO_FLOAT = {  # on a GPU only
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    F.log_softmax,
    F.layer_norm,
    F.cross_entropy,
    torch.pow,
    Tensor.pow,
    torch.rsqrt,
    torch.exp,
    torch.sum,
    Tensor.sum,
    torch.cumsum,
}


class Functions(TorchFunctionMode):
    """Autocast, and the attention kernels that the hardware has, for tensors on meta.

    torch's own autocast does not see them, and they would take the plain form of
    `scaled_dot_product_attention`, which keeps its weights. On a CPU the kernel is used where no
    weight is dropped, on a GPU always. Tensors say that they are on that hardware, and autocast
    that it is on there, as code asks for both and then takes another form.

    Args:
        half: what autocast computes matrix products in; None: no autocast
    """

    def __init__(self, half: torch.dtype | None, gpu: bool) -> None:
        super().__init__()
        self._half, self._gpu = half, gpu
        self._there = torch.device("cuda" if gpu else "cpu")
        self._weights: dict[int, Tensor] = {}  # autocast casts a weight once a pass
        self._before: list[tuple[bool, torch.dtype]] = []

    def __enter__(self) -> Functions:
        kind = self._there.type
        self._before.append((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)))
        torch.set_autocast_enabled(kind, self._half is not None)
        if self._half is not None:
            torch.set_autocast_dtype(kind, self._half)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        enabled, dtype = self._before.pop()
        torch.set_autocast_enabled(self._there.type, enabled)
        torch.set_autocast_dtype(self._there.type, dtype)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__ and args[0].is_meta:
            return self._there
        if self._gpu and ("device" in kwargs or any(isinstance(a, torch.device) for a in args)):
            args, kwargs = tree_map_only(torch.device, _on_meta, (args, kwargs))
        if self._half is not None and func in _TO_HALF:
            args, kwargs = tree_map_only(Tensor, self._lower, (args, kwargs))
        elif self._half is not None and self._gpu and func in _TO_FLOAT:
            args, kwargs = tree_map_only(Tensor, _raised, (args, kwargs))
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return self._attention(*args, **kwargs)
        if self._gpu and func is F.dropout and args[0].is_meta:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32 or not tensor.is_meta:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self._half)
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = tensor.to(self._half)
        return self._weights[id(tensor)]

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
        if query.dim() != 4 or (dropout_p and not self._gpu):
            mask = None if attn_mask is None else attn_mask.to("meta")
            with torch._C.DisableTorchFunction():
                return F.scaled_dot_product_attention(
                    query, key, value, mask, dropout_p, is_causal, scale=scale
                )
        with torch._C.DisableTorchFunction():
            kernel = _ATEN._scaled_dot_product_efficient_attention
            found: Tensor = kernel(query, key, value, None, True, dropout_p, is_causal)[0]
        return found


def _on_meta(device: torch.device) -> torch.device:
    return torch.device("meta") if device.type == "cuda" else device


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A GPU's dropout keeps a mask of bytes; the plain form keeps floats."""
    with torch._C.DisableTorchFunction():
        return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


def _raised(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_meta and tensor.dtype in _HALVES else tensor
