"""The tensors of any module: their names and owners, the memory they lie in, values in their place.

Two tensors of a module may lie in one storage (cuDNN's flat weights do); they may not share a cell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def every_tensor(module: nn.Module) -> Iterator[tuple[list[str], Tensor, str]]:
    """Every parameter and buffer once, with all the names it goes by."""
    groups: dict[int, tuple[list[str], Tensor, str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), ([], parameter, "parameter"))[0].append(name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        groups.setdefault(id(buffer), ([], buffer, "buffer"))[0].append(name)
    yield from groups.values()


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds a tensor, and its name there."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def is_persistent(module: nn.Module, name: str) -> bool:
    """Whether a buffer is saved with the module."""
    owner, leaf = owner_of(module, name)
    return leaf not in owner._non_persistent_buffers_set


def extra_state(module: nn.Module) -> dict[str, str]:
    """What a module saves besides its tensors, under the names of its state dict: name -> class."""
    plain = nn.Module.get_extra_state
    return {
        f"{name}._extra_state".removeprefix("."): type(inner).__name__
        for name, inner in module.named_modules()
        if getattr(type(inner), "get_extra_state", plain) is not plain
    }


def unfillable(module: nn.Module, written: Collection[str]) -> dict[str, str]:
    """Tensors that cannot be given values of their own: name -> why.

    Args:
        written: names of the tensors that are to get values; the others only must not share memory
            with one of these
    """
    found: dict[str, str] = {}
    placed: list[tuple[str, bool, Tensor]] = []
    for names, tensor, _ in every_tensor(module):
        name, is_written = names[0], not set(names).isdisjoint(written)
        if tensor.is_meta or is_lazy(tensor):
            continue
        why = _why_not(tensor) if is_written else None
        if why is not None:
            found[name] = why
        elif tensor.layout == torch.strided and tensor.numel() and not overlaps_itself(tensor):
            placed.append((name, is_written, tensor))
    for one, other in _sharing(placed):
        found[other] = (
            f"shares memory with {one}, but is another tensor: what the one is given, the other "
            "gets; make both one parameter, or give each memory of its own"
        )
    return found


def _why_not(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"is {str(tensor.layout).removeprefix('torch.')}: only dense tensors are filled"
    if tensor.is_inference():
        return "was made in inference mode, where no tensor can be changed later; make it outside"
    if overlaps_itself(tensor):
        return (
            f"its elements share memory (shape {list(tensor.shape)}, strides "
            f"{list(tensor.stride())}); .clone() gives each its own"
        )
    return None


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements of a dense tensor lie in one cell, as `expand` makes them."""
    if not tensor.numel():
        return False
    reach = 0
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    for step, size in sorted((step, size) for step, size in steps if size > 1):
        if step <= reach or step == 0:
            return True
        reach += step * (size - 1)
    return False


def _sharing(placed: list[tuple[str, bool, Tensor]]) -> Iterator[tuple[str, str]]:
    """Pairs of names whose tensors share a cell and of which one is to be written."""
    ranges = []
    for number, (_, _, tensor) in enumerate(placed):
        steps = zip(tensor.stride(), tensor.shape, strict=True)
        last = sum(step * (size - 1) for step, size in steps)
        start = tensor.data_ptr()
        ranges.append((str(tensor.device), start, start + (last + 1) * tensor.itemsize, number))
    open_ones: list[tuple[str, int, int, int]] = []
    for here in sorted(ranges):
        device, start, _, number = here
        open_ones = [one for one in open_ones if one[0] == device and one[2] > start]
        for *_, earlier in open_ones:
            first, second = placed[min(earlier, number)], placed[max(earlier, number)]
            if (first[1] or second[1]) and _share_a_cell(first[2], second[2]):
                yield first[0], second[0]
        open_ones.append(here)


def _share_a_cell(one: Tensor, other: Tensor) -> bool:
    """Of two tensors whose ranges of memory overlap."""
    memory = one.untyped_storage()
    same = memory.data_ptr() == other.untyped_storage().data_ptr()
    if not same or one.itemsize != other.itemsize:
        return True
    if one.is_contiguous() and other.is_contiguous():
        return True
    cells = torch.zeros(memory.nbytes() // one.itemsize, dtype=torch.bool, device="cpu")
    cells.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(cells.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def in_place_of(old: Tensor, value: Tensor, requires_grad: bool) -> Tensor:
    """A tensor with a value, and with the class and the attributes of the one that it replaces.

    Shapes and dtypes are the caller's matter. The value's memory is used as it is.
    """
    # as nn.Parameter does it; as_subclass would make a view, which torch multiplies another way
    new = torch.Tensor._make_subclass(type(old), value.detach(), requires_grad)
    new.__dict__.update(old.__dict__)
    return new
