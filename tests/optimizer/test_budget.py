"""What a policy asks for stays inside the budget, but for a few readings on credit: costs and clock are the test's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from training_problems import Problem

from topoopt import Hold, Preserve, Schedule, Simplify, TopoConfig, TopoOptimizer
from topoopt.config import STEERED, WATCHED
from topoopt.control import Reading, State
from topoopt.measurement import Decision
from topoopt.optimizer import instruments
from topoopt.optimizer.cadence import AFTERMATH, FIRST_STEPS, Cadence
from topoopt.optimizer.steering import MOST, NEEDS

READING, NEURONS, TAPE = 4.0, 2.0, 0.2
"""What things cost, in steps."""


class Priced(Cadence):
    """On a clock of its own: a step takes 1."""

    def __init__(self, every: int, budget: float | None, clock: object = None, needs: int | None = None) -> None:
        self.now = 0.0
        self.taken: list[int] = []
        super().__init__(every, budget, lambda: self.now, needs)

    def book(self, seconds: float) -> None:
        pass

    def passed(self, seconds: float, *, watched: bool) -> None:
        self.now += 1.0 + TAPE * watched
        super().passed(1.0 + TAPE * watched, watched=watched)

    def read(self, step: int, seconds: float, *, warming: bool, known: bool) -> None:
        self.taken.append(step)
        self.now += READING * (1 + AFTERMATH)
        super().read(step, READING, warming=warming, known=known)

    def measured(self, step: int, seconds: float) -> None:
        self.now += NEURONS * (1 + AFTERMATH)
        super().measured(step, NEURONS)


@dataclass(frozen=True)
class Greedy:
    """Wants everything at every step."""

    name = "greedy"
    steers = True
    interval = 1

    def start(self) -> State:
        return {}

    def stale(self, step: int, total_steps: int | None, state: State) -> bool:
        return True

    looks = watches = lambda self, step, state: True

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        return Decision(0.5, "greedy", "half"), state


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Priced, list[str]]]:
    """Trains under a policy; the account at the end, and the events that were told."""
    monkeypatch.setattr(instruments, "Cadence", Priced)

    def led(mode: Any, steps: int, make: Any = None, **options: Any) -> tuple[Priced, list[str]]:
        from torch.optim import SGD

        problem, told = Problem(), list[str]()
        optimizer = (make or SGD)(problem.model.parameters(), lr=0.05)
        topo = TopoOptimizer(optimizer, problem.model, mode=mode, homology=0, **options)

        class Told:
            def __call__(self, measurement: object) -> None:
                pass

            def decided(self, step: int, decision: Decision) -> None:
                told.extend(decision.events)

        topo.add_sink(Told())
        topo.total_steps = steps
        for _ in range(steps):
            topo.zero_grad()
            problem.loss().backward()
            topo.step()
        cadence = topo.topo.cadence
        topo.detach()
        assert isinstance(cadence, Priced)
        return cadence, told

    return led


MODES = [Preserve(), Hold(), Simplify(dwell=10), Schedule({0: Simplify(dwell=10), 0.5: Hold()}), Greedy()]


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("mode", MODES, ids=lambda policy: policy.name)
def test_all_that_a_policy_wants_is_inside_the_budget_but_for_a_credit_that_is_bounded(
    led: Callable[..., Any], mode: Any, budget: float
) -> None:
    cadence, _ = led(mode, 250, budget=budget)
    needs = getattr(mode, "needs", NEEDS)
    credit = needs * (READING + TAPE) + NEURONS
    assert 1 <= needs <= MOST
    assert cadence.spent <= budget * cadence.wall + (1 + AFTERMATH) * credit + 0.1
    assert len(cadence.taken) >= min(needs, 3)
    assert len(cadence.taken) <= needs + budget * cadence.wall / READING
    assert cadence.share == pytest.approx(cadence.spent / cadence.wall, abs=1e-3)


def test_readings_on_credit_lie_apart_and_wait_for_a_warm_preconditioner(led: Callable[..., Any]) -> None:
    from torch.optim import Adam

    cadence, _ = led("hold", 120, make=Adam, budget=0.001)
    assert cadence.taken[:3] == [0, FIRST_STEPS, 2 * FIRST_STEPS]
    assert len(cadence.taken) == Hold.needs


def test_readings_that_fail_use_up_the_credit_too(led: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from topoopt.errors import MeasurementError
    from topoopt.optimizer.reading import Reader

    def fails(*_: object, **__: object) -> None:
        raise MeasurementError("no products today")

    monkeypatch.setattr(Reader, "_by_tape", fails)
    cadence, _ = led("preserve", 150, budget=0.01)
    assert cadence.readings == 0
    assert len(cadence.taken) == Preserve.needs


def test_a_run_that_cannot_pay_for_its_policy_is_told_so_once(
    led: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "topoopt"):
        _, told = led("preserve", 80, budget=0.01)
    said = [event for event in told if "a reading takes" in event]
    assert len(said) == 1
    assert said[0] in caplog.text
    assert "0.2 in this run's 80" in said[0]
    asked = float(said[0].split("give budget=")[1].split(",")[0])
    _, told = led("preserve", 80, budget=asked)
    assert not [event for event in told if "a reading takes" in event]


def test_without_a_limit_everything_is_done_when_it_is_wanted(led: Callable[..., Any]) -> None:
    for budget in (None, 1.0):
        cadence, told = led(Greedy(), 20, budget=budget)
        assert cadence.taken == list(range(20))
        assert not [event for event in told if "a reading takes" in event]


def test_by_default_a_run_that_is_steered_may_be_read_more_often() -> None:
    assert TopoConfig().largest_share == WATCHED == 0.01
    assert TopoConfig(mode="preserve").largest_share == STEERED == 0.05
    assert TopoConfig(mode=Schedule({0: Preserve()})).largest_share == STEERED
    assert TopoConfig(mode="hold", budget=0.01).largest_share == 0.01
    assert TopoConfig(mode="hold", budget=None).largest_share is None
    assert TopoConfig.from_json(TopoConfig(mode="hold").to_json()).largest_share == STEERED
