"""The Lightning callback: no trace in the weights, and a resumed training goes on as the unbroken one."""

from __future__ import annotations

import csv

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


@pytest.mark.parametrize("mode", ["report", "hold"])
def test_resume(tmp_path, mode):
    """Also from a checkpoint that is made when training has ended; steering goes on from its own memory."""
    options = {**OPTIONS, "mode": mode}
    _, unbroken = fit(tmp_path, TopoCallback(**options), epochs=2)
    trainer, _ = fit(tmp_path, TopoCallback(**options))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = TopoCallback(**options)
    _, resumed = fit(tmp_path, again, epochs=2, checkpoint=tmp_path / "half.ckpt")
    assert [reading.step for reading in again.topo.readings] == list(range(8, 16))
    close = torch.equal if mode == "report" else lambda p, q: torch.allclose(p, q, rtol=0.1, atol=0.05)
    assert all(close(p, q) for p, q in zip(unbroken, resumed))


class Manual(Module):
    """Manual optimization by as many optimizers as wanted; counts its steps."""

    def __init__(self, optimizers=1):
        super().__init__(optimizers)
        self.automatic_optimization = False
        self.taken = 0

    def training_step(self, batch, index):
        x, y = batch
        given = self.optimizers()
        for optimizer in given if isinstance(given, list) else [given]:
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(x), y))
            optimizer.step()
            self.taken += 1


@pytest.mark.parametrize("count", [1, 2])
def test_manual_optimization(tmp_path, count):
    """No step is taken again, and r is read from the steps of the optimizer that was asked for."""
    plain = Manual(count)
    _, bare = fit(tmp_path, None, model=plain)
    model = Manual(count)
    callback = TopoCallback(optimizer=count - 1, **OPTIONS)
    _, measured = fit(tmp_path, callback, model=model)
    assert model.taken == plain.taken == 8 * count
    assert all(torch.equal(p, q) for p, q in zip(bare, measured))
    read = [reading for reading in callback.topo.readings if not reading.reason]
    assert [reading.step for reading in read][-3:] == [5, 6, 7]
    assert callback.last.groups


def test_an_optimizer_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="has 2: give a place from 0 to 1"):
        fit(tmp_path, TopoCallback(optimizer=2, **OPTIONS), model=Manual(2))


def test_the_progress_bar_and_loggers(tmp_path, capsys):
    from lightning.pytorch.callbacks import TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger

    shown = []

    class Bar(TQDMProgressBar):
        def on_train_batch_end(self, trainer, *args):
            shown.append(self.get_metrics(trainer, trainer.lightning_module))

    bar, callback = Bar(), TopoCallback(**OPTIONS)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[bar, callback],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader())
    assert [row.get("r/e") for row in shown] == [round(m.r / m.edge, 4) for m in callback.topo.readings]
    assert "get_metrics" not in vars(bar)
    assert "r/e" not in trainer.callback_metrics
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["topo/r_over_edge"]]
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert str(callback.verdict).count("\n") == 2
    assert f"topoopt: {callback.verdict.state}\n{callback.verdict}\n" in capsys.readouterr().out


class Scheduled(Module):
    """Draws in its data and its step, asks its copy nothing of a trainer, and has a schedule."""

    def __init__(self, lr):
        super().__init__()
        self.rate = lr
        self.dropout = nn.Dropout(0.1)

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self(self.dropout(x)), y)
        self.log("loss", loss, prog_bar=True)
        return {"loss": loss}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.3, total_iters=4)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self):
        made = loader()
        return DataLoader(made.dataset, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5))


def fit_scheduled(tmp_path, lr, callback=None, **more):
    torch.manual_seed(7)
    model = Scheduled(lr)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[callback] if callback else [], logger=more.pop("logger", False),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        accumulate_grad_batches=2, gradient_clip_val=1.0, log_every_n_steps=1, **more,
    )  # fmt: skip
    trainer.fit(model)
    return trainer, [p.detach().clone() for p in model.parameters()]


def test_the_rate_that_is_found_is_as_if_it_had_been_typed_in(tmp_path, caplog):
    logger = lightning.loggers.CSVLogger(tmp_path, name="", version="")
    callback = TopoCallback(suggest=True, **OPTIONS)
    with caplog.at_level("WARNING", "topoopt"):
        trainer, found = fit_scheduled(tmp_path, 1e-4, callback, logger=logger)
    suggestion = callback.suggestion
    assert suggestion is not None
    assert suggestion.known, suggestion.reason
    lr = suggestion.lr[0]
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == [lr]
    _, typed = fit_scheduled(tmp_path, lr)
    assert all(torch.equal(p, q) for p, q in zip(found, typed, strict=True))
    assert any(suggestion.reason in one.message for one in caplog.records)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["topo/suggested_lr"]) for row in rows if row.get("topo/suggested_lr")] == [lr]


@pytest.mark.parametrize("kind", ["manual", "asks its trainer"])
def test_a_step_that_cannot_be_rehearsed_leaves_the_rate(tmp_path, kind, caplog):
    class Asking(Module):
        def training_step(self, batch, index):
            assert self.trainer.max_epochs == 1
            return super().training_step(batch, index)

    callback = TopoCallback(suggest=True, **OPTIONS)
    model = Manual() if kind == "manual" else Asking()
    with caplog.at_level("WARNING", "topoopt"):
        trainer, _ = fit(tmp_path, callback, model=model)
    assert callback.suggestion is not None
    assert (callback.suggestion.known, callback.suggestion.lr) == (False, (0.2,))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.2
    assert any("not known" in one.message for one in caplog.records)
    assert (
        "takes its steps by itself" if kind == "manual" else "not attached to a `Trainer`"
    ) in callback.suggestion.reason
