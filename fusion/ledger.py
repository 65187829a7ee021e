"""The ledger: one entry per parameter and buffer of a model, total, verified, saved with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from fusion.errors import LedgerError

FORMAT = 2


class Origin(StrEnum):
    """Where a tensor's values come from."""

    LOADED = "loaded"
    INITIALISED = "initialised"
    TIED = "tied"
    COMPUTED = "computed"


@dataclass(frozen=True)
class Entry:
    """What is known of one tensor.

    `digest` is of the bytes at composition; `saved_digest` of the bytes that were last saved, which
    differs from it once the tensor has been trained. `keys` are the source tensors it was made of,
    `operations` what was done to them, as in a rule; where they are of several checkpoints,
    `sources` says of which one each is. A tied tensor has the keys of its own name, if any.
    """

    name: str
    kind: str  # parameter or buffer
    shape: tuple[int, ...]
    dtype: str
    origin: Origin
    frozen: bool = False
    source: str | None = None
    keys: tuple[str, ...] = ()
    operations: tuple[Any, ...] = ()
    digest: str | None = None
    rule: str | None = None
    seed: int | None = None
    tied_to: str | None = None
    saved_digest: str | None = None
    sources: tuple[str, ...] = ()

    @property
    def key(self) -> str | None:
        """The source tensor, the first one of several."""
        return self.keys[0] if self.keys else None

    @property
    def origins(self) -> tuple[tuple[str, str], ...]:
        """(source, key) of every source tensor it was made of."""
        if self.source is None:
            return ()
        return tuple(zip(self.sources or (self.source,) * len(self.keys), self.keys, strict=True))

    @property
    def told(self) -> str:
        """Where the values come from, in words: `net.pt: fc1.weight, scale`, `zeros, seed 0`."""
        if self.origin is Origin.TIED:
            return f"to {self.tied_to}"
        if self.origin is not Origin.LOADED:
            return f"{self.rule}, seed {self.seed}" if self.seed is not None else f"{self.rule}"
        places = " + ".join(f"{source}: {key}" for source, key in self.origins)
        steps = [step if isinstance(step, str) else next(iter(step)) for step in self.operations]
        return ", ".join([places, *(step for step in steps if step != "rename")])

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass
class Ledger:
    """Entries by tensor name, and the source tensors that were left out with the reason."""

    entries: dict[str, Entry] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Record a tensor.

        Raises:
            LedgerError: it is recorded already.
        """
        if entry.name in self.entries:
            raise LedgerError(f"{entry.name}: accounted for twice")
        self.entries[entry.name] = entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __str__(self) -> str:
        """A line per tensor, what was left out, and the tensors per origin."""
        rows = [(e.name, str(list(e.shape)), str(e.origin), e.told) for e in self]
        rows += [(name, "", "left out", why) for name, why in self.ignored.items()]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = ["  ".join(f"{text:<{w}}" for text, w in zip(row, [*widths, 0], strict=True))
                 for row in rows]  # fmt: skip
        counts = ", ".join(f"{count} {origin}" for origin, count in self.counts().items())
        return "\n".join([*lines, f"{len(self)} tensors: {counts}"])

    def part(self, prefix: str) -> Ledger:
        """The entries below a prefix such as `host.`; names keep the prefix."""
        entries = {name: entry for name, entry in self.entries.items() if name.startswith(prefix)}
        return Ledger(entries, dict(self.ignored))

    def prefixed(self, prefix: str) -> Ledger:
        """The same ledger for a module that became a child: names and ties get the prefix."""
        entries = {}
        for entry in self:
            tied_to = prefix + entry.tied_to if entry.tied_to is not None else None
            moved = replace(entry, name=prefix + entry.name, tied_to=tied_to)
            entries[moved.name] = moved
        return Ledger(entries, {prefix + name: why for name, why in self.ignored.items()})

    def merge(self, other: Ledger) -> None:
        """Take in the entries of another ledger."""
        for entry in other:
            self.add(entry)
        self.ignored.update(other.ignored)

    def with_saved_digests(self, digests: dict[str, str]) -> Ledger:
        """A copy that records what was written, by name; what was not has no saved digest."""
        entries = {
            name: replace(entry, saved_digest=digests.get(name))
            for name, entry in self.entries.items()
        }
        return Ledger(entries, dict(self.ignored))

    def counts(self) -> Counter[str]:
        """Tensors per origin."""
        return Counter(str(entry.origin) for entry in self)

    def parameters(self, entries: Iterable[Entry] | None = None) -> tuple[int, int]:
        """(trainable, frozen) parameters; a tied one counts once."""
        trainable = frozen = 0
        for entry in self if entries is None else entries:
            if entry.kind == "parameter" and entry.origin is not Origin.TIED:
                if entry.frozen:
                    frozen += entry.numel
                else:
                    trainable += entry.numel
        return trainable, frozen

    def to_json(self) -> str:
        """JSON text with one entry per line."""
        rows = []
        for entry in self:
            plain = asdict(entry).items()
            row = {k: v for k, v in plain if v is not None and v is not False and v != ()}
            rows.append("    " + json.dumps(row, ensure_ascii=False))
        body = ",\n".join(rows)
        ignored = json.dumps(self.ignored, ensure_ascii=False, indent=2).replace("\n", "\n  ")
        return (
            f'{{\n  "format": {FORMAT},\n  "ignored": {ignored},\n  "entries": [\n{body}\n  ]\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> Ledger:
        """Read what `to_json` wrote.

        Raises:
            LedgerError: the text is not a ledger of this format.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw["format"] != FORMAT:
                raise LedgerError(f"ledger format {raw['format']}; this version reads {FORMAT}")
            ledger = cls(ignored=dict(raw["ignored"]))
            for row in raw["entries"]:
                row["shape"] = tuple(int(size) for size in row.get("shape", ()))
                for listed in ("keys", "operations", "sources"):
                    row[listed] = tuple(row.get(listed, ()))
                row["origin"] = Origin(row["origin"])
                ledger.add(Entry(**row))
        except LedgerError as error:
            raise LedgerError(f"{where}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(f"{where}: not a ledger: {type(error).__name__}: {error}") from None
        return ledger
