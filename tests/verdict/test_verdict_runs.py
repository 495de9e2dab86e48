"""Every state of a verdict, reached by a real run on digits."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from verdict_runs import digits, mlp, readings_of, squared

from topoopt import TopoOptimizer
from topoopt.measurement import Measurement
from topoopt.verdict import judge, stalled

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def test_too_low_and_the_advice_is_right() -> None:
    verdict = judge(readings_of(mlp(), torch.optim.AdamW, 2e-3))
    assert verdict.state == "too low"
    rate = float(verdict.advice.split(": ")[1].split(". ")[0])
    assert judge(readings_of(mlp(), torch.optim.AdamW, rate)).state == "right"


def test_right() -> None:
    for make, lr in ((MOMENTUM, 0.2), (torch.optim.SGD, 0.7)):
        readings = readings_of(mlp(), make, lr)
        assert judge(readings).state == "right"
        assert stalled(readings) == ""


def test_too_high() -> None:
    verdict = judge(readings_of(mlp(), torch.optim.AdamW, 0.1))
    assert verdict.state == "too high"
    assert "silent" in verdict.happened


def test_weights_that_are_thrown_outwards_are_too_high() -> None:
    verdict = judge(readings_of(mlp(nn.Tanh), torch.optim.AdamW, 0.1))
    assert verdict.state == "too high"
    assert "the weights grew to" in verdict.happened.lower()


class Normed(torch.optim.Optimizer):
    """A rule that topoopt does not know: each tensor's gradient over its length."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / (p.grad.norm() + 0.1))


def test_of_an_unknown_rule_r_tells_neither_too_low_nor_right() -> None:
    for lr in (1e-3, 0.1):
        verdict = judge(readings_of(mlp(nn.Tanh), Normed, lr))
        assert verdict.state == "lower bound only"
        assert "Compare its loss" in verdict.advice


def test_a_dead_network_has_collapsed() -> None:
    readings = readings_of(mlp(), MOMENTUM, 1.0)
    assert judge(readings).state == "collapsed"
    assert "silent" in stalled(readings)


def test_a_run_that_leaves_the_numbers_has_collapsed() -> None:
    readings = readings_of(mlp(nn.GELU), MOMENTUM, 1e3)
    assert judge(readings).state == "collapsed"
    assert stalled(readings)


def test_full_batch_descent_sits_at_the_edge() -> None:
    verdict = judge(readings_of(mlp(nn.Tanh), torch.optim.SGD, 0.3, batch=0, loss_of=squared))
    assert verdict.state == "at the edge"


def test_not_enough() -> None:
    verdict = judge(readings_of(mlp(), MOMENTUM, 0.1, steps=25))
    assert verdict.state == "not enough readings"
    assert "2 more readings" in verdict.advice


def test_pairs_alone_are_a_lower_bound() -> None:
    x, y = digits()
    model = mlp()
    optimizer = TopoOptimizer(MOMENTUM(model.parameters(), lr=0.1), model, estimator="pairwise", every=1, budget=None)
    measured: list[Measurement] = []
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:64]), y[:64]).backward()
        optimizer.step()
        if optimizer.measured and optimizer.last is not None:
            measured.append(optimizer.last)
    optimizer.detach()
    verdict = judge([m.spectral for m in measured], groups=measured[-1].groups)
    assert verdict.state == "lower bound only"
    assert "r_pair = 0." in verdict.happened
