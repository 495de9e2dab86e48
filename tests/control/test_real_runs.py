"""Tiny networks, driven by the policies alone: loops of the neurons go, or stay, and the loss is paid back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from topoopt.control import Policy, Preserve, Schedule, Simplify, looks_in

X = torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
T = 2 * math.pi * torch.arange(120, dtype=torch.float64) / 120
BEAN = torch.stack([torch.cos(T) + 0.3 * torch.cos(2 * T), 0.7 * torch.sin(T)], dim=1)


class Net(nn.Module):
    """f(x) = sum a tanh(w x), its neurons (w, a) on a closed curve."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, 120, bias=False, dtype=torch.float64)
        self.out = nn.Linear(120, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.hidden.weight.copy_(BEAN[:, :1])
            self.out.weight.copy_(BEAN[:, 1:].T)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))

    def neurons(self) -> Tensor:
        return torch.cat([self.hidden.weight, self.out.weight.T], dim=1).detach()


def train(driving, policy: Policy, make, steps: int = 700, **more):
    net, y = Net(), 3 * torch.sin(2 * X) + torch.sin(X)
    losses: list[float] = []
    driven = driving.Driven(
        make(net.parameters()), net, policy, lambda: (net(X) - y).square().mean() / 2,
        lambda: {"hidden": (net.neurons(), -1)}, **more,
    )  # fmt: skip
    driving.train(driven, range(steps), losses)
    return driving.measure_cloud(net.neurons()).largest_loop, losses, driven


RULES = {
    "sgd, a small rate": lambda p: SGD(p, 0.001),
    "sgd, a large rate": lambda p: SGD(p, 0.06),
    "momentum": lambda p: SGD(p, 0.01, momentum=0.9),
    "adam": lambda p: Adam(p, 0.01),
}


@pytest.mark.parametrize("rule", RULES)
def test_simplify_takes_the_loop_away_and_the_loss_comes_back(driving, rule: str) -> None:
    loop, losses, driven = train(driving, Simplify(largest_loop=0.01), RULES[rule])
    assert loop <= 0.01
    assert losses[-1] < losses[0] / 5
    assert any("simplify ended: largest loop fell" in event for event in driven.events)
    assert driven.readings < 80
    assert driven.looks < 25


def test_preserve_keeps_it(driving) -> None:
    start = driving.measure_cloud(BEAN).largest_loop
    loop, losses, _ = train(driving, Preserve(), RULES["sgd, a large rate"])
    assert loop >= 0.4 * start
    assert losses[-1] < losses[0] / 5


def test_the_course_is_a_dose_and_a_response(driving) -> None:
    _, _, driven = train(driving, Simplify(largest_loop=0.01), RULES["sgd, a small rate"])
    looks = looks_in(driven.events)
    assert looks[0].dose == pytest.approx(1.03, abs=0.01)
    assert looks[-1].dose > looks[0].dose
    assert looks[-1].left["largest_loop"] < looks[0].left["largest_loop"] / 5


def test_without_a_snapshot_a_run_still_ends_and_says_what_it_could_not_do(driving) -> None:
    """A guard so low that an ordinary excursion counts as being lost."""
    policy = Simplify(largest_loop=1e-6, guard=2.5)
    _, losses, driven = train(driving, policy, RULES["sgd, a small rate"], steps=200, snapshot=False)
    assert any("cannot be taken back" in event for event in driven.events)
    assert all(decision.weights == "" for _, decision in driven.changes)
    _, losses, driven = train(driving, policy, RULES["sgd, a small rate"], steps=200, snapshot=True)
    assert any(decision.weights == "back" for _, decision in driven.changes)
    assert math.isfinite(losses[-1])


def test_large_then_small_in_phases(driving) -> None:
    policy = Schedule({0: Simplify(largest_loop=1e-6), 0.5: Preserve()})
    _, losses, driven = train(driving, policy, RULES["sgd, a small rate"], steps=300, total_steps=300)
    assert driven.steering.decision.policy == "preserve"
    assert any("hand-over to preserve" in event for event in driven.events)
    assert losses[-1] < losses[0]
