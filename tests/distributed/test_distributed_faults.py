"""A fault on one rank alone, in every part: no rank waits for it or aborts, and all train on with the same weights."""

from __future__ import annotations

import contextlib
import itertools
from unittest import mock

import pytest
import torch
from torch import nn

from topoopt import TopoOptimizer
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.groups import Groups
from topoopt.optimizer.reading import Reader
from topoopt.optimizer.steering import Steering
from topoopt.optimizer.weights import Certifier

STEPS = 8
FAULTS = {
    "nothing": None,
    "before the step": (NeuronGroup, "points", {0}),
    "after the step": (NeuronGroup, "points", {2}),
    "out of memory until it is switched off": (NeuronGroup, "points", set(range(0, 40, 3))),
    "discovery": (Groups, "look", {0, 1}),
    "reading": (Reader, "_by_tape", {0, 1, 2}),
    "policy": (Steering, "decide", {1}),
    "certificate before": (Certifier, "before", {1}),
    "certificate after": (Certifier, "gain", {1}),
    "shortening": (Certifier, "shorten", {1}),
}


def failing(fault):
    """A patch under which these calls fail after they have been made: their collectives have taken place."""
    if fault is None:
        return contextlib.nullcontext()
    owner, name, numbers = fault
    real, calls = getattr(owner, name), itertools.count()

    def instead(*args, **kwargs):
        found = real(*args, **kwargs)
        if next(calls) in numbers:
            raise torch.OutOfMemoryError("of this rank alone")
        return found

    return mock.patch.object(owner, name, instead)


def train(rank, world, kind, fault, strict):
    """Train on this rank's share; the last rank has the fault. Returns the weights, the factors and what was counted."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 2))
    x, y = torch.randn(16, 6)[rank::world], torch.randn(16, 2)[rank::world]
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    options = {"every": 1, "budget": None, "homology": 0, "products": 3, "reading_products": 3, "per_group": False}
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
    factors = []
    with failing(fault if rank == world - 1 else None):
        topo = TopoOptimizer(optimizer, wrapped, mode="preserve", strict=strict, **options)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (wrapped(x) - y).square().mean().backward()
            optimizer.step()
            factors.append(topo.lr_scale)
        counts = {key: n for key, n in topo.topo.counts().items() if key.startswith("fault/")}
        topo.detach()
    whole = [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in model.parameters()]
    return whole, factors, counts


def everything(rank, world, kind):
    return {
        name: train(rank, world, kind, fault, strict=fault is not None and fault[0] is Certifier)
        for name, fault in FAULTS.items()
    }


@pytest.mark.parametrize(("kind", "world"), [("fsdp", 2), ("ddp", 2), ("fsdp", 4)])
def test_a_fault_on_one_rank_leaves_all_with_one_run(launch, kind, world):
    ranks = launch(everything, world, kind)
    for name, fault in FAULTS.items():
        weights, factors, _ = ranks[0][name]
        for others, theirs, _ in (rank[name] for rank in ranks[1:]):
            assert all(torch.equal(p, q) for p, q in zip(weights, others)), name
            assert theirs == factors, name
        assert bool(ranks[-1][name][2]) is (fault is not None), name
        if fault is None or fault[0] is NeuronGroup:  # steering goes by r, which needs no neuron
            assert factors == ranks[0]["nothing"][1]
