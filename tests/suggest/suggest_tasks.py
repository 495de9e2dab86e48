"""Small trainings for the tests of `topoopt.suggest`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Batch = tuple[Tensor, Tensor]


def digits(count: int, size: int = 64) -> list[Batch]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    generator = torch.Generator().manual_seed(1)
    picks = [torch.randint(len(x), (size,), generator=generator) for _ in range(count)]
    return [(x[i], y[i]) for i in picks]


def mlp(width: int = 48, depth: int = 2, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [64, *[width] * depth]
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def final_loss(make: Callable[..., torch.optim.Optimizer], batches: list[Batch], lr: float) -> float:
    """The mean of the last twenty losses under a cosine schedule."""
    model = mlp()
    optimizer = make(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20
