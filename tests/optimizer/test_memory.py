"""What measuring takes in memory: at its peak, in a process of its own beside a bare one, and between steps."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from topoopt import TopoOptimizer

PROGRAM = """
import resource, sys
import torch
from torch import nn
from torch.nn.functional import cross_entropy

torch.set_num_threads(1)
torch.manual_seed(0)
if sys.argv[1] == "gpt2":
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=64, n_embd=128, n_layer=4, n_head=4))
    ids = torch.randint(0, 512, (16, 64))
    loss = lambda: model(input_ids=ids, labels=ids).loss
else:
    layers = []
    for i, o in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.SiLU(), nn.AvgPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))
    x, y = torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,))
    loss = lambda: cross_entropy(model(x), y)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
if sys.argv[2] == "measured":
    from topoopt import TopoOptimizer

    optimizer = TopoOptimizer(optimizer, model, every=4, budget=None)
for _ in range(6):
    optimizer.zero_grad()
    loss().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
if sys.argv[2] == "measured":
    assert len(optimizer.readings) == 6 and optimizer.last.groups, optimizer.readings
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("model", ["gpt2", "convnet"])
def test_at_its_peak_a_run_takes_little_more_than_bare(model: str) -> None:
    if model == "gpt2":
        pytest.importorskip("transformers")

    def peak(how: str) -> int:
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, model, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    assert peak("measured") <= 1.15 * peak("bare")


def test_between_steps_less_than_a_quarter_of_the_weights_is_kept_and_nothing_after_detach() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 10))
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    optimizer: Any = TopoOptimizer(AdamW(model.parameters(), lr=1e-3), model, every=2, budget=None, homology=0)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tracker = optimizer.topo.reader.tracker
    assert 0 < tracker.nbytes <= 0.25 * weights
    optimizer.detach()
    assert tracker.nbytes == 0
