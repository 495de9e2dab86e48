"""The approach alone, on losses whose curvature is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from suggest_tasks import digits, loss_fn, mlp
from torch import Tensor, nn

from topoopt import suggest
from topoopt.suggestion.approach import approach, momentum_of, target
from topoopt.suggestion.rehearsal import Rehearsal, Script


class Bowl(nn.Module):
    """sum of h x^2 / 2: its largest curvature is h's, whatever the batch."""

    def __init__(self, highest: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(20))
        self.h = torch.tensor([highest] + [0.1 * highest] * 19)

    def forward(self, batch: Any) -> Tensor:
        return (self.h * self.x**2).sum() / 2


@pytest.mark.parametrize("highest", [0.4, 4.0, 400.0])
def test_on_a_quadratic_it_ends_where_rate_times_curvature_is_the_target(highest: float) -> None:
    model = Bowl(highest)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rehearsal = Rehearsal(Script(model, optimizer, (1.0,), None, None))
    rate, readings = approach(rehearsal, [torch.zeros(1)] * 60, 1.0, momentum_of(optimizer.param_groups))
    assert rate * highest == pytest.approx(target(2.0, 0.0), rel=0.02)
    for one in readings:
        assert one.r == pytest.approx(one.lr * highest, rel=0.02)


def weighted(heavy: set[int], count: int) -> list[tuple[Tensor, Tensor, float]]:
    return [(x, y, 8.0 if i in heavy else 1.0) for i, (x, y) in enumerate(digits(count))]


def weighted_loss(model: nn.Module, batch: tuple[Tensor, Tensor, float]) -> Tensor:
    return batch[2] * loss_fn(model, batch[:2])


def test_a_single_batch_of_unusual_loss_does_not_end_it_two_in_a_row_do() -> None:
    def readings(heavy: set[int]) -> int:
        model = mlp()
        script = Script(model, torch.optim.AdamW(model.parameters(), lr=1.0), (1.0,), weighted_loss, None)
        return len(approach(Rehearsal(script), weighted(heavy, 48), 1.0, 0.9)[1])

    assert readings({7, 13, 22}) == 16
    assert readings({7, 8}) == 3


def test_an_approach_that_was_lost_too_early_gives_no_suggestion() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    answer = suggest(model, optimizer, weighted({7, 8}, 48), weighted_loss)
    assert not answer.known
    assert answer.lr == (0.1,)
    assert "more steps" in answer.reason


class Dies:
    """Learns at r = 10 rate, until a rate above `limit`: then r has been above its target once, and it is dead."""

    def __init__(self, limit: float) -> None:
        self.limit, self.rate, self.loss, self.dead = limit, 0.0, 1.0, False

    def at(self, factor: float) -> None:
        self.rate = factor

    def backward(self, batch: Any) -> float:
        return 1.0 if self.dead else self.loss

    def read(self, batch: Any) -> SimpleNamespace:
        above = self.rate > self.limit and not self.dead
        self.dead = self.dead or above
        return SimpleNamespace(r=5.0 if above else 1e-3 if self.dead else 0.1 * self.rate, edge=2.0)

    def step(self) -> None:
        self.loss *= 0.98


def test_an_approach_that_kills_the_network_goes_back_to_before_r_was_above_its_target() -> None:
    """Of a dead network r reads low: without the loss the rate would run away."""
    dies: Any = Dies(limit=0.1)
    rate, readings = approach(dies, [None] * 90, 1.0, 0.9)
    assert rate == max(one.lr for one in readings if one.lr <= 0.1)
    assert sum(one.lr > 0.1 for one in readings) == 2
