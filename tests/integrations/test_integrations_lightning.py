"""The Lightning callback: no trace in the weights, and a resumed training goes on as the unbroken one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch")

from topoopt.errors import ConfigError  # noqa: E402
from topoopt.integrations.lightning import TopoCallback  # noqa: E402

OPTIONS = {"every": 2, "budget": None, "homology": 0, "per_group": False, "products": 3}


class Module(lightning.LightningModule):
    """A classifier that logs in its training step."""

    def __init__(self, optimizers=1):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.optimizer_count = optimizers
        self.automatic_optimization = optimizers == 1

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        made = [torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9) for _ in range(self.optimizer_count)]
        return made if len(made) > 1 else made[0]


def loader():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 6, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def fit(tmp_path, callback, epochs=1, checkpoint=None, model=None):
    model = model or Module()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[] if callback is None else [callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, loader(), ckpt_path=checkpoint)
    return trainer, [p.detach().clone() for p in model.parameters()]


def test_report_leaves_no_trace(tmp_path):
    _, bare = fit(tmp_path, None)
    callback = TopoCallback(**OPTIONS)
    _, measured = fit(tmp_path, callback)
    assert all(torch.equal(p, q) for p, q in zip(bare, measured))
    assert callback.topo is not None
    last = callback.topo.last
    assert last is not None
    assert last.step == 6
    assert last.groups, last.skipped
    assert "spectral" not in last.skipped, last.skipped


def test_resume(tmp_path):
    options = {**OPTIONS, "mode": "hold", "estimator": "spectral"}
    _, unbroken = fit(tmp_path, TopoCallback(**options), epochs=2)
    trainer, _ = fit(tmp_path, TopoCallback(**options))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = TopoCallback(**options)
    _, resumed = fit(tmp_path, again, epochs=2, checkpoint=tmp_path / "half.ckpt")
    assert again.topo is not None
    assert again.topo.steps == 16
    assert all(torch.equal(p, q) for p, q in zip(unbroken, resumed))


def test_several_optimizers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="2 optimizers"):
        fit(tmp_path, TopoCallback(**OPTIONS), model=Module(optimizers=2))
