"""What the checks of a part found, as one message."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from fusion.errors import FusionError, nearest

B = TypeVar("B")


class Failed(Exception):
    """A check that does not hold: what was found, and what to do about it."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}. {remedy}")


class Skipped(Exception):
    """A check that says nothing about this part, with the reason."""


class CheckFailure(AssertionError):
    """A part does not do what every part must; lists every check that does not hold."""


@dataclass
class Report:
    """The checks of one part.

    Attributes:
        skipped, failed: check -> why
    """

    part: str
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.part}: {name}: {why}" for name, why in self._rows()]
        return "\n".join([*lines, f"{self.part}: {len(self.passed)} checks hold"])

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield from ((name, f"FAILED: {why}") for name, why in self.failed.items())
        yield from ((name, f"skipped: {why}") for name, why in self.skipped.items())


def run_checks(
    part: str,
    bench: B,
    checks: Mapping[str, Callable[[B], None]],
    skip: Collection[str] = (),
    limits: Mapping[str, str] | None = None,
) -> Report:
    """Run every check, whatever the others find.

    Args:
        limits: check -> why it cannot hold here

    Raises:
        FusionError: `skip` names no check.
    """
    for name in skip:
        if name not in checks:
            raise FusionError(f'skip: no check "{name}"{nearest(name, checks)}')
    report = Report(part)
    for name, check in checks.items():
        if name in skip:
            report.skipped[name] = "as asked"
            continue
        if why := (limits or {}).get(name):
            report.skipped[name] = why
            continue
        try:
            check(bench)
        except Skipped as why:
            report.skipped[name] = str(why)
        except Failed as why:
            report.failed[name] = str(why)
        except Exception as error:
            report.failed[name] = f"{type(error).__name__}: {error} ({_place(error)})"
        else:
            report.passed.append(name)
    return report


def _place(error: Exception) -> str:
    """Where an error that is nobody's finding was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def insist(reports: list[Report]) -> list[Report]:
    """The reports, if nothing failed.

    Raises:
        CheckFailure: lists everything that did.
    """
    failed = [report for report in reports if report.failed]
    if failed:
        lines = [
            f"{report.part}: {name}: {why}"
            for report in failed
            for name, why in report.failed.items()
        ]
        raise CheckFailure("\n".join(lines))
    return reports


def apart(found: Tensor, expected: Tensor) -> str:
    """How far two tensors are from each other, in words."""
    if found.shape != expected.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    return f"up to {float((found - expected).abs().max()):.2g}"
