"""The collectives themselves, in two gloo processes and in none."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from topoopt import TopoOptimizer
from topoopt.curvature import proximity
from topoopt.parallel import Ranks
from topoopt.sharding import full


def of_ddp():
    return Ranks(nn.parallel.DistributedDataParallel(nn.Linear(2, 2)))


def agree(rank, world):
    ranks = of_ddp()
    plain = Ranks(nn.Linear(2, 2))
    found = Ranks(nn.Linear(2, 2))
    found.found(nn.parallel.DistributedDataParallel(nn.Linear(2, 2)))
    tensors = [torch.full((2, 3), float(rank)), torch.arange(4.0).double() * rank, torch.tensor(float(10 * rank))]
    ranks.mean_(tensors)
    reduce = ranks.reducer()
    assert reduce is not None
    return {
        "active": ranks.active,
        "any": ranks.any(rank == 1),
        "none": ranks.any(False),
        "float": ranks.from_zero(0.1 + rank),
        "object": ranks.from_zero({"rank": rank}),
        "number": ranks.means(float(rank))[0],
        "mean": tensors,
        "plain": not plain.active and plain.reducer() is None and plain.any(rank == 1) is (rank == 1),
        "found": found.active,
        "reducer": (reduce.any(rank == 1), reduce.any(False)),
    }


def leave(rank, world):
    """Rank 1 fails between its second and third product; a section that all end is then passed by both."""
    ranks = of_ddp()
    reduce = ranks.reducer()
    assert reduce is not None
    reasons = []
    for bad in (1, None):
        tensors = [torch.ones(3) * rank]
        try:
            with ranks.together():
                for product in range(4):
                    if product == 2 and rank == bad:
                        raise ValueError("rank 1 cannot")
                    reduce(tensors)
            reasons.append("")
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}")
    return reasons


def choose(rank, world):
    """Rank 1 alone meets a function that can be differentiated only once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    wrapped = nn.parallel.DistributedDataParallel(model)
    x = torch.randn(6, 3)

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            ctx.save_for_backward(value)
            return value.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

    def loss():
        out = model(x)
        return (Once.apply(out) if rank == 1 else out.sin()).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = proximity(optimizer, loss, model=wrapped, reduce=Ranks(wrapped).reducer())
    return found.engine, found.r


def settle(rank, world):
    """Rank 1's loss alone draws from numpy's generator, beside a thread that might have; counts of the loss's collectives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    wrapped = nn.parallel.DistributedDataParallel(model)
    x = torch.randn(6, 3)
    stop, evaluations = threading.Event(), [0]
    threading.Thread(target=stop.wait, daemon=True).start()
    np.random.seed(rank)  # noqa: NPY002 -- the legacy generator, as users draw from it

    def loss():
        evaluations[0] += 1
        together = torch.ones(())
        dist.all_reduce(together)  # stands or falls with both ranks evaluating equally often
        noise = float(np.random.rand()) if rank == 1 else 0.5  # noqa: NPY002
        return (model(x) * (1 + noise)).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = proximity(optimizer, loss, model=wrapped, reduce=Ranks(wrapped).reducer())
    stop.set()
    held = [note for note in found.notes if "generator" in note]
    return found.r, held, evaluations[0]


def test_what_one_rank_must_hold_all_hold(launch):
    (r, held, evaluations), second = launch(settle, 2)
    assert (r, held, evaluations) == second
    assert math.isfinite(r)
    assert len(held) == 1


def budgeted(rank, world, steps):
    """Under a budget of time, on ranks whose clocks differ: the second's stands still, and it could afford nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    wrapped = nn.parallel.DistributedDataParallel(model)
    x, y = torch.randn(64, 3)[rank::world], torch.randn(64, 2)[rank::world]
    topo = TopoOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), wrapped, every=10, budget=0.2, homology=0)
    passed, measured = [0], []
    topo.topo.cadence._clock = lambda: 0.0 if rank else float(passed[0])
    for step in range(steps):
        topo.zero_grad()
        (wrapped(x) - y).square().mean().backward()
        topo.step()
        passed[0] += 1
        measured += [step] if topo.measured else []
    readings = [(reading.step, reading.r) for reading in topo.readings]
    topo.detach()
    return readings, measured


def test_ranks_agree_on_what_a_budget_allows(launch):
    first, second = launch(budgeted, 2, 60)
    assert first == second
    readings, measured = first
    assert len(readings) > 20
    assert len(measured) > 2


def test_ranks_take_the_same_engine(launch):
    first, second = launch(choose, 2)
    assert first == second
    assert first[0] == "finite differences"


def test_ranks_agree(launch):
    first, second = launch(agree, 2)
    for seen in (first, second):
        assert seen["active"] is True
        assert seen["any"] is True
        assert seen["none"] is False
        assert seen["float"] == 0.1
        assert seen["object"] == {"rank": 0}
        assert seen["number"] == 0.5
        assert seen["plain"] is True
        assert seen["found"] is True
        assert seen["reducer"] == (True, False)
        assert torch.equal(seen["mean"][0], torch.full((2, 3), 0.5))
        assert torch.equal(seen["mean"][1], torch.arange(4.0).double() / 2)
        assert torch.equal(seen["mean"][2], torch.tensor(5.0))


def test_a_rank_that_fails_is_not_waited_for(launch):
    well, bad = launch(leave, 2)
    assert well == ["RankError: another rank could not measure this step; its log says why", ""]
    assert bad == ["ValueError: rank 1 cannot", ""]


def test_one_process_needs_no_group():
    ranks = Ranks(nn.Linear(2, 2))
    assert not ranks.active
    assert ranks.any(True)
    assert not ranks.any(False)
    assert ranks.from_zero(0.5) == ranks.means(0.5)[0] == 0.5
    tensor = torch.arange(3.0)
    ranks.mean_([tensor])
    assert torch.equal(tensor, torch.arange(3.0))
    assert full(tensor) is tensor
    assert ranks.reducer() is None
    with pytest.raises(ValueError, match="mine"), ranks.together():
        raise ValueError("mine")
