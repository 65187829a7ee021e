"""What every glue module offers, and what it is told about its place."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fusion.memory import Memory


@dataclass(frozen=True)
class Place:
    """Where a glue module sits.

    Attributes:
        site: the host's site, `encoder.0.self_attention`; `bert.3.output` in an encoder;
            `host:model.encoder.layers.0.fc1` a module by its name
        width: D, the width there (of what comes out, for a module by name)
        heads: attention heads there
        memory_width: M, the encoder's width; the sum of them where glue reads several; 0 for none
        eps: layer norm epsilon of the host (or of the encoder, inside one)
        norm: where the norm of the sublayer there is
        dropout: the host's
        inner: width of what comes in, for a module by name
        key_width: of all the keys of one position, in the attention there; None: there is none
        index, count: this is site number `index` of the `count` that its glue has
        memory_layers: L, the hidden states of the encoder, embeddings and all layers
    """

    site: str
    width: int
    heads: int
    memory_width: int
    eps: float = 1e-5
    norm: Literal["pre", "post"] = "post"
    dropout: float = 0.0
    inner: int | None = None
    key_width: int | None = None
    index: int = 0
    count: int = 1
    memory_layers: int = 0


class Glue(nn.Module, ABC):
    """One method at one site. Keyword-only parameters of `__init__` are the recipe's options.

    Attributes:
        default_sites: where it sits if the recipe does not say
        causal_sites: likewise, in a decoder-only host
        reads_memory: whether it needs `encoder:`
        reads_layers: it reads `memory.layers`, so the encoder's `layer` must be `all` or `mix`
        sequence: `prefix`: its output at `encoder.output` is longer than the host's; `replaced`:
            the host's encoder is not run at all; `mask_of` then says what there is to attend to
        may_drop: a training step may leave it out
        penalty, penalty_weight: the loss term of this forward pass, a mean over the source's real
            tokens, None at evaluation, and its l: the whole loss is (1 - sum l) NLL + sum l penalty
    """

    default_sites: tuple[str, ...] = ("encoder.*.self_attention", "decoder.*.cross_attention")
    causal_sites: tuple[str, ...] = ("decoder.*.self_attention",)
    reads_memory = True
    reads_layers = False
    sequence: Literal["kept", "prefix", "replaced"] = "kept"
    may_drop = False
    penalty_weight = 0.0

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.penalty: Tensor | None = None

    @abstractmethod
    def forward(self, x: Tensor, host: Callable[[], Tensor], memory: Memory) -> Tensor:
        """Mix memory into the output of the host's sublayer.

        Args:
            x: the sublayer's input `[B, T, D]`, the query of the host's own attention
            host: computes the host's own output `[B, T, D]`; not called: not computed
            memory: the encoder's memory of `B` sentences, or of `B / beams` with beams adjacent

        Returns:
            what the host drops out and adds to its residual `[B, T, D]`
        """

    def mask_of(self, mask: Tensor, memory: Memory) -> Tensor:
        """The mask of what the decoder attends to, where `sequence` is not `kept`.

        Shapes: mask of the host's source `[B, T]` -> `[B, T']`; memory of B sentences
        """
        return mask

    def enter(self, module: nn.Module, board: dict[str, Memory], name: str) -> None:
        """Told, when it is put into its site, of the host's module there, to work inside it.

        Args:
            module: the host's attention; at a site of another kind, the module there
            board: where the memories of the forward pass that is running will be
            name: of the memory that it reads, on the board
        """

    def leave(self) -> None:
        """Undo what `enter` did: glue is taken out."""

    def initial(self) -> dict[str, str]:
        """Own name pattern -> init rule, for tensors that do not start as `transformer`."""
        return {}

    def draw(self, rng: random.Random) -> None:
        """Make this step's random choice, once per batch, the same on every rank."""

    @property
    def neutral(self) -> bool:
        """Whether the start leaves the host's output bit for bit unchanged."""
        return False
