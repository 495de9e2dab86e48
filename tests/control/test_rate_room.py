"""Whatever is raised, the user's rate is found again."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD

from topoopt.optimizer.rate import RateScaler


def optimizer(*rates) -> torch.optim.Optimizer:
    return SGD([{"params": [nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates], lr=1.0)


def rates(opt: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


@pytest.mark.parametrize("lr", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
def test_another_scaler_finds_what_a_step_that_raised_left_behind(lr) -> None:
    opt = optimizer(lr)
    first = RateScaler(opt)
    first.apply(opt.param_groups, 0.25)
    del first  # its owner was lost to an exception
    assert rates(opt) == [0.5]
    second = RateScaler(opt)
    assert rates(opt) == [2.0]
    second.apply(opt.param_groups, 0.5)
    second.restore()
    assert rates(opt) == [2.0]


def test_a_rate_set_since_is_the_users_and_stays() -> None:
    opt = optimizer(2.0)
    RateScaler(opt).apply(opt.param_groups, 0.25)
    opt.param_groups[0]["lr"] = 0.7
    assert RateScaler(opt).applied is False
    assert rates(opt) == [0.7]


@pytest.mark.parametrize("lr", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
def test_a_copy_that_takes_a_groups_place_during_the_step_gets_the_users_rate_too(lr) -> None:
    opt = optimizer(lr, 1.0)
    scaler = RateScaler(opt)
    scaler.apply(opt.param_groups, 0.25)
    opt.param_groups[:] = [dict(group) for group in opt.param_groups]
    scaler.restore()
    assert rates(opt) == [2.0, 1.0]
    assert not scaler.applied


@pytest.mark.parametrize("lr", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupt_in_the_middle_of_applying_loses_nothing(lr, after: int) -> None:
    class Stopped(dict):
        """A parameter group that Ctrl-C hits when its rate is looked up, or written."""

        def get(self, *args):
            raise KeyboardInterrupt

    opt = optimizer(lr, 1.0)
    groups = [*opt.param_groups[:after], Stopped(opt.param_groups[after]), *opt.param_groups[after + 1 :]]
    scaler = RateScaler(opt)
    with pytest.raises(KeyboardInterrupt):
        scaler.apply(groups, 0.5)
    scaler.restore()
    assert rates(opt) == [2.0, 1.0]


def test_restoring_twice_is_restoring_once() -> None:
    opt = optimizer(2.0)
    scaler = RateScaler(opt)
    scaler.apply(opt.param_groups, 0.5)
    scaler.restore()
    opt.param_groups[0]["lr"] = 0.1
    scaler.restore()
    assert rates(opt) == [0.1]


def test_the_mark_is_in_no_state_dict_pickle_or_copy() -> None:
    opt = optimizer(2.0)
    RateScaler(opt).apply(opt.param_groups, 0.5)
    assert "topoopt" not in repr(opt.state_dict())
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert not [key for key in vars(other) if "topoopt" in key]
