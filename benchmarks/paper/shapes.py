"""The paper's shape experiments: neurons on a figure eight in the plane and on a genus-2 surface in space.

A two-layer tanh network whose neurons (w, a) are put on the shape and trained by full-batch gradient descent: with plain
learning rates, held below eta* (`Preserve`), and taken to the edge (`Simplify`). Reported: the loops that stand out,
persistence over the cloud's diameter (the figure eight has 2, the surface 4), before and after; the largest r; the largest
r_pair of any measured step. Writes a picture of the clouds and of r.

    python benchmarks/paper/shapes.py [--steps 2000] [--out benchmarks/paper]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from topoopt import Measurement, Preserve, Report, Simplify, TopoOptimizer
from topoopt.control import Policy
from topoopt.geometry import distances
from topoopt.homology import persistence
from topoopt.report import plots


@dataclass(frozen=True)
class Shape:
    """Where the neurons start, and what they learn."""

    name: str
    loops: int
    points: Callable[[], Tensor]  # (n, inputs + 1): incoming weights and the outgoing one
    inputs: Tensor  # (m, inputs)
    target: Callable[[Tensor], Tensor]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    before: Tensor
    after: Tensor
    losses: tuple[float, float]
    measurements: list[Measurement]


class Net(nn.Module):
    """f(x) = sum_i a_i tanh(w_i . x), the neurons given."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        n, width = points.shape
        self.hidden = nn.Linear(width - 1, n, bias=False, dtype=torch.float64)
        self.out = nn.Linear(n, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.hidden.weight.copy_(points[:, :-1])
            self.out.weight.copy_(points[:, -1:].T)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(x)))

    def neurons(self) -> Tensor:
        return torch.cat([self.hidden.weight, self.out.weight.T], dim=1).detach().clone()


def figure_eight(n: int = 200) -> Tensor:
    t = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([torch.sin(t), torch.sin(t) * torch.cos(t)], dim=1)


def genus_two(n: int = 400) -> Tensor:
    """(x (x - 1)^2 (x - 2) + y^2)^2 + z^2 = 0.01, a chain of two tori, thinned out to n even points by maxmin."""
    from topoopt.geometry import maxmin

    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([-0.2, -0.75, -0.11]), torch.tensor([2.2, 0.75, 0.11])
    p = (low + (high - low) * torch.rand(400_000, 3, generator=generator)).double()
    f = p[:, 0] * (p[:, 0] - 1) ** 2 * (p[:, 0] - 2) + p[:, 1] ** 2
    p = p[((f**2 + p[:, 2] ** 2).sqrt() - 0.1).abs() < 0.004]
    chosen = p[maxmin(p, n).indices]
    return chosen - chosen.mean(dim=0)


def shapes() -> list[Shape]:
    line = torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
    grid = torch.linspace(-2, 2, 9, dtype=torch.float64)
    plane = torch.cartesian_prod(grid, grid)
    return [
        Shape("figure eight", 2, figure_eight, line, lambda x: 5 * torch.sin(2 * x), (0.01, 0.04)),
        Shape(
            "genus 2", 4, genus_two, plane, lambda x: 5 * torch.sin(2 * x[:, :1]) * torch.cos(x[:, 1:]), (0.002, 0.02)
        ),
    ]


def run(shape: Shape, policy: Policy, lr: float, steps: int) -> Outcome:
    """Train by full-batch gradient descent, measured at every 20th step."""
    net, y = Net(shape.points()), shape.target(shape.inputs)

    def loss() -> Tensor:
        return (net(shape.inputs) - y).square().mean() / 2

    before, first = net.neurons(), float(loss().detach())
    sgd = torch.optim.SGD(net.parameters(), lr=lr)
    optimizer = TopoOptimizer(sgd, net, mode=policy, loss=loss, every=20, budget=None, homology=-1, per_group=False)
    seen: list[Measurement] = []
    optimizer.add_sink(seen.append)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.detach()
    return Outcome(before, net.neurons(), (first, float(loss().detach())), seen)


def loops(points: Tensor, count: int) -> list[float]:
    """The largest H1 persistences over the diameter; empty when the points are lost."""
    if not bool(torch.isfinite(points).all()):
        return []
    d = distances(points)
    diagram = persistence(distances=d, degree=1).diagrams[1]
    largest = sorted(((death - birth) / float(d.max()) for birth, death in diagram), reverse=True)[:count]
    return largest + [0.0] * (count - len(largest))


def show(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values) or "lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| shape | policy | lr | loss | loops before | loops after | largest r | largest r_pair |\n|" + "---|" * 8)
    for shape in shapes():
        runs: dict[str, Outcome] = {}
        for lr in shape.rates:
            for policy in (Report(), Preserve(), Simplify()):
                outcome = runs[f"{policy.name}, lr {lr:g}"] = run(shape, policy, lr, options.steps)
                largest = max(m.proximity for m in outcome.measurements if math.isfinite(m.proximity))
                pair = max(m.r_pair for m in outcome.measurements if math.isfinite(m.r_pair))
                cells = [shape.name, policy.name, f"{lr:g}", f"{outcome.losses[0]:.3g} to {outcome.losses[1]:.3g}",
                         show(loops(outcome.before, shape.loops)), show(loops(outcome.after, shape.loops)),
                         f"{largest:.2f}", f"{pair:.3f}"]  # fmt: skip
                print("| " + " | ".join(cells) + " |", flush=True)
        picture(shape, runs, options.out / f"{shape.name.replace(' ', '_')}.png")


def picture(shape: Shape, runs: dict[str, Outcome], path: Path) -> None:
    """Clouds before (grey) and after, and r over the steps, a column for each run."""
    figure = plots.new_figure(2.6 * len(runs), 5.2)
    axes = figure.subplots(2, len(runs), squeeze=False)
    for column, (name, outcome) in enumerate(runs.items()):
        cloud, history = axes[0, column], axes[1, column]
        cloud.scatter(
            outcome.before[:, 0], outcome.before[:, -2 + (outcome.before.shape[1] == 2)], s=2, color="#bbbbbb"
        )
        cloud.scatter(outcome.after[:, 0], outcome.after[:, -2 + (outcome.after.shape[1] == 2)], s=4, color="#e76f51")
        cloud.set_title(name, fontsize=8)
        history.plot(
            [m.step for m in outcome.measurements], [m.proximity for m in outcome.measurements], color="#1d3557"
        )
        for level in (1.0, 2.0):
            history.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        history.set(xlabel="step", ylim=(0, 4))
    axes[1, 0].set_ylabel("r")
    figure.suptitle(shape.name, fontsize=10)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
