"""Curves as PNG files, by matplotlib (extra: benchmarks)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.runs import Point, Run

# Okabe and Ito's colours, which the colour-blind tell apart
COLOURS = ("#000000", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#56B4E9", "#888888")
Reading = Callable[[Point], float]
AXES: dict[str, Reading] = {
    "seconds": lambda point: point.seconds,
    "updates": lambda point: point.updates,
    "million target tokens": lambda point: point.tokens / 1e6,
}


def learning_curves(rows: dict[str, list[Run]], before: dict[str, list[Run]], path: Path) -> Path:
    """Dev BLEU of every row against seconds, updates and tokens: a line per seed.

    The left column starts every row at 0; in the right one, rows that start from a trained host
    start where that host's training ended.

    Args:
        before: row -> the host of each of its runs, for rows that have one
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(AXES), 2, figsize=(9, 10), sharey=True, layout="constrained")
    for line, (label, reading) in zip(grid, AXES.items(), strict=True):
        for panel, counted in zip(line, (False, True), strict=True):
            for colour, (row, runs) in zip(COLOURS, rows.items(), strict=False):
                for number, run in enumerate(runs):
                    host = before[row][number] if counted and row in before else None
                    start = reading(host.points[-1]) if host is not None else 0.0
                    panel.plot(
                        [start + reading(point) for point in run.points],
                        [point.bleu for point in run.points],
                        color=colour,
                        linewidth=1.2,
                        alpha=0.85,
                        label=row if number == 0 else None,
                    )
            panel.set_xlabel(f"{label}, {'with' if counted else 'without'} the host's own training")
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("dev BLEU, greedy")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.rename(path)
    pyplot.close(figure)
    return path
