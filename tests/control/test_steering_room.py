"""Steering: what it wants, what it reports, what it refuses, and what a fault costs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from topoopt.control import Hold, Policy, Preserve, Reading, Schedule, Simplify, State
from topoopt.errors import TopoError
from topoopt.measurement import Assessment, Decision, GroupMeasurement, Measurement, Phase, SpectralReading
from topoopt.optimizer.steering import FAULTS, Steering


def seen(r: float, **more: Any) -> SpectralReading:
    return SpectralReading(r=r, **({"edge": 2.0, "loss": 1.0, "rule": "sgd"} | more))


@dataclass(frozen=True)
class Says:
    """A policy that answers what the test has put in."""

    answer: Any
    calls: list[int] = field(default_factory=list)
    name = "says"
    steers = True

    def start(self) -> State:
        return {}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        self.calls.append(reading.step)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def drive(steering: Steering, steps: range, rate: float = 0.1, r: float = 1.0, total: int | None = None) -> list[float]:
    """Factors of a run that can afford everything; faults are released as a session does."""
    factors = []
    for step in steps:
        try:
            if steering.due(step, (rate,), total):
                factors.append(steering.decide(seen(r), step, rate, rate, total).scale)
            else:
                factors.append(steering.between(step, rate))
        except Exception as error:
            factors.append(steering.release(str(error)).scale)
    return factors


BAD_FACTORS = [0, 0.0, -1.0, math.nan, math.inf, 1e6, True, "1", None, torch.tensor(0.5), 1j]


@pytest.mark.parametrize("factor", BAD_FACTORS, ids=repr)
def test_a_factor_that_is_no_number_between_0_and_a_million_never_reaches_the_optimizer(factor: Any) -> None:
    steering = Steering(Says((Decision(factor, "says", "target"), {})), 10)
    with pytest.raises(TopoError, match=r"factor must be a number in \(0, 1e\+06\)"):
        steering.decide(seen(1.0), 0, 0.1, 0.1, None)
    assert steering.decision.scale == 1.0


@pytest.mark.parametrize(
    "answer", [None, 0.5, (0.5, {}), Decision(0.5, "says", "x"), (Decision(0.5, "says", "x"), None)]
)
def test_what_is_no_decision_is_refused_with_what_it_should_be(answer: Any) -> None:
    with pytest.raises(TopoError, match="must return"):
        Steering(Says(answer), 10).decide(seen(1.0), 0, 0.1, 0.1, None)


def test_a_policy_that_raises_is_switched_off_after_three_faults_and_said_once() -> None:
    told: list[tuple[int, Decision]] = []
    policy = Says(ZeroDivisionError("mine"))
    steering = Steering(policy, 10, on_change=lambda *change: told.append(change))
    assert drive(steering, range(1000)) == [1.0] * 1000
    assert len(policy.calls) == FAULTS
    assert policy.calls == [0, 16, 80]
    assert [decision.rule for _, decision in told] == ["fault", "fault", "off"]
    assert "switched off after 3 faults" in told[-1][1].note
    assert "mine" in told[-1][1].note


def test_every_change_of_the_factor_is_reported() -> None:
    told: list[tuple[int, Decision]] = []
    steering = Steering(Preserve(0.9), 10, on_change=lambda *change: told.append(change))
    in_force = []
    for step in range(60):
        rate = 0.1 * (1 + 0.005 * step)  # slower than any reading: between them the factor moves with the rate
        due = steering.due(step, (rate,), None)
        scale = steering.decide(seen(20 * rate), step, rate, rate, None).scale if due else steering.between(step, rate)
        in_force.append(scale)
        assert scale == pytest.approx(told[-1][1].scale, rel=0.021)
    assert len(told) > 5
    assert in_force[-1] < in_force[0]


def test_without_r_the_users_rate_stands_whatever_the_gain() -> None:
    steering = Steering(Preserve(0.9), 10)
    steering.remember(measurement(gain=5.0))
    decision = steering.decide(SpectralReading(reason="no loss was given; pass loss="), 0, 0.1, 0.1, None)
    assert decision.scale == 1.0
    assert "r is not known: no loss was given; pass loss=" in decision.note


def test_a_reading_of_a_step_taken_with_a_factor_at_another_rate_is_brought_to_the_users_rate_of_now() -> None:
    steering = Steering(Preserve(0.9), 10)
    decision = steering.decide(seen(2.0, scale=0.5, lr=(0.2,)), 0, 0.1, 0.2, None)  # K = 2 / (0.5 * 0.2)
    assert decision.scale == pytest.approx(0.9 / (20 * 0.1))


@pytest.mark.parametrize("policy", [Hold(0.5), Simplify(largest_loop=0.01)], ids=lambda policy: policy.name)
def test_a_warm_up_from_zero_by_hand_ends_where_a_schedulers_does(policy: Policy) -> None:
    def train(by_hand: bool) -> float:
        steering, rate = Steering(policy, 10), 0.0
        for step in range(400):
            rate = 1e-3 * min(1.0, step / 100)
            peak = rate if by_hand else 1e-3
            if steering.due(step, (rate,), None):
                scale = steering.decide(seen(20 * rate), step, rate, peak, None).scale
            else:
                scale = steering.between(step, rate)
        return scale * rate

    assert train(by_hand=True) == pytest.approx(train(by_hand=False), rel=0.05)
    assert train(by_hand=True) > 0.02


def test_hold_follows_a_schedule_set_by_hand_after_its_warm_up() -> None:
    steering = Steering(Hold(0.5), 10)
    rates = [min(1.0, (step + 1) / 30) * (1.0 if step < 200 else 0.25) for step in range(260)]
    taken = []
    for step, rate in enumerate(rates):
        due = steering.due(step, (rate,), None)
        scale = steering.decide(seen(20 * rate), step, rate, rate, None).scale if due else steering.between(step, rate)
        taken.append(scale * rate)
    assert max(taken) == pytest.approx(0.5 * 2 / 20)
    assert taken[-1] == pytest.approx(max(taken) / 4)


def test_what_is_refused_is_wanted_again_and_between_gives_the_factor() -> None:
    steering = Steering(Preserve(0.9), 10)
    assert steering.due(0, (0.1,), None)
    steering.decide(seen(1.8), 0, 0.1, 0.1, None)
    wanted = [steering.due(step, (0.1,), None) for step in range(1, 6)]
    assert wanted == [False, True, True, True, True]  # the budget said no each time
    assert steering.between(4, 0.2) == pytest.approx(0.25)
    steering.decide(seen(1.8), 5, 0.1, 0.1, None)
    assert not steering.due(6, (0.1,), None)


def test_a_loss_alone_moves_neither_readings_nor_memory() -> None:
    policy = Simplify(largest_loop=0.01, dwell=20)
    steering = Steering(policy, 10, losses=True)
    steering.remember(measurement())
    for step in range(3):
        steering.decide(seen(2.0), step, 0.1, 0.1, None)
    assert steering.watches(4)
    assert not steering.due(4, (0.1,), None)
    before = steering.decision.scale
    assert steering.decide(SpectralReading(loss=1.0), 4, 0.1, 0.1, None).scale == before
    assert steering.readings == 3
    assert not steering.watches(5)


def test_a_run_that_cannot_show_losses_gets_them_by_readings() -> None:
    steering = Steering(Simplify(largest_loop=0.01, dwell=10), 10)
    steering.remember(measurement())
    for step in range(3):
        steering.decide(seen(2.0), step, 0.1, 0.1, None)
    assert steering.due(3, (0.1,), None)


@pytest.mark.parametrize(
    "policy", [Preserve(0.3), Hold(), Simplify(dwell=4), Schedule({0: Simplify(dwell=4), 9: Hold()})], ids=repr
)
def test_a_resumed_steering_goes_on_as_the_unbroken_one(policy: Policy) -> None:
    steering = Steering(policy, 10)
    steering.remember(measurement())
    drive(steering, range(8), r=3.0)
    saved = json.loads(json.dumps(steering.state_dict()))
    assert saved == json.loads(json.dumps(steering.state_dict()))
    expected = drive(steering, range(8, 30), r=3.0)
    again = Steering(policy, 10)
    again.load_state_dict(saved)
    assert drive(again, range(8, 30), r=3.0) == expected


def test_the_neurons_of_all_groups_come_together() -> None:
    steering = Steering(Preserve(), 10)
    steering.remember(measurement(groups={"a": group(), "b": group(largest_loop=0.5, silent=-1, recomputed=True)}))
    known = steering._seen
    assert (known.measured_step, known.topology_step) == (7, 3)  # b's homology is on its way
    assert (known.neurons, known.silent, known.distinct, known.largest_loop) == (8, 1, 6, 0.5)
    assert known.effective_rank == pytest.approx(3.0)


def group(**more: Any) -> GroupMeasurement:
    h0 = np.array([[0.0, 0.001], [0.0, 0.5], [0.0, 0.6], [0.0, math.inf]])
    values = {
        "n": 4, "d": 3, "gain": 0.1, "certified": True, "distortion": (1, 1), "distortion_window": (1, 1),
        "distortion_total": (1, 1), "contraction": 0.0, "merge_margin": 0.001, "diagrams": (h0, np.zeros((0, 2))),
        "diagrams_step": 3, "covering_radius": 0.0, "resolution": 1.0, "recomputed": False, "vanishing": 0, "twins": 2,
        "vanishing_tolerance": 0.01, "twin_tolerance": 0.01, "diameter": 1.0, "total_persistence": (1.1, 0.2),
        "largest_loop": 0.2, "effective_rank": 1.5, "silent": 1,
    }  # fmt: skip
    return GroupMeasurement(**(values | more))


def measurement(gain: float = 0.1, groups: dict[str, GroupMeasurement] | None = None) -> Measurement:
    nothing = Assessment(Phase.UNKNOWN, math.nan, "none", (), ())
    return Measurement(7, (0.1,), 1.0, SpectralReading(), nothing, groups or {"a": group(gain=gain)})
