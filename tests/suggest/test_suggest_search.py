"""Where the short runs are made, and what is made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topoopt.suggestion.trials import SPACING, lowest, search

reals = st.floats(-5, 5)


@given(centre=reals, start=reals, count=st.integers(3, 8))
def test_a_search_goes_downhill_and_never_runs_a_rate_twice(centre: float, start: float, count: int) -> None:
    runs: list[float] = []

    def run(x: float) -> float:
        runs.append(x)
        return abs(x - centre)

    tried = search(run, start, count)
    assert len(set(runs)) == len(runs) == len(tried) == count
    assert list(tried) == sorted(tried)
    if abs(centre - start) < SPACING:  # within the first two neighbours: the minimum is bracketed
        assert min(tried) <= centre <= max(tried)
    assert min(tried.values()) <= abs(start - centre)


@given(centre=st.floats(-0.4, 0.4), bend=st.floats(0.05, 0.2), left=st.floats(0.5, 1.0), right=st.floats(0.5, 1.0))
def test_the_minimum_of_a_parabola_is_found(centre: float, bend: float, left: float, right: float) -> None:
    points = {x: bend * (x - centre) ** 2 for x in (-left, 0.0, right)}
    a, b, _ = np.polyfit(list(points), list(points.values()), 2)
    if min(points, key=lambda x: points[x]) == 0.0:
        assert lowest(points) == pytest.approx(np.clip(-b / (2 * a), -left / 2, right / 2), abs=1e-6)


def test_a_lost_neighbour_pushes_no_further_than_a_bad_one() -> None:
    bad = {-1.0: 0.2, 0.0: 0.0, 1.0: 0.5}
    assert lowest(bad | {1.0: math.inf}) == pytest.approx(lowest(bad))
    assert lowest(bad) < 0.0


def test_the_lowest_at_an_end_is_that_end_and_equals_are_their_middle() -> None:
    assert lowest({0.0: 3.0, 1.0: 2.0, 2.0: 1.0}) == 2.0
    assert lowest({0.0: 1.0, 1.0: 1.0, 2.0: 1.0}) in (0.0, 1.0)
    assert lowest({0.0: 1.0}) == 0.0


def test_a_search_that_begins_lost_goes_down() -> None:
    tried = search(lambda x: math.inf if x > -SPACING * 1.5 else -x, 0.0, 3)
    assert list(tried) == pytest.approx([-2 * SPACING, -SPACING, 0.0])
