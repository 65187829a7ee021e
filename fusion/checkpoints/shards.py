"""Checkpoints in several files with an index that says which tensor is in which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fusion.errors import SourceError, nearest

_SHOWN = 3


@dataclass(frozen=True)
class Shards:
    """An index file: tensor name -> name of a file beside it."""

    index: Path
    weight_map: Mapping[str, str] = field(repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.index.parent / name for name in sorted(set(self.weight_map.values())))

    def check(self, found: Mapping[str, Path]) -> None:
        """Compare the index with what its files hold.

        Args:
            found: tensor name -> the file that it is in

        Raises:
            SourceError: a tensor is not where the index says, or is not in the index.
        """
        problems = []
        for name, shard in self.weight_map.items():
            if name not in found:
                problems.append(f"{name} is not in {shard}{nearest(name, found)}")
            elif found[name].name != shard:
                problems.append(f"{name} is in {found[name].name}, not in {shard}")
        problems += [
            f"{path.name} holds {name}, which the index lacks"
            for name, path in found.items()
            if name not in self.weight_map
        ]
        if problems:
            more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
            raise SourceError(f"{self.index}: {'; '.join(problems[:_SHOWN])}{more}")


def read_index(index: Path) -> Shards:
    """`*.index.json` of Hugging Face; shards lie beside it (a link may lead elsewhere).

    Raises:
        SourceError: it is no index, a shard is missing, or would lie outside of the directory.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
        raise SourceError(f"{index}: not a shard index: {error}") from None
    if not names:
        raise SourceError(f"{index}: not a shard index: its weight_map is empty")
    for name in names:
        if not isinstance(name, str) or not name:
            raise SourceError(f"{index}: not a shard index: shard {name!r} is no file name")
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise SourceError(f"{index}: shard {name!r} is outside the directory")
        if not (index.parent / name).is_file():
            raise SourceError(f"{index}: shard {name} is missing")
    return Shards(index, weight_map)
