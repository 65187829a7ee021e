"""What a benchmark leaves behind: NAME.json with command, commit and hardware, and its tables.

Where earlier runs' results are kept in a record, every section says which run it is of.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, commit, hardware

commit()  # as the program begins: another may come before it ends
Section = tuple[str, str]  # what a table says, and the table in Markdown
Origin = dict[str, Any]  # "command" and "hardware", the commit in it; empty: not recorded


def command(program: str) -> str:
    """The command line that is running."""
    return shlex.join(["python", "-m", f"benchmarks.{program}", *sys.argv[1:]])


def origin(program: str) -> Origin:
    """Of what is measured now."""
    return {"command": command(program), "hardware": hardware()}


def told(of: Origin) -> str:
    """Command, commit and hardware, in a line."""
    if not of:
        return "By an earlier run; its command, commit and hardware are not in the record."
    return f"`{of['command']}`; {facts(of['hardware'])}."


def facts(hardware: dict[str, Any]) -> str:
    """Commit and hardware in a line."""
    shown = [f"commit {hardware.get('commit', 'unknown')}"]
    shown.append(f"{hardware.get('cores')} cores of {hardware.get('processor')}")
    shown.append(f"{hardware.get('memory_gib')} GiB")
    shown.append(f"GPU: {hardware.get('gpu') or 'none'}")
    versions = ("torch", "transformers", "python")
    return "; ".join([*shown, *(f"{name} {hardware.get(name)}" for name in versions)])


def write_record(
    program: str,
    results: Any,
    sections: list[Section],
    *,
    scale: str,
    folder: Path = RESULTS,
    plots: list[Path] | None = None,
    origins: list[Origin] | None = None,
) -> Path:
    """Write `PROGRAM.json`, at another scale than full `PROGRAM-SCALE.json`.

    Args:
        plots: PNG files in `folder`
        origins: of the sections, one for each; None: all are of this run
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record_name(program, scale)}.json"
    this = origin(program)
    content = {
        "program": program,
        "scale": scale,
        **this,
        "sections": [
            {"says": says, "table": table, **of}
            for (says, table), of in zip(sections, origins or [this] * len(sections), strict=True)
        ],
        "plots": [plot.name for plot in plots or []],
        "results": results,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path)
    return path


def print_record(
    program: str, results: Any, sections: list[Section], *, scale: str, folder: Path
) -> None:
    """Print the tables, write the record of this run, and say where it is."""
    print("\n\n".join(text for section in sections for text in section))
    print(write_record(program, results, sections, scale=scale, folder=folder))


def record_name(program: str, scale: str) -> str:
    """Of the files of a program at a scale."""
    return program if scale == "full" else f"{program}-{scale}"
