"""When to measure, on a clock of the test's own."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topoopt.optimizer.pacing import AFTERMATH, HOOKS, Pacing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulate(
    every: int, budget: float | None, step_seconds: float, cost: float, steps: int
) -> tuple[Pacing, list[int]]:
    clock = Clock()
    pacing = Pacing(every, budget, clock)
    measured = []
    for step in range(steps):
        pacing.start()
        if pacing.candidate(step):
            if pacing.affordable():
                clock.now += cost
                pacing.measured(step, cost)
                measured.append(step)
            else:
                pacing.postpone(step)
        clock.now += step_seconds
    return pacing, measured


def test_cheap_measurements_come_every_so_many_steps() -> None:
    pacing, measured = simulate(10, 0.5, 1.0, 0.01, 50)
    assert measured == [0, 10, 20, 30, 40]
    assert pacing.stretched == 0


def test_costly_measurements_are_stretched_and_counted() -> None:
    pacing, measured = simulate(10, 0.01, 1.0, 1.0, 1000)
    assert measured[0] == 0
    assert all(later - earlier >= 100 for earlier, later in itertools.pairwise(measured))
    assert pacing.stretched > 0
    assert pacing.share <= 0.011


def test_the_hooks_of_ordinary_steps_are_within_the_budget() -> None:
    """Steps so short that their hooks are 1 % of them leave nothing to measure with."""
    clock = Clock()
    pacing = Pacing(10, 0.01, clock)
    pacing.start()
    pacing.measured(0, 10 * HOOKS)
    for step in range(10, 1000, 10):
        clock.now += 10 * 100 * HOOKS
        assert pacing.candidate(step)
        assert not pacing.affordable()
        pacing.postpone(step)
    assert pacing.share == pytest.approx(0.01, rel=0.02)


def test_without_a_budget_nothing_is_stretched() -> None:
    _, measured = simulate(10, None, 1.0, 1e6, 50)
    assert measured == [0, 10, 20, 30, 40]


@given(
    every=st.integers(1, 20),
    budget=st.floats(0.001, 0.5),
    step=st.floats(0.01, 1),
    cost=st.floats(0.001, 10),
)
def test_the_share_ends_within_the_budget(every: int, budget: float, step: float, cost: float) -> None:
    pacing, measured = simulate(every, budget, step, cost, 400)
    # The first measurement is taken on credit; from the second on the account is in the black when one is taken.
    assert pacing.share <= budget * (1 + 1e-9) or len(measured) == 1


def test_setup_is_no_measuring() -> None:
    clock = Clock()
    pacing = Pacing(1, 0.1, clock)
    pacing.start()
    clock.now += 30.0
    pacing.setup = 30.0
    assert pacing.wall == 0.0
    clock.now += 10.0
    pacing.measured(0, 1.0)
    assert pacing.share == pytest.approx(0.1 * (1 + AFTERMATH))


def test_the_account_survives_a_resume() -> None:
    first, _ = simulate(10, 0.01, 1.0, 1.0, 150)
    clock = Clock()
    second = Pacing(10, 0.01, clock)
    second.start()
    second.load_state_dict(first.state_dict())
    assert second.spent == first.spent
    assert second.wall == pytest.approx(first.wall)
    assert second.candidate(150) == first.candidate(150)
