"""What W&B, TensorBoard and trackio hold after a run, read back from their own files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

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


TRACKIO = """
import json, sys
import trackio
from trackio.sqlite_storage import SQLiteStorage
sys.path[:0] = sys.argv[1:]
from conftest import measurement
from topoopt.integrations.trackio import TrackioSink
from topoopt.measurement import Phase
run = trackio.init(project="topo", name="theirs", embed=False, auto_log_cpu=False, auto_log_gpu=False)
sink = TrackioSink(run, images=0.0, layers=1)
for step in range(3):
    sink(measurement(step, phase=Phase.PERMISSIVE))
sink.close()
run.log({"still": 1.0})  # the run is the caller's, and goes on
run.finish()
rows = SQLiteStorage.get_logs("topo", "theirs")
print(json.dumps({"dropped": sink.dropped, "faults": sink.faults, "rows": rows}, default=str))
"""


def test_trackio_holds_every_measurement(tmp_path):
    """Read back from its own data base; in a process of its own, since trackio settles its folder when it is imported."""
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TRACKIO, *(str(folder) for folder in Path(__file__).parents[:2])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (found["dropped"], found["faults"]) == (0, 0)
    rows = {}
    for row in found["rows"]:
        rows[row["step"]] = rows.get(row["step"], {}) | row
    assert [rows[step]["topo/proximity"] for step in range(3)] == [0.5, 1.5, 2.5]
    assert all(rows[step]["topo/phase_name"] == "permissive" for step in range(3))
    assert "topo/eta_star_high/0" not in rows[0]  # infinite
    assert rows[0]["topo/layer.0/diagram"]["_type"] == "trackio.image"
    assert "topo/layer.0/diagram" not in rows[1]  # the same homology is not drawn again
    assert len(rows[2]["topo/layers"]["_value"]) == 2
    assert found["rows"][-1]["still"] == 1.0
