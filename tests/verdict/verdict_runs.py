"""Short real runs with their readings, for verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt.curvature import SpectralTracker
from topoopt.measurement import SpectralReading


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)


def mlp(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 10))


def readings_of(
    model: nn.Module,
    make: Callable[..., torch.optim.Optimizer],
    lr: float,
    *,
    batch: int = 64,
    steps: int = 105,
    every: int = 5,
    loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> list[SpectralReading]:
    """Train on digits at a fixed rate and read the step's own batch; a batch of 0 is all of the first 200 digits."""
    x, y = digits()
    optimizer = make(model.parameters(), lr=lr)
    tracker, generator = SpectralTracker(optimizer, products=2), torch.Generator().manual_seed(1)
    found: list[SpectralReading] = []
    for step in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator) if batch else slice(200)
        loss = loss_of(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        gradient = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in model.parameters() if p.grad is not None))
        reading = step % every == 0
        if reading:
            estimate = tracker.estimate(
                lambda chosen=chosen: loss_of(model(x[chosen]), y[chosen]), when="upcoming", model=model
            )
            silent = silent_share(model, x[chosen])
        optimizer.step()
        if reading:
            moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
            finite = math.isfinite(estimate.r)
            found.append(
                SpectralReading(
                    step=step,
                    r=estimate.r,
                    edge=estimate.edge,
                    rule=estimate.rule,
                    lr=(lr,),
                    loss=float(loss.detach()),
                    baseline=baseline_of(y[chosen]) if loss_of is cross_entropy else math.nan,
                    grad_norm=gradient,
                    update_ratio=float(moved.norm() / before.norm()),
                    weight_norm=float(before.norm()),
                    probe=len(x[chosen]),
                    silent=silent,
                    reason="" if finite else "the loss or its curvature is not finite",
                    warming="its averages are young" if step < 10 and "ad" in estimate.rule else "",
                )
            )
    return found


def baseline_of(y: Tensor) -> float:
    """The labels' entropy."""
    return float(torch.distributions.Categorical(probs=torch.bincount(y).float()).entropy())


@torch.no_grad()
def silent_share(model: nn.Module, x: Tensor) -> float:
    """Share of the activations' units with the same output on every sample."""
    silent = units = 0
    for layer in model.children():
        x = layer(x)
        if not isinstance(layer, nn.Linear):
            silent, units = silent + int((x.amax(0) == x.amin(0)).sum()), units + x.shape[1]
    return silent / units


def squared(output: Tensor, y: Tensor) -> Tensor:
    """Squared error to one-hot targets, which keeps its curvature."""
    return (output - nn.functional.one_hot(y, 10)).pow(2).sum(1).mean() / 2
