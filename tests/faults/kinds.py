"""What can be wrong with a checkpoint: each fault changes a state and says which names it is about.

Hypothesis draws which tensor, which layer, which element, which kind of change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .models import State, Tiny

DEEP = 12  # layers, where a name is a prefix of another: 1 of 10 and 11

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Fault:
    """What was done, and what has to be said of it.

    Attributes:
        names: each must be in the message, and each line of it must have one of them
        by_digest: shapes and dtypes are as they were: only recorded digests can tell
        cut: bytes of the file to keep
        strangers: names that must not be in the message
    """

    text: str
    names: tuple[str, ...] = ()
    by_digest: bool = False
    cut: float | None = None
    rules: dict[str, Any] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()


def _key(draw: Draw, state: State, wanted: Callable[[Tensor], bool] = lambda t: True) -> str:
    return str(draw(st.sampled_from([key for key, t in state.items() if wanted(t)])))


def missing(draw: Draw, model: Tiny, state: State) -> Fault:
    key = _key(draw, state)
    del state[key]
    return Fault(key, (key,))


def renamed(draw: Draw, model: Tiny, state: State) -> Fault:
    key = _key(draw, state)
    at = draw(st.integers(0, len(key) - 1))
    change = draw(st.sampled_from(["letter gone", "letter twice", "prefix", "suffix", "other"]))
    new = {
        "letter gone": key[:at] + key[at + 1 :],
        "letter twice": key[: at + 1] + key[at:],
        "prefix": f"module.{key}",
        "suffix": f"{key}_old",
        "other": key[:at] + "X" + key[at + 1 :],
    }[change]
    if new in state:  # layers.1 with a letter gone, say
        new = f"{key}_old"
    state[new] = state.pop(key)
    return Fault(f"{key} -> {new}", (key, new))


def extra(draw: Draw, model: Tiny, state: State) -> Fault:
    key = _key(draw, state)
    new = draw(st.sampled_from([f"{key}.extra", f"new.{key}", key.replace("weight", "gain"), "x"]))
    new = new if new not in state else f"{new}.extra"
    state[new] = torch.ones(draw(st.integers(1, 3)))
    return Fault(new, (new,))


def transposed(draw: Draw, model: Tiny, state: State) -> Fault:
    key = _key(draw, state, lambda t: t.dim() == 2 and min(t.shape) > 1)
    state[key] = state[key].T.contiguous()
    square = state[key].shape[0] == state[key].shape[1]
    return Fault(f"{key} {'square' if square else ''}", (key,), by_digest=square)


def wrong_shape(draw: Draw, model: Tiny, state: State) -> Fault:
    key = _key(draw, state)
    old = state[key]
    change = draw(st.sampled_from(["row more", "row less", "flat", "new dimension", "halves"]))
    if change == "row more":
        new = torch.cat([old, old[:1]])
    elif change == "row less":
        new = old[:-1]
    elif change == "halves" and len(old) % 2 == 0:
        new = old.reshape(2, len(old) // 2, *old.shape[1:])
    elif change == "flat" and old.dim() > 1:
        new = old.reshape(-1)
    else:
        new = old[None]
    state[key] = new.clone()
    return Fault(f"{key} {list(old.shape)} -> {list(new.shape)}", (key,))


def wrong_dtype(draw: Draw, model: Tiny, state: State) -> Fault:
    key = _key(draw, state)
    dtypes = [torch.float64, torch.int64, torch.int32]
    dtype = draw(st.sampled_from(dtypes))
    state[key] = state[key].to(dtype)
    return Fault(f"{key} {dtype}", (key,))


def swapped_layers(draw: Draw, model: Tiny, state: State) -> Fault:
    numbers = sorted({key.split(".")[_depth(model)] for key in _layered(model, state)})
    one, two = draw(st.permutations(numbers))[:2]
    pairs = [
        (here, there)
        for here in _layered(model, state, one)
        if (there := _layer(model, two) + here.removeprefix(_layer(model, one))) in state
    ]
    if draw(st.booleans()):  # one tensor of the layer only
        pairs = [draw(st.sampled_from(pairs))]
    for here, there in pairs:
        state[here], state[there] = state[there], state[here]
    names = tuple(name for pair in pairs for name in pair)
    return Fault(f"{one} and {two}: {len(pairs)} from {pairs[0][0]}", names, by_digest=True)


def untied(draw: Draw, model: Tiny, state: State) -> Fault:
    key = draw(st.sampled_from(sorted(model.ties)))
    other = draw(st.sampled_from(model.ties[key]))
    copy = state[key].clone()
    at = draw(st.integers(0, copy.numel() - 1))
    flat = copy.view(-1)
    flat[at] = torch.nextafter(flat[at], torch.tensor(torch.inf))
    state[other] = copy
    return Fault(f"{other} differs from {key} at {at}", (key, other))


def _poisoned(draw: Draw, state: State, values: list[float]) -> Fault:
    key = _key(draw, state)
    at, value = draw(st.integers(0, state[key].numel() - 1)), draw(st.sampled_from(values))
    state[key] = state[key].clone()
    state[key].view(-1)[at] = value
    return Fault(f"{key} {value} at {at}", (key,))


def nan(draw: Draw, model: Tiny, state: State) -> Fault:
    return _poisoned(draw, state, [torch.nan])


def infinity(draw: Draw, model: Tiny, state: State) -> Fault:
    return _poisoned(draw, state, [torch.inf, -torch.inf])


def truncated(draw: Draw, model: Tiny, state: State) -> Fault:
    kept = draw(st.integers(0, 999))
    return Fault(f"{kept}/1000 of the file", cut=kept / 1000)


def prefix(draw: Draw, model: Tiny, state: State) -> Fault:
    """The file calls layers 1 and 10 (or 11) otherwise, and there is a rule for layer 1 only."""
    other = draw(st.sampled_from([str(n) for n in range(10, DEEP)]))
    name = draw(st.sampled_from(["old", "block", "layers"]))
    one, ten = _layered(model, state, "1"), _layered(model, state, other)
    for number, keys in (("1", one), (other, ten)):
        for key in keys:
            state[f"{name}.{number}{key.removeprefix(_layer(model, number))}"] = state.pop(key)
    rules = {f"{_layer(model, '1')}.{{p*}}": f"{name}.1.{{p*}}"}
    left = [key for key in state if key.startswith(f"{name}.{other}.")]
    return Fault(f"1 as {name}.1, not {other}", (*ten, *left), rules=rules, strangers=tuple(one))


def _depth(model: Tiny) -> int:
    return model.layers.count(".") + 1


def _layer(model: Tiny, number: str) -> str:
    return f"{model.layers}.{number}"


def _layered(model: Tiny, state: State, number: str | None = None) -> list[str]:
    start = f"{model.layers}." if number is None else f"{_layer(model, number)}."
    return [key for key in state if key.startswith(start)]


FAULTS: dict[str, Callable[[Draw, Tiny, State], Fault]] = {
    "missing": missing,
    "renamed": renamed,
    "extra": extra,
    "transposed": transposed,
    "wrong shape": wrong_shape,
    "wrong dtype": wrong_dtype,
    "swapped layers": swapped_layers,
    "untied tie": untied,
    "NaN": nan,
    "inf": infinity,
    "truncated": truncated,
    "layers.1 / layers.10": prefix,
}
