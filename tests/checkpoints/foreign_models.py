"""Plain references of the toolkits' Transformers, and hosts filled from their files."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fusion
from fusion.checkpoints.foreign import Foreign
from fusion.checkpoints.source import Source
from fusion.hosts.transformer import TransformerConfig, TransformerForTranslation
from fusion.keymap import Pattern
from fusion.ledger import Ledger
from fusion.warmstart import parameters_on_meta

State = dict[str, Tensor]


def checkpoints(name: str) -> Path:
    """A folder of real checkpoints, or skip."""
    root = os.environ.get("FUSION_CHECKPOINTS")
    if root is None:
        pytest.skip("FUSION_CHECKPOINTS is not set: no real checkpoints")
    return Path(root) / name


def host_of(described: Foreign, source: Source) -> TransformerForTranslation:
    """The host of a foreign checkpoint, every tensor accounted for."""
    return filled(described, source)[0]


def filled(described: Foreign, source: Source) -> tuple[TransformerForTranslation, Ledger]:
    """The host with its ledger."""
    with parameters_on_meta():
        host = TransformerForTranslation(TransformerConfig(**described.config))
    patterns = [Pattern(text) for text in described.computed]
    ledger = fusion.warm_start(
        host,
        source,
        rules=described.rules,
        ignore=described.ignore,
        init=described.init,
        compute=host._init_weights,
        computed=lambda name: any(p.match(name) is not None for p in patterns),
    )
    return host.eval(), ledger


def logits(host: Any, source: Tensor, target: Tensor, pad: int, **extra: Any) -> Tensor:
    """`[B, U, V]` of a host, with a mask over the padding of the source."""
    with torch.no_grad():
        output = host(
            input_ids=source,
            attention_mask=(source != pad).long(),
            decoder_input_ids=target,
            use_cache=False,
            **extra,
        )
    return output.logits  # type: ignore[no-any-return]


@dataclass
class Shape:
    """A tiny model's sizes, different everywhere."""

    width: int = 16
    heads: int = 4
    inner: int = 24
    encoder_layers: int = 2
    decoder_layers: int = 3
    source_words: int = 24
    target_words: int = 32


@dataclass
class Reference:
    """The Transformer of Vaswani et al. 2017 from plain arithmetic, as the toolkits vary it.

    `weights` has the names `SIDE.N.ATTENTION.{q,k,v,o}.{weight,bias}`, `SIDE.N.{fc1,fc2}...`,
    `SIDE.N.norm.{self,cross,ffn}`, `SIDE.embed`, `SIDE.norm`, `SIDE.embed_norm`, `output.*`.
    Positions count real tokens, or all (`counts_padding`: toolkits that pad on the right only).
    """

    weights: State
    shape: Shape
    positions: dict[str, Tensor]
    pre: bool = False
    eps: float = 1e-5
    scale: bool = True
    activation: Any = F.relu
    pad: int = 1
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    ratios: tuple[float, float] = (1.0, 0.0)
    counts_padding: bool = False

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        real = source != self.pad
        x = self._embed("encoder", source, real)
        keep = real[:, None, None, :]
        for i in range(self.shape.encoder_layers):
            x = self._block(f"encoder.{i}", "self", x, x, keep, fused=True)
            x = self._feed_forward(f"encoder.{i}", x)
        encoded = self._norm("encoder.norm", x)
        steps = target.shape[1]
        past = torch.tril(torch.ones(steps, steps, dtype=torch.bool))[None, None]
        x = self._embed("decoder", target, target != self.pad)
        for i in range(self.shape.decoder_layers):
            x = self._block(f"decoder.{i}", "self", x, None, past)
            x = self._block(f"decoder.{i}", "cross", x, encoded, keep, fused=True)
            x = self._feed_forward(f"decoder.{i}", x)
        return self._linear("output", self._norm("decoder.norm", x))

    def check(self, host: Any, source: Tensor, target: Tensor) -> None:
        """A host's logits are these, in float64, to 1e-10."""
        mine, theirs = logits(host.double(), source, target, self.pad), self(source, target)
        assert mine[..., : theirs.shape[-1]].sub(theirs).abs().max() <= 1e-10

    def _embed(self, side: str, ids: Tensor, real: Tensor) -> Tensor:
        x = self.weights[f"{side}.embed"][ids]
        if self.scale:
            x = x * math.sqrt(self.shape.width)
        place = self.positions[side].to(x.dtype)
        if self.counts_padding:
            return self._norm(f"{side}.embed_norm", x + place[: ids.shape[1]])
        index = real.long().cumsum(1) - 1
        x = x + torch.where(real[..., None], place[index.clamp(min=0)], torch.zeros_like(x))
        return self._norm(f"{side}.embed_norm", x)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.weight" not in self.weights:
            return x
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _attend(self, name: str, x: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
        def heads(letter: str, states: Tensor) -> Tensor:
            made = self._linear(f"{name}.{letter}", states)
            return made.view(*made.shape[:2], self.shape.heads, -1).transpose(1, 2)

        q, k, v = heads("q", x), heads("k", y), heads("v", y)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        return self._linear(f"{name}.o", mixed)

    def _block(
        self,
        layer: str,
        kind: str,
        x: Tensor,
        y: Tensor | None,
        keep: Tensor,
        fused: bool = False,
    ) -> Tensor:
        norm = f"{layer}.norm.{kind}"
        query = self._norm(norm, x) if self.pre else x
        keys = y if kind == "cross" and y is not None else query
        mixed = self._attend(f"{layer}.{kind}", query, keys, keep)
        if fused and f"{layer}.bert.q.weight" in self.weights:
            assert self.memory is not None and self.memory_mask is not None
            mask = self.memory_mask[:, None, None, :].bool()
            read = self._attend(f"{layer}.bert", query, self.memory, mask)
            mixed = self.ratios[0] * mixed + self.ratios[1] * read
        x = x + mixed
        return x if self.pre else self._norm(norm, x)

    def _feed_forward(self, layer: str, x: Tensor) -> Tensor:
        inner = self._norm(f"{layer}.norm.ffn", x) if self.pre else x
        inner = self.activation(self._linear(f"{layer}.fc1", inner))
        x = x + self._linear(f"{layer}.fc2", inner)
        return x if self.pre else self._norm(f"{layer}.norm.ffn", x)


def random_weights(shape: Shape, *, bias: bool = True, final_norm: bool = False) -> State:
    """Weights for `Reference`, none of which is at a value that hides a mistake."""
    torch.manual_seed(7)
    made: State = {}

    def linear(name: str, rows: int, columns: int, biased: bool = True) -> None:
        made[f"{name}.weight"] = torch.randn(rows, columns, dtype=torch.float64) * columns**-0.5
        if biased:
            made[f"{name}.bias"] = torch.randn(rows, dtype=torch.float64) * 0.3

    def norm(name: str) -> None:
        made[f"{name}.weight"] = 1 + 0.3 * torch.randn(shape.width, dtype=torch.float64)
        made[f"{name}.bias"] = 0.3 * torch.randn(shape.width, dtype=torch.float64)

    words = {"encoder": shape.source_words, "decoder": shape.target_words}
    for side, count in (("encoder", shape.encoder_layers), ("decoder", shape.decoder_layers)):
        made[f"{side}.embed"] = torch.randn(words[side], shape.width, dtype=torch.float64) * 0.3
        kinds = ("self",) if side == "encoder" else ("self", "cross")
        for i in range(count):
            for kind in kinds:
                for letter in "qkvo":
                    name = f"{side}.{i}.{kind}.{letter}"
                    linear(name, shape.width, shape.width, bias)
                norm(f"{side}.{i}.norm.{kind}")
            linear(f"{side}.{i}.fc1", shape.inner, shape.width)
            linear(f"{side}.{i}.fc2", shape.width, shape.inner)
            norm(f"{side}.{i}.norm.ffn")
        if final_norm:
            norm(f"{side}.norm")
    made["output.weight"] = torch.randn(shape.target_words, shape.width, dtype=torch.float64)
    return made


def interleaved(width: int, rows: int) -> Tensor:
    """sin and cos by turns, by scalar arithmetic."""
    rates = [math.exp(-math.log(10000) * 2 * i / width) for i in range(width // 2)]
    table = [[f(p * r) for r in rates for f in (math.sin, math.cos)] for p in range(rows)]
    return torch.tensor(table, dtype=torch.float64)


def batch(shape: Shape, pad: int, first: int, left: bool) -> tuple[Tensor, Tensor]:
    """Source and target ids `[3, 7]`, `[3, 6]`, padded; ids from `first` on are words."""
    torch.manual_seed(3)
    source = torch.randint(first, shape.source_words, (3, 7))
    target = torch.randint(first, shape.target_words, (3, 6))
    for row, length in enumerate((7, 4, 2)):
        source[row, length:] = pad
        if left:
            source[row] = source[row].roll(7 - length)
    for row, length in enumerate((3, 6, 5)):
        target[row, length:] = pad
    return source, target


def float32(state: State) -> State:
    """As stored in files; computing in float64 from these shows mapping errors at 1e-10."""
    return {name: tensor.float() for name, tensor in state.items()}


def float64(state: State) -> State:
    """The stored values, for a reference in float64."""
    return {name: tensor.float().double() for name, tensor in state.items()}


def renamed(weights: State, names: dict[str, str], sides: dict[str, dict[str, str]]) -> State:
    """Weights under a toolkit's names.

    Args:
        names: whole names, `{p}` for weight and bias
        sides: for the layers of a side, what follows `SIDE.N.` -> a name with `{n}` and `{p}`
    """
    made: State = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if stem in ("encoder", "decoder"):
            stem, kind = name, ""
        if stem in names:
            made[names[stem].format(p=kind)] = tensor
            continue
        side, number, rest = stem.split(".", 2)
        if rest in sides[side]:
            made[sides[side][rest].format(n=number, p=kind)] = tensor
    return made
