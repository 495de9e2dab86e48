"""The factor on the learning rate leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from topoopt.optimizer.rate import RateScaler, host_rates, peak_rate, read_rates


def optimizer(*rates) -> torch.optim.Optimizer:
    return SGD([{"params": [nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates], lr=1.0)


def test_multiplies_and_restores_exactly() -> None:
    groups = optimizer(0.1, 0.3).param_groups
    scaler = RateScaler()
    scaler.apply(groups, 1 / 3)
    assert [group["lr"] for group in groups] == [0.1 * (1 / 3), 0.3 * (1 / 3)]
    assert scaler.applied
    scaler.restore()
    assert [group["lr"] for group in groups] == [0.1, 0.3]
    assert not scaler.applied


def test_applying_twice_does_not_pile_up() -> None:
    groups = optimizer(0.1).param_groups
    scaler = RateScaler()
    scaler.apply(groups, 0.5)
    scaler.apply(groups, 0.5)
    assert groups[0]["lr"] == 0.05
    scaler.restore()
    assert groups[0]["lr"] == 0.1


def test_a_rate_set_by_somebody_else_meanwhile_stays() -> None:
    groups = optimizer(0.1).param_groups
    scaler = RateScaler()
    scaler.apply(groups, 0.5)
    groups[0]["lr"] = 0.7
    scaler.restore()
    assert groups[0]["lr"] == 0.7


def test_a_tensor_rate_is_changed_in_place_once() -> None:
    lr = torch.tensor(0.1)
    groups = [{"lr": lr}, {"lr": lr}]
    scaler = RateScaler()
    scaler.apply(groups, 0.5)
    assert groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.05)
    scaler.restore()
    assert torch.equal(lr, torch.tensor(0.1))
    scaler.apply(groups, 0.5)
    lr.fill_(0.9)
    scaler.restore()
    assert lr.item() == pytest.approx(0.9)


def test_no_rate_is_left_alone() -> None:
    groups = [{"lr": None}, {}]
    scaler = RateScaler()
    scaler.apply(groups, 0.5)
    assert groups == [{"lr": None}, {}]
    assert read_rates(groups) == (0.0, 0.0)


def test_a_factor_of_one_touches_nothing() -> None:
    groups = optimizer(0.1).param_groups
    scaler = RateScaler()
    scaler.apply(groups, 1.0)
    assert not scaler.applied


def test_the_peak_of_a_schedule() -> None:
    bare = optimizer(0.1, 0.3)
    assert peak_rate(bare.param_groups) == 0.3
    torch.optim.lr_scheduler.LambdaLR(bare, lambda step: min(1.0, step / 10))
    assert max(read_rates(bare.param_groups)) == 0.0
    assert peak_rate(bare.param_groups) == 0.3
    cycled = optimizer(0.1)
    torch.optim.lr_scheduler.OneCycleLR(cycled, max_lr=2.0, total_steps=10)
    assert peak_rate(cycled.param_groups) == 2.0


def test_host_rates_of_a_host_tensor() -> None:
    adam = Adam([nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.25))
    assert host_rates(adam.param_groups) == (0.25,)
