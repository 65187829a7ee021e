"""What was computed, as counts that hardware makes seconds of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Op(NamedTuple):
    """One kind of operation.

    Attributes:
        flops: multiplications and additions of matrix products; 0: it only moves bytes
        moved: bytes read and written
        drawn: random numbers
        half: computed in bf16 or fp16
    """

    flops: int
    moved: int
    drawn: int
    half: bool


@dataclass
class Work:
    """Operations with how often each was done; views are none."""

    ops: Counter[Op] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        """Of all operations."""
        return sum(op.flops * count for op, count in self.ops.items())

    @property
    def count(self) -> int:
        """How many operations."""
        return sum(self.ops.values())

    def __add__(self, other: Work) -> Work:
        return Work(self.ops + other.ops)

    def per(self, runs: int) -> Work:
        """The mean of several runs; what is rarer than once a run is counted once."""
        return Work(Counter({op: -(-count // runs) for op, count in self.ops.items()}))
