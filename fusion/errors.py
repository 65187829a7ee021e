"""Every error a user can cause: what is wrong, where, and the nearest thing that would work.

All of them derive from `FusionError`; the command line prints the message alone and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FusionError(Exception):
    """Base class: one message for the user, never a traceback on the command line."""

    located = False  # whether it says which recipe it is about


class RecipeError(FusionError):
    """A recipe (or an override on the command line) does not say something that can be built."""


class RegistryError(FusionError):
    """A name is unknown, registered twice, or its plugin failed to import."""


class SourceError(FusionError):
    """A checkpoint cannot be read: missing, truncated, of an unknown format, unsafe."""


class KeyMapError(FusionError):
    """Rules that overlap, match nothing, or have a hole that cannot be filled."""


class WarmStartError(FusionError):
    """Tensors that are not accounted for; lists every one of them, not only the first."""


class LedgerError(FusionError):
    """A ledger that is not total, or tensors that are not what the ledger says."""


class ShapeError(FusionError):
    """Widths or lengths that do not fit together."""


class SiteError(FusionError):
    """A site that the host does not have, or a host whose sites are not known."""


class DataError(FusionError):
    """Text that cannot be used: misaligned, empty, not UTF-8, too long."""


class ModelError(FusionError):
    """A saved model directory that is incomplete or that was changed."""


class TrainingError(FusionError):
    """A run that cannot start or resume where it was told to."""


class NoRoomError(FusionError):
    """A file or directory that the disk has no room for."""

    def __init__(self, place: object, reason: str) -> None:
        super().__init__(f"{place}: cannot be written: {reason}")
        self.reason = reason


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: "x"` for the closest known name, else `; known: a, b, c`, else nothing."""
    options = sorted(set(known))
    if not options:
        return ""
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f'; nearest: "{close[0]}"'
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"; known: {shown}"
