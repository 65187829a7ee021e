"""The report: one page that stands alone and is made of whatever results are there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Results, RunModule

VOID = {"meta", "img", "br", "link"}

pytestmark = pytest.mark.slow


class Checked(HTMLParser):
    """Tags must nest; every table must be in a box that scrolls; nothing comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tables = 0
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            assert self.open[-1] == ("div", "scroll")
            self.tables += 1
        self.sources += [given[key] or "" for key in ("src", "href") if key in given]
        if tag not in VOID:
            self.open.append((tag, given.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag


def checked(path: Path) -> Checked:
    parser = Checked()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in parser.sources)
    return parser


def test_the_page_has_tables_and_plots_inside_and_needs_nothing_else(warm: Results) -> None:
    page = checked(warm.report)
    assert page.tables == 3
    assert sum(source.startswith("data:") for source in page.sources) == 1
    text = warm.report.read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert "python -m benchmarks.warm_vs_scratch --scale tiny" in text
    assert re.search(r"commit \w+", text)


def test_a_table_of_an_earlier_run_is_shown_with_the_command_and_commit_of_that_run(
    tmp_path: Path, run_module: RunModule
) -> None:
    commands = {commit: f"python -m benchmarks.train_speed --{commit}" for commit in ("aa1", "bb2")}
    origins = [{"command": c, "hardware": {"commit": commit}} for commit, c in commands.items()]
    sections = [{"says": "A <b>.", "table": "| a |\n| --- |\n| 1 |"} | one for one in origins]
    record = {"program": "train_speed", "scale": "full", "sections": sections, "plots": []}
    path = tmp_path / "train_speed.json"
    report = tmp_path / "report.html"
    both = [f"<code>{command}</code>; commit {commit};" for commit, command in commands.items()]
    for kept, shown in ((sections, both), (sections[1:], [])):
        path.write_text(json.dumps(record | origins[1] | {"sections": kept}), encoding="utf-8")
        done = run_module("benchmarks.report", "--results", str(tmp_path), "--report", str(report))
        assert done.returncode == 0, done.stderr
        assert checked(report).tables == len(kept)
        text = report.read_text(encoding="utf-8")
        assert "A &lt;b&gt;." in text and [one for one in both if one in text] == shown
        once = f"<pre><code>{commands['bb2']}</code></pre>"
        assert (once in text) == (len(kept) == 1)


def test_a_program_that_fails_is_in_the_report_and_in_the_exit_status(
    tmp_path: Path, run_module: RunModule
) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be", encoding="utf-8")
    report = tmp_path / "report.html"
    places = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    only = ["--scale", "tiny", "--only", "methods", "--report", str(report)]
    done = run_module("benchmarks", *only, *places)
    assert done.returncode == 1
    assert "failed: methods" in done.stderr
    checked(report)
    assert "It failed" in report.read_text(encoding="utf-8")
