"""When to read and when to measure, on a clock of the test's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from topoopt.optimizer.cadence import (
    AFTERMATH,
    CLOSEST,
    CREDIT,
    FIRST_STEPS,
    HOOKS,
    PER_MEASUREMENT,
    RETRIES,
    Cadence,
    Due,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ran:
    cadence: Cadence
    clock: Clock
    readings: list[int] = field(default_factory=list)
    """Of r alone, and those that measurements took along."""
    measurements: list[int] = field(default_factory=list)
    asked: int = 0
    """How often what is due was looked up."""


def simulate(
    steps: int,
    *,
    every: int = 100,
    budget: float | None = 0.01,
    step: float = 1.0,
    reading: float = 1.0,
    neurons: float = 0.5,
    total: int | None = None,
    warm: int = 0,
    known: bool = True,
    readable: bool = True,
) -> Ran:
    """A run as the wrapper leads it: asked at the end of each step, booked after each."""
    clock = Clock()
    ran = Ran(Cadence(every, budget, clock), clock)
    ran.cadence.total_steps = total
    due = ran.cadence.due(0, readable=readable)
    for at in range(steps):
        ran.cadence.start(at)
        clock.now += step
        if due is not Due.NOTHING and readable:
            clock.now += reading
            ran.cadence.read(at, reading, warming=at < warm, known=known)
            ran.readings.append(at)
        if due is Due.MEASUREMENT:
            clock.now += neurons
            ran.cadence.measured(at, neurons)
            ran.measurements.append(at)
        following, due = at + 1, Due.NOTHING
        if ran.cadence.candidate(following):
            ran.asked += 1
            due = ran.cadence.due(following, readable=readable)
            if due is Due.NOTHING:
                ran.cadence.refused(following)
    return ran


@pytest.mark.parametrize("total", [None, 20_000])
def test_what_cannot_be_afforded_is_not_asked_for_at_every_step(total: int | None) -> None:
    """Each wait is a 64th of what has passed: some 64 log(N / 64) times on top of the first 64 steps."""
    ran = simulate(20_000, every=10, budget=1e-4, reading=30.0, neurons=30.0, total=total)
    assert ran.asked < 64 * (2 + math.log(20_000 / 64))
    assert ran.readings == simulate(20_000, every=10, budget=1e-4, reading=30.0, neurons=30.0, total=total).readings


def test_without_a_budget_measurements_come_every_so_many_steps_whatever_they_cost() -> None:
    ran = simulate(51, every=10, budget=None, reading=1e6, neurons=1e6)
    assert ran.measurements == [0, 10, 20, 30, 40, 50]


@given(every=st.integers(1, 60), reading=st.floats(1e-3, 50), neurons=st.floats(1e-3, 50))
def test_a_budget_of_one_never_binds(every: int, reading: float, neurons: float) -> None:
    ran, free = (
        simulate(8 * every, every=every, budget=budget, step=1e-3, reading=reading, neurons=neurons)
        for budget in (1.0, None)
    )
    assert (ran.readings, ran.measurements) == (free.readings, free.measurements)


@given(
    every=st.integers(1, 100),
    budget=st.floats(0.002, 0.5),
    step=st.floats(0.01, 1),
    reading=st.floats(0.001, 10),
    neurons=st.floats(0.001, 10),
    total=st.sampled_from([None, 500]),
)
@example(every=10, budget=0.01, step=1.0, reading=1.0, neurons=1.0, total=None)
@example(every=100, budget=0.01, step=1.0, reading=1.0, neurons=1.0, total=500)
def test_the_share_ends_within_the_budget_but_for_what_is_taken_on_credit(
    every: int, budget: float, step: float, reading: float, neurons: float, total: int | None
) -> None:
    ran = simulate(500, every=every, budget=budget, step=step, reading=reading, neurons=neurons, total=total)
    credit = (1 + CREDIT) * reading + neurons
    assert ran.measurements[0] == 0
    assert ran.cadence.share * ran.cadence.wall <= budget * ran.cadence.wall * 1.05 + (1 + AFTERMATH) * credit + 1e-3


def test_a_run_of_known_length_spends_its_budget_over_all_of_it_and_more_at_its_beginning() -> None:
    """The n-th of N equal costs falls due at (n / N)^2."""
    ran = simulate(10_000, every=1, budget=0.02, reading=1.0, neurons=0.0, total=10_000)
    later = ran.readings[CREDIT:]
    count = len(ran.readings)
    assert 0.015 < ran.cadence.share <= 0.0201
    for n in range(len(later) // 5, len(later)):
        assert later[n] / 10_000 == pytest.approx(((n + CREDIT) / count) ** 2, abs=0.02)
    blind = simulate(10_000, every=1, budget=0.02, reading=1.0, neurons=0.0)
    assert sum(at < 2_500 for at in ran.readings) > 1.6 * sum(at < 2_500 for at in blind.readings)
    assert blind.readings[len(blind.readings) // 2] / 10_000 == pytest.approx(0.5, abs=0.05)


def test_costly_ones_are_stretched() -> None:
    ran = simulate(2_000, every=10, budget=0.01, reading=1.0, neurons=1.0)
    assert all(later - earlier >= 80 for earlier, later in pairwise(ran.readings[CREDIT:]))
    assert ran.cadence.share <= 0.0105


def test_the_first_readings_are_taken_on_credit_and_the_second_once_the_rule_is_warm() -> None:
    assert simulate(90, every=100, budget=0.001, warm=FIRST_STEPS).readings == [0, FIRST_STEPS]
    assert simulate(90, every=100, budget=0.001).readings == [0, FIRST_STEPS]


def test_while_all_that_was_read_is_warming_up_one_more_is_taken_on_credit() -> None:
    ran = simulate(90, every=100, budget=0.001, warm=50)
    assert ran.readings == [0, FIRST_STEPS, 2 * FIRST_STEPS]
    assert len(ran.readings) == 1 + CREDIT


@pytest.mark.parametrize("neurons", [0.1, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("total", [None, 20_000])
def test_readings_come_first_and_measurements_have_their_turn(neurons: float, total: int | None) -> None:
    """However much dearer they are than a reading: they take no more of the budget than readings do."""
    ran = simulate(20_000, every=10, budget=0.02, neurons=neurons, total=total)
    between = [sum(a < at <= b for at in ran.readings) for a, b in pairwise(ran.measurements)]
    assert len(between) >= 4
    expected = max(PER_MEASUREMENT, math.ceil(neurons)) + 1
    assert set(between[1:]) <= {expected, expected + 1}
    assert set(ran.measurements) <= set(ran.readings)
    assert ran.cadence.share <= 0.0205


def test_where_r_cannot_be_read_neurons_are_measured_all_the_same() -> None:
    ran = simulate(100, every=10, budget=0.5, readable=False)
    assert ran.readings == []
    assert ran.measurements == list(range(0, 100, 10))


def test_a_reading_that_failed_is_tried_again_a_few_times_and_then_in_its_turn() -> None:
    ran = simulate(100, every=100, budget=None, known=False)
    assert ran.readings[: RETRIES + 1] == list(range(RETRIES + 1))
    assert all(b - a == 100 // CLOSEST for a, b in pairwise(ran.readings[RETRIES:]))
    assert ran.cadence.readings == 0


def test_what_fell_on_a_step_that_was_none_is_done_at_the_next() -> None:
    cadence = Cadence(10, None, Clock())
    cadence.start(0)
    assert cadence.due(0) is Due.MEASUREMENT
    cadence.postpone(0)
    assert cadence.due(1) is Due.MEASUREMENT
    assert cadence.stretched == 1


def test_the_hooks_of_ordinary_steps_are_within_the_budget() -> None:
    """Steps so short that their hooks are 1 % of them leave nothing to measure with."""
    ran = simulate(5_000, every=10, budget=0.01, step=100 * HOOKS, reading=10 * HOOKS, neurons=0.0)
    assert len(ran.readings) == CREDIT
    assert ran.cadence.share == pytest.approx(0.01, rel=0.02)


def test_setup_is_no_measuring() -> None:
    clock = Clock()
    cadence = Cadence(1, 0.1, clock)
    cadence.start(0)
    clock.now += 30.0
    cadence.setup = 30.0
    assert cadence.wall == 0.0
    clock.now += 10.0
    cadence.measured(0, 1.0)
    cadence.candidate(1)
    assert cadence.share == pytest.approx(0.1 * (1 + AFTERMATH), rel=1e-5)


def test_sinks_and_policies_are_booked_like_readings() -> None:
    clock = Clock()
    cadence = Cadence(1, 0.1, clock)
    cadence.start(0)
    clock.now += 10.0
    cadence.book(2.0)
    cadence.candidate(1)
    assert cadence.share == pytest.approx(0.2, rel=1e-5)
    cadence.read(0, 0.1, warming=False, known=True)
    assert not cadence.affordable(0.01)


def test_a_resumed_run_is_due_at_once_and_has_an_account_of_its_own() -> None:
    cadence = Cadence(10, 0.01, Clock())
    cadence.resumed(1_000)
    assert cadence.due(1_000) is Due.MEASUREMENT
    cadence.start(1_000)
    assert math.isnan(cadence.step_seconds)
    assert cadence.share == 0.0


def test_the_plan_says_what_comes() -> None:
    assert simulate(0).cadence.plan(3) == ""
    said = simulate(500, every=10, budget=0.01, total=10_000).cadence.plan(3)
    planned = [int(said.split(word)[0].split()[-1]) for word in (" readings", " measurements")]
    ran = simulate(10_000, every=10, budget=0.01, total=10_000)
    assert planned[0] == pytest.approx(len(ran.readings) - len(ran.measurements), rel=0.2)
    assert planned[1] == pytest.approx(len(ran.measurements), rel=0.2)
    assert "3 groups" in said
    assert "one about every" in simulate(500, budget=0.01).cadence.plan(3)


def test_before_a_step_has_passed_measuring_is_no_share_of_the_run() -> None:
    clock = Clock()
    cadence = Cadence(1, 0.1, clock)
    cadence.start(0)
    clock.now += 3.0
    assert math.isnan(cadence.share_with(3.0))
    cadence.measured(0, 3.0)
    assert math.isnan(cadence.share)
    clock.now += 7.0
    cadence.candidate(1)
    assert cadence.share == pytest.approx(0.3 * (1 + AFTERMATH), rel=1e-5)
    assert cadence.share_with(1.0) == pytest.approx(0.3 * (1 + AFTERMATH) + 0.1, rel=1e-5)
