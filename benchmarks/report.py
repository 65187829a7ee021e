"""One self-contained HTML page of all results: no scripts, plots inside, readable on a phone.

python -m benchmarks.report                       # from what is in benchmarks/results/
"""

from __future__ import annotations

import argparse
import ast
import base64
import html
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.records import facts, told

PROGRAMS = (
    "warm_vs_scratch",
    "methods",
    "train_speed",
    "decode_speed",
    "cache",
    "cache_quality",
    "scale",
    "load_time",
    "save_size",
    "matrix",
)
REPORT = Path(__file__).parent / "report.html"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --paper: #fdfdfb;
  --line: #d9d7d0; --shade: #f3f2ed; --link: #0b5394; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4df; --soft: #a3a09a; --paper: #17181a;
  --line: #3a3b3e; --shade: #212326; --link: #8ab8e6; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.25rem 1rem 4rem; max-width: 80rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .75rem; }
a { color: var(--link); }
p { margin: .75rem 0; max-width: 44rem; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); padding-top: 1.5rem; margin-top: 2.25rem; }
nav ul { padding-left: 1.1rem; margin: .5rem 0; }
.facts { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; min-width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line); }
th { background: var(--shade); font-weight: 600; white-space: normal; min-width: 4.5rem;
  vertical-align: bottom; }
th.text, td.text { text-align: left; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper);
  background-clip: padding-box;
  min-width: 7rem; max-width: 11rem; white-space: normal; }
th:first-child { background: var(--shade); }
@media (min-width: 50rem) { td:first-child { min-width: 14rem; max-width: 22rem; } }
.plot { width: fit-content; max-width: 100%; }
th { border-top: 0; }
pre { overflow-x: auto; margin: .75rem 0; padding: .6rem .8rem; background: var(--shade);
  border-radius: 6px; font-size: .8rem; line-height: 1.45; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
p code { background: var(--shade); padding: .1em .3em; border-radius: 3px; font-size: .85em; }
img { display: block; width: 100%; min-width: 36rem; max-width: 52rem; height: auto;
  background: #fff; padding: .5rem; }
"""


@dataclass
class Record:
    """What one program left behind at one scale.

    Attributes:
        body: paragraphs and tables in Markdown
        failed: what it said last, where it did not end well
    """

    program: str
    scale: str
    command: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    body: str = ""
    plots: list[Path] = field(default_factory=list)
    failed: str | None = None


def question(program: str) -> tuple[str, str]:
    """A program's question, and the rest of its docstring less the commands."""
    path = Path(__file__).parent / f"{program}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or program
    first, *rest = re.split(r"\n\s*\n", text)
    prose = [part for part in rest if not part.startswith("    ")]
    return " ".join(first.split()), "\n\n".join(" ".join(part.split()) for part in prose)


def read_record(path: Path) -> Record | None:
    """A record from its JSON file; sections that are not of one run say which each is of.

    None: it is no record, or one of an earlier layout.
    """
    raw: Any = json.loads(path.read_text(encoding="utf-8"))
    if "sections" not in raw:
        return None
    sections = raw["sections"]
    origins = [{key: one[key] for key in ("command", "hardware") if key in one} for one in sections]
    several = any(one != origins[0] for one in origins)
    record = Record(raw["program"], raw["scale"])
    if not several:
        record.command, record.hardware = raw["command"], raw["hardware"]
    parts = [
        f"{one['says']}{f' {told(of)}' if several else ''}\n\n{one['table']}"
        for one, of in zip(sections, origins, strict=True)
    ]
    record.body = "\n\n".join(parts)
    record.plots = [path.parent / name for name in raw["plots"]]
    return record


def records(folder: Path) -> list[Record]:
    """Every record, in the order of the programs; full scale before the others."""
    read = map(read_record, sorted(folder.glob("*.json")))
    found = [record for record in read if record is not None]
    for path in sorted(folder.glob("*.failed")):
        program, _, scale = path.stem.partition("-")
        found.append(Record(program, scale or "full", failed=path.read_text(encoding="utf-8")))
    known = [
        record for record in found if (Path(__file__).parent / f"{record.program}.py").is_file()
    ]
    places = {program: place for place, program in enumerate(PROGRAMS)}
    return sorted(
        known, key=lambda r: (places.get(r.program, len(places)), r.scale != "full", r.scale)
    )


def page(found: list[Record]) -> str:
    """The whole page."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    anchors = [f"{record.program}-{record.scale}" for record in found]
    links = "".join(
        f'<li><a href="#{anchor}">{inline(title(record))}</a></li>'
        for anchor, record in zip(anchors, found, strict=True)
    )
    body = "\n".join(section(record, anchor) for anchor, record in zip(anchors, found, strict=True))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fusion: measured</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>fusion: measured</h1>\n<p class="facts">Made {made}. Times are of the hardware that '
        "each section names; scores of one seed are one draw.</p>\n"
        f"<nav><ul>{links}</ul></nav>\n{body}\n</body>\n</html>\n"
    )


def title(record: Record) -> str:
    """The question, with the scale where it is not full."""
    asked = question(record.program)[0].rstrip(".")
    return asked if record.scale == "full" else f"{asked} ({record.scale} scale)"


def section(record: Record, anchor: str) -> str:
    """One program's part of the page."""
    parts = [f'<section id="{anchor}">', f"<h2>{inline(title(record))}</h2>"]
    parts += [
        f"<p>{inline(text)}</p>" for text in question(record.program)[1].split("\n\n") if text
    ]
    if record.command:
        parts.append(f"<pre><code>{html.escape(record.command)}</code></pre>")
    if record.hardware:
        parts.append(f'<p class="facts">{html.escape(facts(record.hardware))}</p>')
    if record.failed is not None:
        parts.append(f"<p>It failed:</p><pre><code>{html.escape(record.failed)}</code></pre>")
    parts.append(blocks(record.body))
    parts += [picture(path) for path in record.plots if path.is_file()]
    return "\n".join([*parts, "</section>"])


def blocks(markdown: str) -> str:
    """Paragraphs and tables; a line that is only a path to a result is left out."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = [line for line in block.splitlines() if not re.fullmatch(r"\S+\.json", line)]
        rows = [line for line in lines if line.startswith("|")]
        prose = [line for line in lines if not line.startswith("|")]
        if prose:
            parts.append(f"<p>{inline(' '.join(prose))}</p>")
        if rows:
            parts.append(markdown_table(rows))
    return "\n".join(parts)


def markdown_table(lines: list[str]) -> str:
    """A table in a box of its own that scrolls."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines]
    rows = [rows[0], *rows[2:]]
    width = len(rows[0])
    rows = [[*row, *[""] * (width - len(row))][:width] for row in rows]
    text = [any(re.match(r"[A-Za-z(]", row[n]) for row in rows[1:]) for n in range(width)]

    def cells(row: list[str], tag: str) -> str:
        marks = [' class="text"' if wide else "" for wide in text]
        return "".join(f"<{tag}{m}>{inline(c)}</{tag}>" for m, c in zip(marks, row, strict=True))

    head = f"<thead><tr>{cells(rows[0], 'th')}</tr></thead>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def inline(text: str) -> str:
    """Escaped, with `code` and **bold**."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)


def picture(path: Path) -> str:
    """A PNG inside the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    source = f'alt="plot of {html.escape(path.stem)}" src="data:image/png;base64,{content}"'
    return f'<div class="scroll plot"><img {source}></div>'


def write_report(folder: Path, path: Path) -> Path:
    """Write the page of a folder of results."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page(records(folder)), encoding="utf-8")
    temporary.rename(path)
    return path


def main() -> None:
    """Write the page from results that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    print(write_report(arguments.results, arguments.report))


if __name__ == "__main__":
    main()
