"""The loss of the best constant prediction: where the labels are seen, on the step's own tape and in a loss that was given."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topoopt import TopoOptimizer

CLASSES, TARGETS = torch.tensor([0, 0, 0, 1, 2, 2, 1, 0]), torch.linspace(-1, 2, 24).view(8, 3)
Loss = Callable[[Tensor], Tensor]


class Own(nn.Module):
    """A network that has its loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(self.body(x)), CLASSES)


def baseline_of(model: nn.Module, loss: Loss, *, given: bool) -> float:
    torch.manual_seed(0)
    x, steps = torch.randn(8, 5), 2
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TopoOptimizer(inner, model, loss=(lambda: loss(model(x))) if given else None, every=1, homology=-1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x)).backward()
        optimizer.step()
    found = optimizer.readings[0].baseline
    optimizer.detach()
    return found


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (lambda out: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0]))(out, CLASSES), True),
        (lambda out: F.cross_entropy(target=CLASSES, input=out, label_smoothing=0.1), True),
        (lambda out: F.nll_loss(out.log_softmax(1), CLASSES), True),
        (lambda out: F.mse_loss(out, TARGETS), False),
        (lambda out: F.mse_loss(TARGETS, out), False),
    ],
)
def test_a_constant_prediction_is_known_where_labels_are_seen(loss: Loss, classes: bool, given: bool) -> None:
    share = CLASSES.bincount() / 8
    entropy, variance = float(-(share * share.log()).sum()), float(TARGETS.var(0, correction=0).mean())
    expected = entropy if classes else variance
    assert baseline_of(nn.Sequential(nn.Linear(5, 3), nn.Tanh()), loss, given=given) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_loss_inside_the_model_is_seen_where_it_is_given() -> None:
    share = CLASSES.bincount() / 8
    entropy = float(-(share * share.log()).sum())
    assert baseline_of(Own(), lambda out: out, given=True) == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_of_other_losses_nothing_is_said(given: bool) -> None:
    assert math.isnan(baseline_of(nn.Linear(5, 3), lambda out: F.huber_loss(out, TARGETS), given=given))
