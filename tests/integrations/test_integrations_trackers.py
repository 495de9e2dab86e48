"""What W&B, TensorBoard and trackio hold after a run, read back from their own files."""

from __future__ import annotations

import math

import pytest

from topoopt.measurement import Phase


def test_wandb_holds_every_measurement(tmp_path, wandb_offline, wandb_rows, make, make_group):
    from topoopt.integrations.wandb import WandbSink

    sink = WandbSink(images=0.0, layers=2)
    for step in range(0, 50, 10):
        sink(make(step, phase=Phase.PERMISSIVE if step >= 20 else Phase.CONSTRAINED))
    late = {**make(40).groups, "layer.1": make_group(gain=0.5, diagrams_step=40, total_persistence=(0.5, 9.0))}
    sink(make(40, groups=late, phase=Phase.PERMISSIVE))
    sink.close()
    assert (sink.dropped, sink.faults) == (0, 0)
    wandb_offline.teardown()

    rows, metrics, summary = wandb_rows(tmp_path)
    seen = {}
    for row in rows:
        seen[row["topo/step"]] = seen.get(row["topo/step"], {}) | row
    assert list(seen) == [0, 10, 20, 30, 40]
    for step, row in seen.items():
        expected = make(int(step)).scalars() | {"topo/phase": float(step >= 20)}
        if step == 40:
            expected["topo/layer.1/persistence_h1"] = 9.0
        for key, value in expected.items():
            assert row[key] == value or (math.isinf(value) and row[key] in ("Infinity", math.inf)), key
        assert row["topo/phase_name"] == ("permissive" if step >= 20 else "constrained")
    assert seen[0]["topo/layer.0/diagram._type"] == "image-file"
    assert seen[0]["topo/layer.0/betti._type"] == "image-file"
    assert "topo/layer.0/diagram._type" not in seen[10]  # the same homology is not drawn again
    assert "topo/layer.1/diagram._type" in seen[40]
    assert seen[40]["topo/layers.nrows"] == 2
    assert seen[40]["topo/history._type"] == "image-file"
    assert seen[40]["topo/bracket_table.nrows"] > 0
    assert metrics["topo/proximity"]["step_metric"] == "topo/step"
    assert metrics["topo/layer.0/gain"]["step_metric"] == "topo/step"
    assert summary["topo/phase"] == "permissive"


def test_wandb_writes_to_the_callers_run_and_leaves_it_open(tmp_path, wandb_offline, wandb_rows, make):
    from topoopt.integrations.wandb import WandbSink

    run = wandb_offline.init(project="theirs")
    sink = WandbSink(run, images=None)
    sink(make(0))
    sink.close()
    run.log({"still": 1.0})
    run.finish()
    wandb_offline.teardown()
    rows, _, _ = wandb_rows(tmp_path)
    assert any(row.get("topo/proximity") == 0.5 for row in rows)
    assert rows[-1]["still"] == 1.0


def test_wandb_disabled_writes_nothing(tmp_path, wandb_offline, make, monkeypatch):
    from topoopt.integrations.wandb import WandbSink

    monkeypatch.setenv("WANDB_MODE", "disabled")
    sink = WandbSink()
    sink(make(0))
    sink.close()
    assert (sink.dropped, sink.faults) == (0, 0)
    assert not list(tmp_path.rglob("*.wandb"))


def test_tensorboard_holds_every_measurement(tmp_path, make):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from topoopt.integrations.tensorboard import TensorBoardSink

    sink = TensorBoardSink(tmp_path, images=0.0, layers=1)
    for step in range(3):
        sink(make(step))
    sink.close()
    assert (sink.dropped, sink.faults) == (0, 0)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("topo/proximity")] == [(0, 0.5), (1, 1.5), (2, 2.5)]
    assert [e.step for e in events.Images("topo/layer.0/diagram")] == [0]
    assert [e.step for e in events.Images("topo/history")] == [2]
    tags = events.Tags()["tensors"]
    assert "topo/layers/text_summary" in tags
    assert "topo/phase_name/text_summary" in tags


def test_trackio_holds_every_measurement(tmp_path, make, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from topoopt.integrations.trackio import TrackioSink

    class Run:
        """trackio's own run wants a local server; what is sent to it is what is tested here."""

        def __init__(self):
            self.rows, self.finished = [], False

        def log(self, metrics, step=None):
            self.rows.append((step, metrics))

        def finish(self):
            self.finished = True

    run = Run()
    sink = TrackioSink(run, images=None)
    for step in range(3):
        sink(make(step))
    sink.close()
    assert (sink.dropped, sink.faults) == (0, 0)
    assert [step for step, _ in run.rows] == [0, 1, 2, 2]
    assert run.rows[1][1]["topo/proximity"] == 1.5
    assert "topo/eta_star_high/0" not in run.rows[0][1]  # infinite
    assert isinstance(run.rows[-1][1]["topo/layers"], trackio.Table)
    assert not run.finished
