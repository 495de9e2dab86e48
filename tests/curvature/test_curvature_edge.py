"""The edge of stability is where full-batch training settles: r / e near 1, in the units of each rule."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import nn, optim

from topoopt.curvature import SpectralTracker

CASES: dict[str, tuple[Any, float]] = {
    "gd": (lambda p: optim.SGD(p, lr=0.4), 0.9),
    "heavy ball": (lambda p: optim.SGD(p, lr=0.4, momentum=0.9), 0.7),
    "adam, beta1 0": (lambda p: optim.Adam(p, lr=0.004, betas=(0.0, 0.999)), 0.9),
    "adam, beta1 0.5": (lambda p: optim.Adam(p, lr=0.004, betas=(0.5, 0.999)), 0.9),
    "adam, beta1 0.9": (lambda p: optim.Adam(p, lr=0.004), 0.9),
    "rmsprop": (lambda p: optim.RMSprop(p, lr=0.004), 0.9),
}
"""Each rule with the least share of its edge at which it may settle; heavy ball fits the data on the way there."""
STEPS = 600


@pytest.mark.parametrize("rule", CASES)
def test_full_batch_training_settles_at_the_edge(rule: str) -> None:
    make, least = CASES[rule]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 8, generator=generator)
    y = torch.sin(3 * x @ torch.randn(8, 3, generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = make(model.parameters())
    tracker = SpectralTracker(optimizer, products=6)
    late: list[float] = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        if step > 0.6 * STEPS and step % 15 == 0:
            found = tracker.estimate(lambda: (model(x) - y).square().mean())
            late.append(found.r / found.edge)
        optimizer.step()
    assert least <= statistics.median(late) <= 1.1
