"""Training runs on any device, for tests: the same on a GPU, on the device made of the CPU and on the CPU itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from topoopt import TopoOptimizer

Make = Callable[[Iterable[Tensor], torch.device], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p, device: torch.optim.SGD(p, 0.05),
    "momentum": lambda p, device: torch.optim.SGD(p, 0.02, momentum=0.9, nesterov=True),
    "AdamW": lambda p, device: torch.optim.AdamW(p, 1e-2),
    "fused AdamW": lambda p, device: torch.optim.AdamW(p, 1e-2, fused=True),
    "capturable AdamW": lambda p, device: torch.optim.AdamW(p, torch.tensor(1e-2).to(device), capturable=True),
    "RMSprop": lambda p, device: torch.optim.RMSprop(p, 1e-3),
}


def accelerator() -> torch.device:
    """Whatever accelerator torch finds; for tests marked `gpu`, which are skipped where there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        pytest.skip("torch finds no accelerator here")
    return torch.device(found.type, torch.accelerator.current_device_index())


def network(groups: int = 2, dropout: float = 0.0) -> nn.Sequential:
    """A perceptron with so many groups of neurons, the same at every call."""
    with torch.random.fork_rng([]):
        torch.random.default_generator.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(10, 12), nn.Tanh()]
        for _ in range(groups - 1):
            layers += [nn.Linear(12, 12), nn.Tanh()]
        return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []), nn.Linear(12, 3))


def batches(steps: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of a problem that can be learned."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 10, generator=generator)
        yield x.to(device), x[:, :3].argmax(1).to(device)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    device: torch.device,
    *,
    clip: float | None = None,
    watch: Callable[[], AbstractContextManager[Any]] = nullcontext,
    after: Callable[[Any], None] = lambda seen: None,
) -> None:
    """Train; `watch` looks on at backward and step, and `after` is told at each step's end what it saw."""
    for x, y in batches(steps, device):
        optimizer.zero_grad()
        with watch() as seen:
            F.cross_entropy(model(x), y).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        after(seen)


def wrapped(model: nn.Module, optimizer: Optimizer, **options: Any) -> TopoOptimizer:
    """Measured every 4 steps, read at most steps between."""
    return TopoOptimizer(optimizer, model, **{"every": 4, "budget": None, "max_points": 32, **options})


def weights(model: nn.Module) -> list[Tensor]:
    """On the host."""
    return [p.detach().cpu().clone() for p in model.state_dict().values()]
