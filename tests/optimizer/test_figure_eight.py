"""The figure eight: below eta* both loops of the neurons survive, at the edge they vanish, whatever rate the user gave.

200 neurons (w, a) start on a figure eight; f(x) = sum a tanh(w x) learns 5 sin(2x) by full-batch gradient descent.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from topoopt import Preserve, TopoOptimizer
from topoopt.control import Policy
from topoopt.geometry import distances
from topoopt.homology import persistence


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        t = 2 * math.pi * torch.arange(200, dtype=torch.float64) / 200
        self.hidden = nn.Linear(1, 200, bias=False, dtype=torch.float64)
        self.out = nn.Linear(200, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.sin(t)[:, None])
            self.out.weight.copy_((torch.sin(t) * torch.cos(t))[None])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))

    def loops(self) -> list[float]:
        """The two largest H1 persistences over the diameter."""
        d = distances(torch.stack([self.hidden.weight[:, 0], self.out.weight[0]], dim=1))
        lives = [(death - birth) / float(d.max()) for birth, death in persistence(distances=d).diagrams[1]]
        return ([*sorted(lives, reverse=True), 0.0, 0.0])[:2]


def train(mode: str | Policy, lr: float) -> tuple[list[float], float, float]:
    net = Net()
    x = torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
    y = 5 * torch.sin(2 * x)

    def loss() -> Tensor:
        return (net(x) - y).square().mean() / 2

    first = float(loss().detach())
    optimizer = TopoOptimizer(torch.optim.SGD(net.parameters(), lr=lr), net, mode=mode, budget=None)
    for _ in range(2000):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.detach()
    return net.loops(), first, float(loss().detach())


def test_it_starts_with_two_loops() -> None:
    assert Net().loops() == pytest.approx([0.337, 0.337], abs=1e-3)


@pytest.mark.parametrize("lr", [0.01, 0.03, 0.06])
def test_preserve_keeps_both_loops(lr: float) -> None:
    """About half of each loop at least, for which it slows down; by r alone fewer stay, at a lower loss."""
    loops, first, last = train("preserve", lr)
    assert min(loops) >= 0.16
    assert last < 0.03 * first
    loops, _, last = train(Preserve(keep=0.0), lr)
    assert min(loops) >= 0.1
    assert last < 0.01 * first


@pytest.mark.parametrize("lr", [0.01, 0.03, 0.06])
def test_simplify_removes_them_at_a_finite_loss(lr: float) -> None:
    loops, first, last = train("simplify", lr)
    assert max(loops) <= 0.01
    assert last < first


@pytest.mark.parametrize("lr", [0.01, 0.02])
def test_a_small_plain_rate_keeps_them(lr: float) -> None:
    loops, _, _ = train("report", lr)
    assert min(loops) >= 0.1


def test_a_large_plain_rate_removes_them() -> None:
    loops, _, _ = train("report", 0.04)
    assert max(loops) <= 0.01


def test_the_first_reading_is_the_rate_times_the_known_curvature() -> None:
    """The Hessian's ends at the start are 72.78 and -1.21."""
    net = Net()
    x = torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
    y = 5 * torch.sin(2 * x)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01)
    optimizer = TopoOptimizer(sgd, net, loss=lambda: (net(x) - y).square().mean() / 2, products=20)
    ((net(x) - y).square().mean() / 2).backward()
    optimizer.step()
    last = optimizer.last
    assert last is not None
    assert last.r_spec == pytest.approx(0.7278, rel=0.01)
    assert last.spectrum[0] == pytest.approx(-0.0121, rel=0.02)
    assert 0 < last.r_pair <= last.r_spec
    assert optimizer.eta_star[0] == pytest.approx(1 / 72.78, rel=0.01)
    optimizer.detach()
