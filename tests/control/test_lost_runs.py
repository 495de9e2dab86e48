"""Simplify through the wrapper: a run that is being lost comes back whole, weights, buffers and the optimizer's state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from topoopt import Preserve, Simplify, TopoOptimizer
from topoopt.optimizer.weights import Snapshot


class Notes:
    """A sink that keeps decisions."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.weights: list[str] = []

    def __call__(self, measurement) -> None:
        """Nothing of a measurement is kept."""

    def decided(self, step, decision) -> None:
        self.events += decision.events
        self.weights += [decision.weights] if decision.weights else []


def test_a_run_being_lost_goes_back_and_goes_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 2))
    x = torch.randn(64, 8)
    y = x[:, :2].sin()
    rule = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    topo = TopoOptimizer(
        rule, model, mode=Simplify(effective_rank=0.01, dwell=20, then=Preserve()), every=1000, budget=None
    )
    notes, losses = Notes(), []
    topo.add_sink(notes)
    for step in range(60):
        if step == 30:  # spoiled from outside, in the middle of a dwell: whatever the rate, this run is lost
            with torch.no_grad():
                model[0].weight.mul_(math.nan)
        topo.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        topo.step()
        losses.append(float(loss.detach()))
        if step == 33:
            assert notes.weights[-1] == "back"  # seen by a watch over the loss: the next reading is at step 42
            assert any("the run was being lost (loss not finite)" in event for event in notes.events)
            assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert losses[-1] <= losses[0]


def test_squares_stay_as_large_as_the_lost_run_made_them() -> None:
    weight = nn.Parameter(torch.ones(3))
    rule = torch.optim.Adam([weight], lr=0.1)
    for gradient in (0.1, 100.0, 1e25):
        if gradient == 100.0:
            snapshot = Snapshot(True)
            snapshot.keep(rule)
            kept = weight.detach().clone()
        weight.grad = torch.full((3,), gradient)
        rule.step()
        if gradient == 100.0:
            large = rule.state[weight]["exp_avg_sq"].clone()
            snapshot.back(rule)
            assert torch.equal(weight, kept)
            assert torch.equal(rule.state[weight]["exp_avg_sq"], large)
            assert rule.state[weight]["exp_avg"][0] == pytest.approx(0.01)
    assert torch.isinf(rule.state[weight]["exp_avg_sq"]).all()  # 1e50 is none
    snapshot.back(rule)
    assert torch.isfinite(rule.state[weight]["exp_avg_sq"]).all()


def test_momentum_that_began_after_the_snapshot_goes() -> None:
    weight = nn.Parameter(torch.ones(3))
    rule = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    snapshot = Snapshot(True)
    snapshot.keep(rule)
    weight.grad = torch.full((3,), 1e9)
    rule.step()
    snapshot.back(rule)
    assert torch.equal(weight, torch.ones(3))
    weight.grad = torch.zeros(3)
    rule.step()
    assert torch.equal(weight, torch.ones(3))
