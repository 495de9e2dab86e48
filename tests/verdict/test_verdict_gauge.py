"""The gauge: where r/e stands to the band and to the edge, on a scale that holds all three, and none where r tells nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topoopt.verdict import STATES, Verdict
from topoopt.verdict.gauge import Gauge, gauge

ratios = st.floats(1e-9, 1e6)


@given(ratios, st.floats(1e-3, 1.0), st.floats(1.0, 100.0))
def test_the_scale_holds_what_it_marks_in_order(ratio: float, low: float, width: float) -> None:
    scale = gauge("right", ratio, (low, low * width))
    assert scale is not None
    assert scale.ticks[0] <= 0.01
    assert scale.ticks[-1] >= 10
    places = [scale.place(value) for value in sorted((ratio, low, low * width, 1.0))]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert (scale.where == "within") == (low <= ratio <= low * width)
    assert scale.where in str(scale)


@given(ratios, st.floats(1e-3, 1.0), st.floats(1.0, 100.0))
def test_the_line_fits_a_terminal_and_is_plain(ratio: float, low: float, width: float) -> None:
    scale = gauge("too low", ratio, (low, low * width))
    assert scale is not None
    line = scale.line()
    assert len(line) <= 80
    assert line.isascii()
    assert line.split()[2].count("#") == 1


def test_each_power_of_ten_is_as_far_from_the_next() -> None:
    scale = Gauge(0.16, (0.12, 0.67), -2, 1)
    assert [scale.place(tick) for tick in scale.ticks] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert scale.line(31) == "r/e 0.01 -----------[#=====]-|---------- 10   # this run  [=] good  | edge"


@pytest.mark.parametrize("ratio", [None, math.nan, math.inf, "0.2"])
def test_there_is_none_without_a_reading(ratio: Any) -> None:
    assert gauge("not enough readings", ratio, (0.1, 0.7)) is None


@pytest.mark.parametrize("band", [None, (math.nan, 1.0), (0.0, 1.0), (2.0, 1.0), (0.1,), ("a", "b")])
def test_there_is_none_without_a_band(band: Any) -> None:
    assert gauge("right", 0.2, band) is None


def test_there_is_none_where_nothing_moves() -> None:
    assert gauge("collapsed", 0.2, (0.1, 0.7)) is None


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_another_place_speaks_against_is_told(state: str) -> None:
    inside = gauge(state, 0.2, (0.1, 0.7))
    assert inside is not None or state == "collapsed"
    assert (inside is not None and "more than r" in str(inside)) == (state in ("too low", "too high"))


def test_a_notebook_shows_it_with_a_text_instead() -> None:
    shown = Verdict("right", "a", "b", "c", 0.2, (0.1, 0.7))._repr_html_()
    assert "role='img' aria-label='r/e of this run, 0.2" in shown
    assert "<svg" not in Verdict("collapsed", "a", "b", "c", 0.2, (0.1, 0.7))._repr_html_()
