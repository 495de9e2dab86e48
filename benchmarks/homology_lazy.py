"""How often the certificate asks for H1, and whether it ever missed a feature: lazy against measuring every time.

    python benchmarks/homology_lazy.py [--steps 1000] [--every 10] [--fill] [--since DATE] [--output FILE]

A two-layer tanh network on scikit-learn's digits, and a figure eight of neurons trained by full-batch gradient descent
(Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670): there two loops stand out. The target is at most a quarter as many
computations, with the same features reported. A measurement that the certificate covered is wrong if another number of features
stood out than the lazy rule reported, or if a lifetime log(death / birth) had changed by more than the log of the resolution; with
that bound at 0, nearly all of them are. Where no feature stands out the rule says that none has come up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from _kept import kept, parser_of
from _results import Column, Row, Table, Value, results, save
from sklearn.datasets import load_digits
from torch import Tensor, nn

from topoopt.geometry import ratios
from topoopt.homology import Watch, persistence

ROUNDING = 1e-5
"""Of logarithms of float32 distances."""


def digits(optimizer: Callable[..., torch.optim.Optimizer], width: int, lr: float) -> Iterator[Tensor]:
    """The hidden neurons (width, 75) of a network in training, step by step."""
    torch.manual_seed(0)
    data: Any = load_digits()
    x, y = torch.tensor(data["data"] / 16, dtype=torch.float32), torch.tensor(data["target"])
    first, last = nn.Linear(64, width), nn.Linear(width, 10)
    model = nn.Sequential(first, nn.Tanh(), last)
    rule = optimizer(model.parameters(), lr=lr)
    while True:
        yield torch.cat([first.weight, first.bias[:, None], last.weight.T], dim=1).detach()
        batch = torch.randint(0, len(x), (64,))
        rule.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        rule.step()


def figure_eight(lr: float) -> Iterator[Tensor]:
    """200 neurons (w, a) of f(x) = sum a tanh(w x), started on a figure eight, learning 5 sin(2 x)."""
    t = 2 * math.pi * torch.arange(200, dtype=torch.float64) / 200
    neurons = torch.stack([t.sin(), t.sin() * t.cos()], dim=1).requires_grad_()
    x = torch.linspace(-2, 2, 64, dtype=torch.float64)
    while True:
        yield neurons.detach().clone()
        found = torch.tanh(x[:, None] * neurons[:, 0]) @ neurons[:, 1]
        (gradient,) = torch.autograd.grad((found - 5 * torch.sin(2 * x)).square().mean() / 2, neurons)
        with torch.no_grad():
            neurons -= lr * gradient


def features(diagrams: list[np.ndarray]) -> np.ndarray:
    """Ratios death / birth of H1, largest first."""
    h1 = diagrams[1]
    return np.sort(h1[:, 1] / h1[:, 0])[::-1]


def moved(before: np.ndarray, after: np.ndarray) -> float:
    """Largest change of a lifetime log(death / birth), longest with longest; what is missing has lifetime 0."""
    size = max(len(before), len(after))
    a, b = (np.pad(np.log(ratios), (0, size - len(ratios))) for ratios in (before, after))
    return float(np.abs(a - b).max(initial=0.0))


def race(clouds: Iterator[Tensor], steps: int, every: int) -> tuple[int, int, int, int, int]:
    """(measurements, computations, certified measurements, of those wrong, largest number of features watched).

    A certified measurement is wrong if another number of features stands out than is reported, or if a lifetime
    log(death / birth) has changed by more than the logarithm of the resolution, which the theorem excludes.
    """
    watch, reference, reported = None, torch.zeros(0), np.zeros(0)
    measured = computed = certified = wrong = watched = 0
    for step, cloud in zip(range(steps), clouds):
        if step % every:
            continue
        measured += 1
        exact = persistence(cloud).diagrams
        if watch is not None:
            watch = watch.observe(*ratios(reference, cloud))
        if watch is None or watch.stale:
            watch, reference, reported = Watch.of(exact), cloud.clone(), features(exact)
            computed += 1
        else:
            certified += 1
            same = Watch.of(exact).watched == watch.watched
            wrong += not (same and moved(reported, features(exact)) <= math.log(watch.resolution) + ROUNDING)
        watched = max(watched, watch.watched)
    return measured, computed, certified, wrong, watched


COLUMNS = (
    Column("measured", "count", ""),
    Column("computed", "count", factor=1.5, slack=2),
    Column("wrong", "count", factor=1.0),
    Column("features watched", "count", ""),
)
PACKAGES = ("redzed-tda", "scikit-learn")


def main() -> None:
    arguments = parser_of(__doc__)
    arguments.add_argument("--steps", type=int, default=1000)
    arguments.add_argument("--every", type=int, default=10)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    runs = {
        "digits, 64 neurons, SGD 0.1": digits(torch.optim.SGD, 64, 0.1),
        "digits, 200 neurons, SGD 0.1": digits(torch.optim.SGD, 200, 0.1),
        "digits, 64 neurons, Adam 0.001": digits(torch.optim.Adam, 64, 1e-3),
        "digits, 200 neurons, Adam 0.01": digits(torch.optim.Adam, 200, 1e-2),
        "figure eight, GD 0.005": figure_eight(0.005),
        "figure eight, GD 0.04": figure_eight(0.04),
    }
    rows, there = [], kept(options, __file__, PACKAGES)
    if all(there.has("lazy", name, ["topoopt"]) for name in runs):
        return
    for name, clouds in runs.items():
        measured, computed, _, wrong, watched = race(clouds, options.steps, options.every)
        numbers = zip((c.name for c in COLUMNS), (measured, computed, wrong, watched))
        rows.append(Row(name, "topoopt", {key: Value.of([number]) for key, number in numbers}))
        print(f"{name:<34} measured {measured}, computed {computed}, wrong {wrong}, watched {watched}", flush=True)
    title = f"H1 computed and certified, {options.steps:,} steps, measured every {options.every}"
    table = Table("lazy", title, (__doc__ or "").split("\n\n", 2)[2].strip(), COLUMNS, tuple(rows))
    save(results(__file__, [], [table], PACKAGES), options.output)


if __name__ == "__main__":
    main()
