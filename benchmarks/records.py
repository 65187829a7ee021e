"""What a benchmark leaves behind: NAME.json with command, commit and hardware, and its tables."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, hardware

Section = tuple[str, str]  # what a table says, and the table in Markdown


def command(program: str) -> str:
    """The command line that is running."""
    return shlex.join(["python", "-m", f"benchmarks.{program}", *sys.argv[1:]])


def write_record(
    program: str,
    results: Any,
    sections: list[Section],
    *,
    scale: str,
    folder: Path = RESULTS,
    plots: list[Path] | None = None,
) -> Path:
    """Write `PROGRAM.json`, at another scale than full `PROGRAM-SCALE.json`.

    Args:
        plots: PNG files in `folder`
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record_name(program, scale)}.json"
    content = {
        "program": program,
        "scale": scale,
        "command": command(program),
        "hardware": hardware(),
        "sections": [{"says": says, "table": table} for says, table in sections],
        "plots": [plot.name for plot in plots or []],
        "results": results,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path)
    return path


def record_name(program: str, scale: str) -> str:
    """Of the files of a program at a scale."""
    return program if scale == "full" else f"{program}-{scale}"
