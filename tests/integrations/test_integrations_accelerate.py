"""accelerate: wrapped before or after prepare, accumulation, trackers, checkpoints with and without topoopt's state."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerate = pytest.importorskip("accelerate")

from topoopt import TopoOptimizer  # noqa: E402
from topoopt.errors import ConfigError, PartitionedError  # noqa: E402
from topoopt.integrations.accelerate import LogSink, attach  # noqa: E402

OPTIONS = {"every": 2, "budget": None, "homology": 0, "per_group": False, "products": 3}


@pytest.fixture(autouse=True)
def _fresh_state():
    """accelerate keeps its settings in a process-wide singleton."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


class Scored(nn.Module):
    """A network whose output carries its loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x, y):
        return {"loss": nn.functional.cross_entropy(self.layers(x), y)}


def setting(accelerator, how="bare", **options):
    """Return (model, optimizer, scheduler, loader, topo) as prepared."""
    torch.manual_seed(0)
    model = Scored()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    loader = DataLoader(TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,))), batch_size=8)
    topo = None
    if how == "before":
        topo = TopoOptimizer(optimizer, model, **OPTIONS, **options)
        model, optimizer, scheduler, loader = accelerator.prepare(model, topo, scheduler, loader)
        assert attach(accelerator, optimizer, model) is topo
    else:
        model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
        if how == "after":
            topo = attach(accelerator, optimizer, model, **OPTIONS, **options)
    return model, optimizer, scheduler, loader, topo


def train(accelerator, model, optimizer, scheduler, loader, epochs=1):
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(x, y)["loss"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("how", ["before", "after"])
def test_report_leaves_no_trace(how, accumulation, precision):
    finals = []
    for kind in ("bare", how):
        accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=accumulation, mixed_precision=precision
        )
        model, optimizer, scheduler, loader, topo = setting(accelerator, kind)
        train(accelerator, model, optimizer, scheduler, loader)
        finals.append(weights(model))
        if topo is not None:
            assert topo.steps == 8 // accumulation  # the hooks see real steps alone
            assert topo.last is not None
            assert topo.last.groups, topo.last.skipped
            assert "spectral" not in topo.last.skipped, topo.last.skipped
            assert not [key for key in topo.last.counts if key.startswith("fault/")]
            topo.detach()
    assert all(torch.equal(p, q) for p, q in zip(*finals))


def test_settings_are_given_once():
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, _, _, _ = setting(accelerator, "before")
    with pytest.raises(ConfigError, match="settings of its own"):
        attach(accelerator, optimizer, model, every=3)


def test_deepspeed_is_named():
    """Stand-ins with the names by which accelerate's and DeepSpeed's own objects are known."""
    zero = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage3"})()
    model = Scored()

    class Prepared(torch.optim.SGD):
        optimizer = None

    prepared = Prepared(model.parameters(), lr=0.1)
    prepared.optimizer = zero
    with pytest.raises(PartitionedError, match="DeepSpeed steps flat partitions"):
        attach(accelerate.Accelerator(cpu=True), prepared, model)


@pytest.mark.parametrize("mode", ["report", "hold"])
@pytest.mark.parametrize("how", ["before", "after"])
def test_save_state_and_load_state(tmp_path, how, mode):
    """The counts and the policy go on; a resumed run measures at once, and its first reading starts cold."""

    def run(folder, stop, load):
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer, scheduler, loader, topo = setting(accelerator, how, mode=mode)
        seen = []
        topo.add_sink(seen.append)
        if load:
            accelerator.load_state(str(folder))
            assert topo.steps == 8
        train(accelerator, model, optimizer, scheduler, loader)
        if stop:
            accelerator.save_state(str(folder))
            train(accelerator, model, optimizer, scheduler, loader)
        return weights(model), [m for m in seen if m.step >= 8]

    unbroken, first = run(tmp_path / "state", stop=True, load=False)
    resumed, second = run(tmp_path / "state", stop=False, load=True)
    assert [m.step for m in first] == [m.step for m in second] == [8, 10, 12, 14]
    if mode == "report":
        assert all(torch.equal(p, q) for p, q in zip(unbroken, resumed))
        assert [m.r_pair for m in first] == [m.r_pair for m in second]
        assert [m.loss for m in first] == [m.loss for m in second]
    assert {m.decision.policy for m in second} == {m.decision.policy for m in first}


def test_a_folder_without_topoopts_state_loads(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, scheduler, loader, _ = setting(accelerator, "bare")
    train(accelerator, model, optimizer, scheduler, loader)
    accelerator.save_state(str(tmp_path / "old"))
    saved = weights(model)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, scheduler, loader, topo = setting(accelerator, "after")
    accelerator.load_state(str(tmp_path / "old"))
    assert all(torch.equal(p, q) for p, q in zip(saved, weights(model)))
    train(accelerator, model, optimizer, scheduler, loader)
    assert topo.last is not None


def test_trackers_of_the_accelerator(tmp_path):
    from accelerate.tracking import GeneralTracker, on_main_process

    class Lines(GeneralTracker):
        """Writes JSON lines."""

        name = "lines"
        requires_logging_directory = False

        @property
        def tracker(self):
            return self

        def start(self):
            pass

        @on_main_process
        def store_init_configuration(self, values):
            pass

        @on_main_process
        def log(self, values, step=None, **kwargs):
            with (tmp_path / "lines").open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    accelerator = accelerate.Accelerator(cpu=True, log_with=Lines())
    accelerator.init_trackers("project")
    model, optimizer, scheduler, loader, topo = setting(accelerator, "after")
    train(accelerator, model, optimizer, scheduler, loader)
    topo.detach()
    rows = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert sorted({row["step"] for row in rows}) == list(range(8))
    assert sorted({row["step"] for row in rows if "topo_layers/layers.0/gain" in row}) == [0, 2, 4, 6]
    assert all(row["topo/step"] == row["step"] for row in rows)


def test_accelerator_log_as_a_sink(make):
    class Log:
        """Stands for an accelerator."""

        rows: list = []  # noqa: RUF012

        def log(self, values, step=None):
            self.rows.append((step, values["topo_details/r"]))

    sink = LogSink(Log())
    for step in range(3):
        sink(make(step))
    sink.close()
    assert Log.rows == [(0, 0.5), (1, 1.5), (2, 2.5)]
