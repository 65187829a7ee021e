"""How sure a proposal is, and what it leaves open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Confidence = Literal["low", "fair", "high"]
LEVELS: tuple[Confidence, ...] = ("low", "fair", "high")


@dataclass(frozen=True)
class Evidence:
    """How sure a match is, what that rests on, and what the two headers do not decide.

    Attributes:
        undecided: (why, which tensors)
    """

    confidence: Confidence
    rests_on: tuple[str, ...] = ()
    undecided: tuple[tuple[str, str], ...] = ()

    def doubted(self, why: str, what: str, cap: Confidence = "low") -> Evidence:
        """The same with one more thing that is undecided."""
        lower = min(self.confidence, cap, key=LEVELS.index)
        return Evidence(lower, self.rests_on, (*self.undecided, (why, what)))

    def capped(self, cap: Confidence) -> Evidence:
        """No surer than `cap`."""
        return Evidence(min(self.confidence, cap, key=LEVELS.index), self.rests_on, self.undecided)

    def doubts(self) -> tuple[str, ...]:
        """What is undecided, with the tensors of one reason together."""
        found: dict[str, dict[str, None]] = {}
        for why, what in self.undecided:
            found.setdefault(why, {})[what] = None
        return tuple(f"{why}: {', '.join(names)}" for why, names in found.items())


def together(several: Iterable[Evidence]) -> Evidence:
    """The weakest of them, with everything undecided once."""
    listed = list(several)
    lowest = min((one.confidence for one in listed), key=LEVELS.index)
    rests = dict.fromkeys(text for one in listed for text in one.rests_on)
    doubts = dict.fromkeys(pair for one in listed for pair in one.undecided)
    return Evidence(lowest, tuple(rests), tuple(doubts))
