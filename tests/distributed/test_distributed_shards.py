"""Weights in parts: FSDP2 over one and two dimensions, beside plain weights, and tensor parallel; r and its group's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topoopt import TopoOptimizer, sharding
from topoopt.curvature import SpectralTracker, proximity
from topoopt.errors import ConfigError, PartitionedError

STEPS = 2
THROUGH_GRAD = "finite differences through .grad"


class Cubic(torch.optim.Optimizer):
    """An unknown rule: measured as a black box."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * (p.grad + p.grad**3))


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-2),
    "unknown": Cubic,
}


def network():
    """(model, inputs (STEPS, 16, 10), labels); seven units, so that shards are of unequal size, down to one row."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 4))
    return model, torch.randn(STEPS, 16, 10), torch.randint(0, 4, (STEPS, 16))


def sharded(model, kind, world):
    """The model, in parts on each rank; and whether ranks see batches of their own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if kind == "tensor parallel":
        plan = {"2": ColwiseParallel(), "4": RowwiseParallel()}
        return parallelize_module(model, init_device_mesh("cpu", (world,)), plan)
    if kind == "tensor parallel in fsdp":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], {"2": ColwiseParallel(), "4": RowwiseParallel()})
        return fully_shard(model, mesh=mesh["data"])
    if kind == "hybrid":
        return fully_shard(model, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copy", "shard")))
    ignored = set(model[4].parameters()) if kind == "beside plain" else None
    fully_shard(model[0], mesh=init_device_mesh("cpu", (world,)))
    return fully_shard(model, mesh=init_device_mesh("cpu", (world,)), ignored_params=ignored)


def share(kind, rank, world):
    """Which part of a batch this rank sees."""
    if kind in ("alone", "tensor parallel"):
        return slice(None)
    if kind == "tensor parallel in fsdp":
        return slice(rank // (world // 2), None, 2)
    return slice(rank, None, world)


def arithmetic(rank, world, kind):
    """Each parameter's part, taken from the whole and put back; the inner product; and noise, whose copies agree."""
    model = sharded(network()[0], kind, world)
    parameters = list(model.parameters())
    wholes = [sharding.full(p.detach()) for p in parameters]
    parts = [sharding.part(w, p) for w, p in zip(wholes, parameters)]
    flat = torch.cat([part.reshape(-1) for part in parts])
    noise = sharding.noise_over(parameters, 0).split([part.numel() for part in parts])
    noises = [sharding.full(sharding.whole(n.view(t.shape), p)) for n, t, p in zip(noise, parts, parameters)]
    return {
        "parts": all(torch.equal(t, sharding.part(p.detach(), p)) for t, p in zip(parts, parameters)),
        "back": all(torch.equal(sharding.full(sharding.whole(t, p)), w) for t, p, w in zip(parts, parameters, wholes)),
        "dot": float(sharding.dot_over(parameters)(flat, flat)) / float(sum(w.square().sum() for w in wholes)),
        "norm": sharding.total_norm(parameters) ** 2 / float(sum(w.square().sum() for w in wholes)),
        "noise": torch.cat([n.reshape(-1) for n in noises]),
    }


def measure(rank, world, kind):
    """Train with every optimizer; returns what was measured, and the weights with and without topoopt."""
    criterion = nn.CrossEntropyLoss()
    found = {}
    for name, build in OPTIMIZERS.items():
        finals, seen = [], []
        for bare in (True, False):
            model, inputs, labels = network()
            if kind != "alone":
                model = sharded(model, kind, world)
            optimizer = build(model.parameters())
            mine = share(kind, rank, world)

            def loss(model=model, x=inputs[0][mine], y=labels[0][mine]):
                return criterion(model(x), y)

            if not bare:
                options = {
                    "every": 1,
                    "budget": None,
                    "homology": 0,
                    "products": 18,
                    "engine": THROUGH_GRAD,
                    "reading_products": 18,
                }
                topo = TopoOptimizer(optimizer, model, loss=loss, **options)
                topo.add_sink(seen.append)
            for x, y in zip(inputs, labels):
                optimizer.zero_grad()
                criterion(model(x[mine]), y[mine]).backward()
                if kind == "beside plain":  # nobody else averages what FSDP2 was told to leave alone
                    for p in model[4].parameters():
                        torch.distributed.all_reduce(p.grad.div_(world))
                optimizer.step()
            finals.append([p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()])
        rows = [(m.r_spec, m.r_pair, *(g.proximity or 0.0 for g in m.groups.values())) for m in seen]
        found[name] = {
            "rows": rows,
            "groups": [list(m.groups) for m in seen],
            "skipped": [dict(m.skipped) for m in seen],
            "same": all(torch.equal(p, q) for p, q in zip(*finals)),
        }
    return found


def everything(rank, world, kinds):
    """One start of the processes for all kinds: it is what takes the time."""
    return {kind: (arithmetic(rank, world, kind), measure(rank, world, kind)) for kind in kinds}


@pytest.mark.parametrize(
    ("world", "kinds"),
    [(2, ("beside plain", "tensor parallel")), (4, ("fsdp", "hybrid", "tensor parallel in fsdp"))],
)
def test_parts_measure_what_the_whole_does(launch, world, kinds):
    alone = measure(0, 1, "alone")
    ranks = launch(everything, world, kinds)
    for kind in kinds:
        sums, first = ranks[0][kind]
        assert len(set(sums["noise"].tolist())) > 150, "two shards hold the same noise"
        for sums, found in (rank[kind] for rank in ranks):
            assert sums["parts"], kind
            assert sums["back"], kind
            assert sums["dot"] == pytest.approx(1, rel=1e-5), kind
            assert sums["norm"] == pytest.approx(1, rel=1e-5), kind
            assert torch.equal(sums["noise"], ranks[0][kind][0]["noise"]), kind
            for name, expected in alone.items():
                assert found[name]["same"], (kind, name)
                assert found[name]["skipped"] == expected["skipped"], (kind, name)
                assert found[name]["groups"] == expected["groups"]
                assert found[name]["rows"] == first[name]["rows"]
                for row, other in zip(found[name]["rows"], expected["rows"], strict=True):
                    assert row == pytest.approx(other, rel=2e-2), (kind, name)


def refusals(rank, world):
    """What is said where products cannot be formed: another engine, weights run in 16 bits; r_field."""
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard

    said = {}
    for name, policy in (("plain", MixedPrecisionPolicy()), ("bf16", MixedPrecisionPolicy(param_dtype=torch.bfloat16))):
        model, inputs, labels = network()
        fully_shard(model, mp_policy=policy)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(model=model, x=inputs[0], y=labels[0]):
            return nn.functional.cross_entropy(model(x), y)

        options = {"every": 1, "budget": None, "homology": 0, "field": True}
        topo = TopoOptimizer(optimizer, model, loss=loss, **options)
        loss().backward()
        optimizer.step()
        assert topo.last is not None
        said[name] = (topo.last.r_spec, dict(topo.last.skipped), topo.last.notes, list(topo.last.groups))
        topo.detach()
    tracker = SpectralTracker(optimizer)
    tracker.load_state_dict(tracker.state_dict())
    said["warm"] = tracker.is_warm
    flat = FullyShardedDataParallel(network()[0], device_id=torch.device("cpu"))
    try:
        TopoOptimizer(torch.optim.SGD(flat.parameters(), lr=0.1), flat)
    except PartitionedError as error:
        said["flat"] = str(error)
    try:
        proximity(optimizer, loss, engine="double backward", model=model)
    except ConfigError as error:
        said["engine"] = str(error)
    return said


def test_what_shards_do_not_allow_is_said(launch):
    for said in launch(refusals, 2):
        r, skipped, notes, groups = said["plain"]
        assert r > 0
        assert groups
        assert "spectral" not in skipped
        assert any("r_field" in note and "sharded" in note for note in notes)
        r, skipped, notes, groups = said["bf16"]
        assert r != r
        assert groups
        assert "rounding of torch.bfloat16" in skipped["spectral"]
        assert said["warm"] is False
        assert "FSDP1" in said["flat"]
        assert "does not see sharded weights" in said["engine"]
