"""Trainer and accelerate over two gloo processes: one run, the trackers written to by one rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

OPTIONS = {"every": 2, "budget": None, "homology": 0, "per_group": False, "products": 3, "mode": "hold"}
INTEGRATIONS = str(Path(__file__).parents[1] / "integrations")


def _announce(rank, world):
    """Say to accelerate what torchrun would have said; the process group is up already."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29544",
        ACCELERATE_USE_CPU="true",
    )
    sys.path.insert(0, INTEGRATIONS)


def _shard_on_the_host():
    """Let accelerate shard (FSDP2) in processes without accelerators: its own preparation, which it keeps for those."""
    import accelerate
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    start = accelerate.Accelerator.__init__

    def sharding(self, *args, **kwargs):
        start(self, *args, **kwargs)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)

    accelerate.Accelerator.__init__ = sharding


def whole(p):
    """A parameter's values, gathered."""
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


def by_trainer(rank, world, folder, sharded):
    _announce(rank, world)
    if sharded:
        _shard_on_the_host()
    from test_integrations_transformers import bert, rows
    from transformers import Trainer, TrainingArguments

    from topoopt.integrations.transformers import TopoCallback

    callback = TopoCallback(estimator="spectral", record=None, **OPTIONS)
    seen = []
    callback.sinks.append(lambda measurement: seen.append(measurement.step))
    args = TrainingArguments(
        output_dir=folder,
        max_steps=6,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="steps",
        save_steps=3,
        report_to="none",
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=bert(), args=args, train_dataset=rows(), callbacks=[callback])
    trainer.train()
    last = callback.last
    return {
        "kind": type(trainer.model_wrapped).__name__,
        "seen": seen,
        "last": (last.step, last.r_spec, last.r_pair, last.lr_scale, dict(last.skipped)),
        "groups": list(last.groups),
        "weights": [whole(p) for p in trainer.model.parameters()],
        "files": sorted(p.name for p in Path(folder).glob("checkpoint-3/topoopt_*")),
    }


class Scored(nn.Module):
    """A network whose output carries its loss."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x, y):
        return {"loss": nn.functional.cross_entropy(self.layers(x), y)}


def by_accelerate(rank, world, how, sharded):
    _announce(rank, world)
    if sharded:
        _shard_on_the_host()
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    from topoopt import TopoOptimizer
    from topoopt.integrations.accelerate import attach

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = Scored()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,))), batch_size=8)
    if how == "before":
        wrapped = TopoOptimizer(optimizer, model, estimator="spectral", **OPTIONS)
        model, optimizer, loader = accelerator.prepare(model, wrapped, loader)
        topo = attach(accelerator, optimizer, model)
    else:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        topo = attach(accelerator, optimizer, model, estimator="spectral", **OPTIONS)
    factors = []
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(model(x, y)["loss"])
        optimizer.step()
        factors.append(topo.lr_scale)
    return {
        "kind": type(model).__name__,
        "factors": factors,
        "last": (topo.last.step, topo.last.r_spec, topo.last.r_pair, dict(topo.last.skipped)),
        "weights": [whole(p) for p in model.parameters()],
    }


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_trainer(launch, tmp_path, sharded):
    pytest.importorskip("transformers")
    first, second = launch(by_trainer, 2, str(tmp_path / "out"), sharded)
    assert first["kind"] == second["kind"]
    assert first["kind"].startswith("FSDP" if sharded else "DistributedDataParallel")
    assert first["last"] == second["last"]
    assert first["last"][0] == 4
    assert "spectral" not in first["last"][4], first["last"]
    assert first["groups"]
    assert first["groups"] == second["groups"]
    assert (first["seen"], second["seen"]) == ([0, 2, 4], [])  # sinks are the main process's
    assert first["files"] == ["topoopt_0.pt", "topoopt_1.pt"]
    assert all(torch.equal(p, q) for p, q in zip(first["weights"], second["weights"]))


@pytest.mark.parametrize("how", ["before", "after"])
def test_accelerate(launch, how):
    pytest.importorskip("accelerate")
    runs = {}
    for sharded, kind in ((False, "DistributedDataParallel"), (True, "FSDP")):
        first, second = launch(by_accelerate, 2, how, sharded)
        assert first["kind"].startswith(kind)
        assert first["factors"] == second["factors"]
        assert any(factor != 1.0 for factor in first["factors"])
        assert first["last"] == second["last"]
        assert all(torch.equal(p, q) for p, q in zip(first["weights"], second["weights"]))
        runs[sharded] = first
    assert runs[True]["factors"] == pytest.approx(
        runs[False]["factors"], rel=1e-2
    )  # finite differences beside exact products
    assert runs[True]["last"][1:3] == pytest.approx(runs[False]["last"][1:3], rel=1e-2)
