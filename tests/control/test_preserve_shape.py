"""Preserve over a shape that the neurons lie on: what is seen, when it is looked at, and the brake."""

from __future__ import annotations

import math

import pytest
import torch

from topoopt.control import Preserve, Reading, State

LR = 0.1


class Run:
    """A run whose largest loop is what the test says; the neurons are seen at the first step, and whenever that is wanted."""

    def __init__(self, policy: Preserve, *, neurons: int = 200) -> None:
        self.policy, self.neurons, self.loop, self.r = policy, neurons, 0.3, 0.1
        self.state: State = policy.start()
        self.step, self.seen, self.value = 0, -1, math.nan
        self.looks: list[int] = []

    def go(self, steps: int = 1):
        for _ in range(steps):
            if self.step == 0 or self.policy.looks(self.step, self.state):
                self.looks.append(self.step)
                self.seen, self.value = self.step, self.loop
            reading = Reading(
                step=self.step, r=self.r, edge=2.0, lr=LR, base_lr=LR, measured_step=self.seen, topology_step=self.seen,
                neurons=self.neurons, largest_loop=self.value,
            )  # fmt: skip
            self.decision, self.state = self.policy.decide(reading, self.state)
            self.step += 1
        return self.decision


def test_the_rate_goes_down_as_the_loop_does() -> None:
    run = Run(Preserve(keep=0.5))
    assert run.go(2).scale == 1.0
    run.loop = 0.3 * 0.65
    low = run.go()
    assert low.rule == "shape"
    assert low.scale == pytest.approx((0.65 - 0.5) / (0.8 - 0.5))
    assert "65% of the largest loop is left" in low.events[0]
    run.loop = 0.3 * 0.5
    assert run.go().scale < 1e-6
    assert run.decision.events == ()


def test_r_counts_beside_it() -> None:
    run = Run(Preserve(keep=0.5))
    run.go(2)
    run.loop, run.r = 0.3 * 0.65, 1.8
    assert run.go().scale == pytest.approx(0.5 * 0.5)


def test_it_looks_at_every_step_while_the_loop_moves_and_ever_more_rarely_while_it_stands() -> None:
    run = Run(Preserve(keep=0.5))
    run.go(100)
    assert len(run.looks) < 10
    assert max(b - a for a, b in zip(run.looks, run.looks[1:], strict=False)) == 32
    before = len(run.looks)
    for share in torch.linspace(1, 0.6, 60).tolist():
        run.loop = 0.3 * share
        run.go()
    assert len(run.looks) > before


@pytest.mark.parametrize(("keep", "loop", "neurons"), [(0.5, 0.05, 200), (0.5, 0.3, 5000), (0.0, 0.3, 200)])
def test_no_shape_many_neurons_or_no_wish_is_r_alone(keep: float, loop: float, neurons: int) -> None:
    run = Run(Preserve(keep=keep), neurons=neurons)
    run.loop = loop
    run.go(2)
    run.loop = 0.0
    assert run.go(100).scale == 1.0
    assert run.looks == [0]
