"""Run every benchmark, one after the other, and write the report.

python -m benchmarks --scale quick
python -m benchmarks --scale full --only methods,cache
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import RESULTS, ROOT
from benchmarks.records import record_name
from benchmarks.report import PROGRAMS, REPORT, write_report

LAST_LINES = 20


def has(program: str, option: str) -> bool:
    """Whether a program takes an option."""
    return f'"{option}"' in (Path(__file__).parent / f"{program}.py").read_text(encoding="utf-8")


def existing() -> list[str]:
    """Programs that are there."""
    return [name for name in PROGRAMS if (Path(__file__).parent / f"{name}.py").is_file()]


def run(program: str, scale: str, results: Path, runs: Path | None) -> bool:
    """Run one program; what it prints is kept beside its JSON file. Whether it ended well."""
    options = ["--scale", scale, "--results", str(results)]
    if runs is not None and has(program, "--runs"):
        options += ["--runs", str(runs / f"{program}-{scale}")]
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{program}", *options]
    began = time.monotonic()
    print(f"{program}: {' '.join(command[3:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{program}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(done.stdout, flush=True)
    stem = record_name(program, scale)
    results.mkdir(parents=True, exist_ok=True)
    failed = results / f"{stem}.failed"
    failed.unlink(missing_ok=True)
    if done.returncode:
        text = "\n".join([*done.stdout.splitlines(), *done.stderr.splitlines()][-LAST_LINES:])
        failed.write_text(f"{text}\n", encoding="utf-8")
        print(text, file=sys.stderr)
        return False
    (results / f"{stem}.txt").write_text(done.stdout, encoding="utf-8")
    return True


def main() -> None:
    """Run them; a program that fails does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=("tiny", "quick", "full"), default="quick")
    parser.add_argument("--only", help="programs, with commas; default: all", metavar="A,B")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, help="where models are trained; default: runs/")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    programs = arguments.only.split(",") if arguments.only else existing()
    for program in programs:
        if program not in existing():
            parser.error(f"--only: no program {program}; there are: {', '.join(existing())}")
    results = arguments.results.resolve()
    runs = arguments.runs.resolve() if arguments.runs else None
    bad = [program for program in programs if not run(program, arguments.scale, results, runs)]
    print(write_report(results, arguments.report))
    if bad:
        sys.exit(f"failed: {', '.join(bad)}")


if __name__ == "__main__":
    main()
