"""The assignment is the best one, and its margins are what another would cost."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.proposals.assignment import NEVER, assign, margins

SCORE = st.sampled_from([NEVER, 0.5, 1.0, 2.0, 3.5, 5.0, 8.0])
MATRIX = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda size: st.lists(
        st.lists(SCORE, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
    )
)
Chosen = tuple[int | None, ...]


def value(scores: list[list[float]], chosen: Chosen) -> float:
    return sum(
        line[column] for line, column in zip(scores, chosen, strict=True) if column is not None
    )


def every(scores: list[list[float]]) -> list[Chosen]:
    """All assignments that use no column twice and make no forbidden pair."""
    columns: list[int | None] = [*range(len(scores[0])), None]
    found = []
    for chosen in itertools.product(columns, repeat=len(scores)):
        taken = [column for column in chosen if column is not None]
        if len(set(taken)) == len(taken) and value(scores, chosen) > NEVER / 2:
            found.append(chosen)
    return found


@settings(deadline=None)
@given(MATRIX)
def test_no_other_assignment_scores_higher(scores: list[list[float]]) -> None:
    best = max(value(scores, chosen) for chosen in every(scores))
    assert value(scores, tuple(assign(scores))) == pytest.approx(best)


@settings(deadline=None)
@given(MATRIX)
def test_a_margin_is_the_loss_of_the_best_assignment_that_moves_the_row(
    scores: list[list[float]],
) -> None:
    chosen = assign(scores)
    found = margins(scores, chosen, list(range(len(scores))))
    best = value(scores, tuple(chosen))
    for row, (margin, _) in enumerate(found):
        others = [value(scores, o) for o in every(scores) if o[row] != chosen[row]]
        wanted = best - max(others) if others else math.inf
        if chosen[row] is None:
            wanted = 0.0
        assert margin == pytest.approx(wanted)


def test_rows_of_one_group_may_swap_for_nothing() -> None:
    scores = [[5.0, 5.0], [5.0, 5.0]]
    assert [margin for margin, _ in margins(scores, [0, 1], [0, 1])] == [0.0, 0.0]
    assert [margin for margin, _ in margins(scores, [0, 1], [7, 7])] == [5.0, 5.0]


def test_a_margin_names_the_row_to_swap_with() -> None:
    scores = [[5.0, 5.0, NEVER], [5.0, 5.0, NEVER], [NEVER, NEVER, 5.0]]
    assert margins(scores, [0, 1, 2], [0, 1, 2])[:2] == [(0.0, 1), (0.0, 0)]
