"""An eigenvalue that overtakes the one that is followed is found, at the latest when the tracker starts cold."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from topoopt.curvature import SpectralTracker
from topoopt.curvature.tracker import RESTART


def test_a_crossing_is_found_within_one_round_of_estimates() -> None:
    torch.manual_seed(0)
    weights = nn.Parameter(torch.zeros(200, dtype=torch.float64))
    curvature = torch.rand(200, dtype=torch.float64)
    curvature[0] = 5.0
    optimizer = torch.optim.SGD([weights], lr=0.1)
    tracker = SpectralTracker(optimizer, products=2)

    def loss() -> torch.Tensor:
        return (curvature * weights.square()).sum() / 2 + weights[0]  # its gradient shows the first direction only

    assert tracker.estimate(loss).r == pytest.approx(0.5, rel=1e-3)
    curvature[1] = 20.0  # a direction that neither the last vector nor the gradient has any part in
    seen = [tracker.estimate(loss).r for _ in range(RESTART)]
    assert max(seen) == pytest.approx(2.0, rel=1e-3)
    assert seen[-1] == pytest.approx(2.0, rel=1e-3)


def test_a_saved_tracker_keeps_its_count_and_starts_cold() -> None:
    """What it remembers is as large as the weights and found anew in a few products: it is no part of a checkpoint."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss() -> torch.Tensor:
        return model(x).square().mean()

    first = SpectralTracker(optimizer, products=3, seed=5, first=20)
    for _ in range(3):
        first.estimate(loss)
    state = json.loads(json.dumps(first.state_dict()))
    assert state == first.state_dict()
    second = SpectralTracker(optimizer, products=3, seed=5, first=20)
    second.load_state_dict(state)
    assert not second.is_warm
    a, b = first.estimate(loss), second.estimate(loss)
    assert (a.products, b.products, a.engine) == (3, 20, b.engine)
    assert a.r == pytest.approx(b.r, rel=1e-3)
    assert second.state_dict() == first.state_dict()
