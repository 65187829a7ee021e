"""Best one-to-one assignment of rows to columns, and how much each choice is worth."""

from __future__ import annotations

import math

import torch

NEVER = -1e6


def assign(scores: list[list[float]]) -> list[int | None]:
    """The column of each row so that the sum of scores is largest; None: better left alone.

    A pair with a score below 0 is never made. Kuhn 1955, in the O(n^3) form with potentials.
    """
    cost = [[-value for value in row] for row in _squared(scores)]
    size = len(cost)
    rows, columns = [0.0] * (size + 1), [0.0] * (size + 1)
    owner, back = [0] * (size + 1), [0] * (size + 1)
    for row in range(1, size + 1):
        owner[0], column = row, 0
        least, seen = [math.inf] * (size + 1), [False] * (size + 1)
        while owner[column]:
            seen[column] = True
            here, step, following = owner[column], math.inf, 0
            for other in range(1, size + 1):
                if seen[other]:
                    continue
                slack = cost[here - 1][other - 1] - rows[here] - columns[other]
                if slack < least[other]:
                    least[other], back[other] = slack, column
                if least[other] < step:
                    step, following = least[other], other
            for other in range(size + 1):
                if seen[other]:
                    rows[owner[other]] += step
                    columns[other] -= step
                else:
                    least[other] -= step
            column = following
        while column:
            owner[column], column = owner[back[column]], back[column]
    found: list[int | None] = [None] * len(scores)
    wide = len(scores[0]) if scores else 0
    for column in range(1, size + 1):
        row = owner[column] - 1
        if row < len(scores) and column <= wide and scores[row][column - 1] > 0:
            found[row] = column - 1
    return found


def margins(
    scores: list[list[float]], chosen: list[int | None], same: list[int]
) -> list[tuple[float, int | None]]:
    """For each row: what the best assignment that moves it costs, and the row it would swap with.

    Args:
        same: a group per row; rows of one group may swap freely, which changes nothing

    The cost is that of the cheapest cycle of moves through the row (Floyd-Warshall on the residual
    graph); infinite where nothing else is possible, 0 for a row that was left alone.
    """
    full = _squared(scores)
    size = len(full)
    column_of = _completed(chosen, size)
    loss = torch.full((size, size), math.inf, dtype=torch.float64)
    for a in range(size):
        for b in range(size):
            twins = a < len(same) and b < len(same) and same[a] == same[b]
            if a != b and full[a][column_of[b]] > NEVER / 2 and not twins:
                loss[a, b] = full[a][column_of[a]] - full[a][column_of[b]]
    distance = loss.clone()
    distance.fill_diagonal_(0.0)
    for k in range(size):
        distance = torch.minimum(distance, distance[:, k : k + 1] + distance[k : k + 1, :])
    result: list[tuple[float, int | None]] = []
    for row in range(len(scores)):
        if chosen[row] is None:
            result.append((0.0, None))
            continue
        cycle = loss[row] + distance[:, row]
        best = int(cycle.argmin()) if size else 0
        value = float(cycle[best]) if size else math.inf
        result.append((value, best if value < math.inf and best < len(scores) else None))
    return result


def _squared(scores: list[list[float]]) -> list[list[float]]:
    """Square, so that every row and every column may stay alone at score 0."""
    tall, wide = len(scores), len(scores[0]) if scores else 0
    size = tall + wide
    full = [[0.0] * size for _ in range(size)]
    for row in range(tall):
        full[row][:wide] = scores[row]
    return full


def _completed(chosen: list[int | None], size: int) -> list[int]:
    taken = {column for column in chosen if column is not None}
    # Alone rows take dummy columns; dummy rows take what is left.
    wide = size - len(chosen)
    dummies = iter([*range(wide, size)])
    found = [column if column is not None else next(dummies) for column in chosen]
    rest = iter([c for c in range(wide) if c not in taken] + list(dummies))
    return found + [next(rest) for _ in range(size - len(chosen))]
