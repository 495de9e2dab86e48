"""Where full-batch training settles: r / e, each rule over a span of learning rates, every run shown.

    python benchmarks/curvature_edge.py [--steps 4000] [--plot edge.png] [--output FILE]

Full-batch training of a small tanh network on a squared error that it cannot fit. r / e is the proximity over the rule's edge of
stability (2 for gradient descent, 2 (1 + beta) with averaged gradients), late in the run: 1 where theory is right. A run that has
fitted its data stops sharpening and need not be at the edge; its last loss says so.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _results import Column, Row, Table, Value, results, save
from torch import Tensor, nn, optim

from topoopt.curvature import SpectralTracker

Make = Callable[[Any, float], optim.Optimizer]
RULES: dict[str, tuple[Make, float]] = {
    "gd": (lambda p, lr: optim.SGD(p, lr=lr), 0.4),
    "heavy ball": (lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9), 0.4),
    "adam, beta1 0": (lambda p, lr: optim.Adam(p, lr=lr, betas=(0.0, 0.999)), 0.004),
    "adam, beta1 0.5": (lambda p, lr: optim.Adam(p, lr=lr, betas=(0.5, 0.999)), 0.004),
    "adam, beta1 0.9": (lambda p, lr: optim.Adam(p, lr=lr, betas=(0.9, 0.999)), 0.004),
    "rmsprop": (lambda p, lr: optim.RMSprop(p, lr=lr), 0.004),
}
"""Each rule with the middle of its span of rates, which is taken times SPAN.

Heavy ball at 0.15 and below stops sharpening before it has reached the edge, which lies at 3.8 over the rate.
"""
SPAN = (0.5, 1.0, 1.5)
EVERY = 10


def problem(seed: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A small tanh network that regresses sines of random projections, more than it can fit; mean squared error."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 8, generator=generator)
    y = torch.sin(3 * x @ torch.randn(8, 3, generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    return model, lambda: (model(x) - y).square().mean()


def shares_of_the_edge(make: Make, lr: float, steps: int, seed: int = 0) -> tuple[list[float], float]:
    """(r / e before every tenth step, last loss) of one full-batch run."""
    model, loss = problem(seed)
    optimizer = make(model.parameters(), lr)
    tracker = SpectralTracker(optimizer, products=6)
    shares: list[float] = []
    value = loss()
    for step in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        if step % EVERY == 0:
            found = tracker.estimate(loss)
            assert found.edge is not None
            shares.append(found.r / found.edge)
        optimizer.step()
    return shares, value.item()


def settled(shares: list[float]) -> float:
    """Median over the last two fifths of a run."""
    return statistics.median(shares[-(2 * len(shares) // 5) :])


def main() -> None:
    """Print the table, and draw the runs where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", help="write the runs of every rule to this file")
    given = parser.parse_args()
    runs: dict[str, list[tuple[float, list[float]]]] = {}
    rows: list[Row] = []
    for name, (make, middle) in RULES.items():
        for factor in SPAN:
            shares, last = shares_of_the_edge(make, middle * factor, given.steps)
            runs.setdefault(name, []).append((middle * factor, shares))
            values = {"r / e": Value.of([settled(shares)]), "last loss": Value.of([last])}
            rows.append(Row(name, f"topoopt, lr {middle * factor:.3g}", values))
            print(f"{name:<18}{middle * factor:>8.4g}{settled(shares):>8.3f}{last:>12.2e}", flush=True)
    columns = (Column("r / e", "x", ""), Column("last loss", "x", ""))
    explains = (__doc__ or "").split("\n\n", 2)[2].strip()
    table = Table("edge", f"r over the edge of stability, {given.steps:,} steps", explains, columns, tuple(rows))
    save(results(__file__, [], [table], ()), given.output)
    if given.plot:
        draw(runs, given.plot)


def draw(runs: dict[str, list[tuple[float, list[float]]]], path: str) -> None:
    """One panel a rule, one line a rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), sharey=True, layout="constrained")
    for axis, (name, lines) in zip(axes.flat, runs.items()):
        axis.axhspan(0.9, 1.1, color="0.9")
        for lr, shares in lines:
            axis.plot([EVERY * i for i in range(len(shares))], shares, label=f"lr {lr:.3g}", linewidth=1)
        axis.set(title=name, ylim=(0, 2), xlabel="step", ylabel="r / e")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
