"""What W&B, TensorBoard and trackio hold after a run, read back from their own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from topoopt import TopoOptimizer
from topoopt.integrations.rows import HEADLINES, Rows


def train(sink, steps=8, each=lambda step: None, lr=0.1, **options):
    """A small training that tells a sink."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    settings = {"every": 4, "budget": None, "homology": 1, "wait": True, **options}
    optimizer = TopoOptimizer(torch.optim.SGD(model.parameters(), lr), model, **settings)
    optimizer.add_sink(sink)
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        each(step)
    return optimizer.detach()


def by_step(rows):
    """Rows of one step put together; a value that is written twice fails."""
    seen = {}
    for row in rows:
        values = {key: value for key, value in row.items() if key.startswith("topo") and key != "topo/step"}
        known = seen.setdefault(row["topo/step"], {})
        assert not known.keys() & values.keys()
        known |= values
    return seen


def test_layers_too_small_for_a_loop_are_not_waited_for(make):
    small = replace(make(0).groups["layer.0"], n=3, diagrams=(np.array([[0.0, 1.0]]),), diagrams_step=0)
    loops = replace(make(0).groups["layer.0"], n=9, diagrams=(np.zeros((1, 2)), np.ones((5, 2))), diagrams_step=0)
    assert Rows().row(replace(make(0), groups={"a": small, "b": loops}))["topo/loops"] == 5.0
    assert "topo/loops" not in Rows().row(replace(make(0), groups={"a": replace(small, n=4), "b": loops}))


def test_wandb_holds_every_reading_and_measurement(tmp_path, wandb_offline, wandb_rows):
    from topoopt.integrations.wandb import WandbSink

    sink = WandbSink(images=0.0, layers=2)
    done = train(sink)
    assert (sink.dropped, sink.faults) == (0, 0)
    wandb_offline.teardown()
    rows, metrics, summary = wandb_rows(tmp_path)
    seen = by_step([row for row in rows if "topo/step" in row])
    assert sorted(seen) == list(range(8))
    for reading in done.readings:
        row = seen[reading.step]
        assert row["topo_details/r"] == pytest.approx(reading.r)
        assert row["topo/r_over_edge"] == pytest.approx(reading.r / 2)
        assert row["topo/loss"] == pytest.approx(reading.loss)
    scalars = {key for row in seen.values() for key in row if not key.startswith(("topo/r_table", "topo_"))}
    assert scalars == set(HEADLINES)
    assert {step for step, row in seen.items() if "topo_layers/0/gain" in row} == {0, 4}
    assert seen[0]["topo_layers/0/diagram._type"] == "image-file"
    last = rows[-1]
    assert last["topo/r_table.nrows"] == 24  # r, 1 and e at each of 8 steps
    assert last["topo_layers/table.nrows"] == 1
    assert last["topo_details/history._type"] == "image-file"
    assert metrics["topo/r_over_edge"]["step_metric"] == "topo/step"
    assert metrics["topo_layers/0/gain"]["step_metric"] == "topo/step"
    charts = {key for row in seen.values() for key in row if not key.endswith(("._type", ".path", ".size", ".sha256"))}
    sections = {key.partition("/")[0] for key in charts}
    assert sections == {"topo", "topo_details", "topo_layers"}
    assert {key for key in metrics if key.startswith("topo/")} == {*HEADLINES, "topo/step", "topo/r"}
    assert summary["topo/verdict_text"] == str(done.verdict)
    assert summary["topo/verdict"] == done.verdict.state


def test_wandb_has_the_settings_and_an_alert(tmp_path, wandb_offline):
    from topoopt.integrations.wandb import WandbSink

    run = wandb_offline.init(project="theirs")
    told = []
    run.alert = lambda title, text, level: told.append((title, text, level))
    done = train(WandbSink(run, images=None), steps=40, lr=30.0)
    assert run.config["topoopt"]["every"] == 4
    assert run.config["topoopt"]["optimizer"] == "SGD"
    assert done.verdict.state in ("too high", "collapsed")
    assert told[0][2] == "WARN"
    assert "above its start" in told[-1][1]
    assert len({title.rpartition(": ")[2] for title, _, _ in told}) == len(told)  # no state is told twice in a row
    run.finish()


def test_wandb_keeps_the_rows_of_the_runs_owner(tmp_path, wandb_offline, wandb_rows):
    """W&B drops a row whose step is smaller than its counter: ours ride along, and what is left becomes a table."""
    from topoopt.integrations.wandb import WandbSink

    run = wandb_offline.init(project="theirs")
    sink = WandbSink(run, images=None)

    def each(step):
        if step % 5 == 4:
            run.log({"val": float(step)}, step=step // 5)

    done = train(sink, steps=20, each=each)
    run.log({"test": 1.0}, step=4)
    run.finish()
    wandb_offline.teardown()
    rows, _, _ = wandb_rows(tmp_path)
    assert [row["val"] for row in rows if "val" in row] == [4.0, 9.0, 14.0, 19.0]
    assert [row["test"] for row in rows if "test" in row] == [1.0]
    shown = by_step([row for row in rows if "topo/step" in row])
    assert shown
    read = {reading.step: reading.r for reading in done.readings}
    for step, row in shown.items():
        assert row["topo_details/r"] == pytest.approx(read[step])
    (path,) = [row["topo_details/left.path"] for row in rows if "topo_details/left.path" in row]
    (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{path}")
    left = json.loads(file.read_text())
    column = left["columns"].index("topo/step")
    assert shown.keys() | {row[column] for row in left["data"]} == set(range(20))
    assert any(row.get("topo/r_table.nrows") == 60 for row in rows)


def test_wandb_writes_rows_of_its_own_where_nobody_else_does(tmp_path, wandb_offline, wandb_rows):
    from topoopt.integrations.wandb import WandbSink

    run = wandb_offline.init(project="theirs")
    train(WandbSink(run, images=None))
    run.log({"still": 1.0})  # the run is its owner's, and goes on
    run.finish()
    wandb_offline.teardown()
    rows, _, _ = wandb_rows(tmp_path)
    assert sorted(by_step([row for row in rows if "topo/step" in row])) == list(range(8))
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
    done = train(sink)
    assert (sink.dropped, sink.faults) == (0, 0)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    curve = [(e.step, e.value) for e in events.Scalars("topo/r_over_edge")]
    assert curve == [(reading.step, pytest.approx(reading.r / 2)) for reading in done.readings]
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("topo/")} == set(HEADLINES)
    assert [e.step for e in events.Scalars("topo_layers/0/gain")] == [0, 4]
    assert [e.step for e in events.Images("topo_layers/0/diagram")] == [0, 4]
    assert [e.step for e in events.Images("topo_details/history")] == [4]
    texts = events.Tags()["tensors"]
    for tag in ("topo_layers/table", "topo/phase_name", "topo/verdict", "topo_details/settings"):
        assert f"{tag}/text_summary" in texts
    said = events.Tensors("topo/verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(line in said for line in done.verdict.lines)


TRACKIO = """
import json, sys
import trackio
from trackio.sqlite_storage import SQLiteStorage
sys.path[:0] = sys.argv[1:]
from conftest import measurement
from topoopt.integrations.trackio import TrackioSink
from topoopt.measurement import Phase
from topoopt.summary import Run, Summary
from topoopt.verdict import judge
run = trackio.init(project="topo", name="theirs", embed=False, auto_log_cpu=False, auto_log_gpu=False)
sink = TrackioSink(run, images=0.0, layers=1)
for step in range(3):
    sink(measurement(step, phase=Phase.PERMISSIVE))
about = Run("id", "", "MLP", 1, "SGD", "sgd", (0.1,), {}, {})
sink.end(Summary(about, judge([]), 3, 0, 3, 1.0, 0.1, 0.0))
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
    assert [rows[step]["topo_details/r"] for step in range(3)] == [0.5, 1.5, 2.5]
    assert all(rows[step]["topo/phase"] == 1.0 for step in range(3))
    assert "topo_details/eta_star_high/0" not in rows[0]  # infinite
    assert rows[0]["topo_layers/layer.0/diagram"]["_type"] == "trackio.image"
    assert "topo_layers/layer.0/diagram" not in rows[1]  # the same homology is not drawn again
    assert len(rows[2]["topo_layers/table"]["_value"]) == 2
    assert "Nothing was read" in rows[3]["topo/verdict_text"]
    assert found["rows"][-1]["still"] == 1.0
