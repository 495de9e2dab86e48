"""What an installed topoopt must do where there is nothing else: measure, record, end."""

from __future__ import annotations

import torch
from torch import nn

from topoopt import TopoOptimizer
from topoopt.report import JsonLines, read

if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    optimizer = TopoOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), model, every=10, budget=None)
    optimizer.add_sink(JsonLines("smoke/record.jsonl"))
    for _ in range(31):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.detach()
    record = read("smoke")
    assert [m.step for m in record.measurements] == [0, 10, 20, 30]
    assert all(len(m.groups["0"].diagrams) == 2 for m in record.measurements), "homology did not come"
    assert not any(name.startswith("fault/") for name in record.measurements[-1].counts)
    print(optimizer.verdict)
