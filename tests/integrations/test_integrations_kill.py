"""kill -9 in mid-training: what resumes from the last checkpoint ends where the unbroken run ends, and measures at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

HERE = Path(__file__).parent

TRAINER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_integrations_transformers import TopoCallback, TrainerCallback, bert, rows
from transformers import Trainer, TrainingArguments
import json, torch
folder, die, resume = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume"

class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == die:
            os.kill(os.getpid(), signal.SIGKILL)

seen = open(os.path.join(folder, "record.jsonl"), "a")
def sink(measurement):
    seen.write(json.dumps({"lr_scale": measurement.lr_scale, **measurement.scalars()}) + "\\n")
    seen.flush()

args = TrainingArguments(output_dir=folder, max_steps=9, per_device_train_batch_size=8, learning_rate=1e-2,
    logging_steps=1, save_strategy="steps", save_steps=3, report_to="none", use_cpu=True, disable_tqdm=True,
    dataloader_pin_memory=False)
callback = TopoCallback(every=2, budget=None, homology=1, wait=True, sinks=[sink])
trainer = Trainer(model=bert(), args=args, train_dataset=rows(), callbacks=[callback, Die()])
trainer.train(resume_from_checkpoint=resume)
torch.save([p.detach() for p in trainer.model.parameters()], os.path.join(folder, "end.pt"))
"""

PLAIN = """
import os, signal, sys
import json, torch
from torch import nn
from topoopt import TopoOptimizer
folder, die, resume = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume"
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
loss = lambda: nn.functional.cross_entropy(model(x), y)
adam = torch.optim.Adam(model.parameters(), lr=1e-2)
optimizer = TopoOptimizer(adam, model, every=2, budget=None, wait=True)
seen = open(os.path.join(folder, "record.jsonl"), "a")
def sink(measurement):
    seen.write(json.dumps({"lr_scale": measurement.lr_scale, **measurement.scalars()}) + "\\n")
    seen.flush()
optimizer.add_sink(sink)
path = os.path.join(folder, "checkpoint.pt")
if resume:
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
for step in range(optimizer.steps, 9):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    if step % 3 == 2:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path + ".new")
        os.replace(path + ".new", path)
    if step + 1 == die:
        os.kill(os.getpid(), signal.SIGKILL)
torch.save([p.detach() for p in model.parameters()], os.path.join(folder, "end.pt"))
"""


def run(script, folder, die, how):
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(HERE), str(folder), str(die), how]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


def record(folder):
    """Return the measurements by step; of a step measured twice (before and after the kill), the later one."""
    measurements = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    return {
        m["topo/step"]: {k: v for k, v in m.items() if k not in ("topo/seconds", "topo/share")} for m in measurements
    }


@pytest.mark.parametrize("script", [TRAINER, PLAIN], ids=["trainer", "plain"])
def test_killed_and_resumed_is_the_unbroken_run(tmp_path, script):
    done = run(script, tmp_path / "unbroken", 0, "fresh")
    assert done.returncode == 0, done.stderr[-3000:]
    killed = run(script, tmp_path / "broken", 5, "fresh")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    resumed = run(script, tmp_path / "broken", 0, "resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    ends = [torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("unbroken", "broken")]
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))
    whole, pieces = record(tmp_path / "unbroken"), record(tmp_path / "broken")
    assert list(whole) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert list(pieces) == [0.0, 2.0, 4.0, 3.0, 5.0, 7.0]  # killed after 5 steps, resumed from 3
    for step in (0.0, 2.0, 4.0):
        assert pieces[step].keys() == whole[step].keys()
        exact = [key for key in whole[step] if "r_spec" not in key and "eta_star" not in key]
        assert [pieces[step][key] for key in exact] == [whole[step][key] for key in exact]
