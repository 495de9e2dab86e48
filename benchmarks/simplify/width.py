"""Does simplification pay? Width that remains after training at several rates, in units of eta*.

SGD with weight decay on scikit-learn's digits, a two-layer ReLU network of 128 hidden units, at several targets of r (held
by `Hold`, in units of the edge) and at plain rates, three seeds each: test accuracy, vanishing and twin neurons, and the
width that `topoopt.compact` leaves, with the accuracy of the smaller network.

    python benchmarks/simplify/width.py [--steps 12000] [--seeds 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import mean

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt import Hold, TopoOptimizer, compact, discover
from topoopt.control import Policy, Report
from topoopt.geometry import degeneracy, distances

DECAY = 5e-4
RUNS: list[tuple[str, float, Policy]] = [
    ("plain, lr 0.03", 0.03, Report()),
    ("plain, lr 0.3", 0.3, Report()),
    ("plain, lr 1.0", 1.0, Report()),
    ("r = 0.25 e", 0.1, Hold(0.25)),
    ("r = 0.5 e", 0.1, Hold(0.5)),
    ("r = e", 0.1, Hold(1.0)),
    ("r = 1.5 e", 0.1, Hold(1.5)),
]


def data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x, y = torch.tensor(images[order] / 16.0, dtype=torch.float32), torch.tensor(labels[order])
    return x[:1400], y[:1400], x[1400:], y[1400:]


def train(lr: float, policy: Policy, seed: int, steps: int) -> tuple[nn.Module, Callable[[nn.Module], float], Tensor]:
    x, y, test_x, test_y = data(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    generator = torch.Generator().manual_seed(seed)
    batch = torch.arange(64)
    sgd = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=DECAY)
    optimizer = TopoOptimizer(
        sgd, model, mode=policy, loss=lambda: cross_entropy(model(x[batch]), y[batch]), every=500, budget=None, homology=-1,
        per_group=False, products=4,
    )  # fmt: skip
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    optimizer.detach()

    @torch.no_grad()
    def accuracy(one: nn.Module) -> float:
        return float((one(test_x).argmax(1) == test_y).double().mean())

    return model, accuracy, test_x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=0.02)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| run | test accuracy | vanishing of 128 | twins | width left | its accuracy |\n|" + "---|" * 6)
    for name, lr, policy in RUNS:
        rows = []
        for seed in range(options.seeds):
            model, accuracy, test_x = train(lr, policy, seed, options.steps)
            group = discover(model, test_x)[0]
            points = group.points(model)
            weak = degeneracy(points, distances(points))
            small, report = compact(model, [group], options.tolerance)
            rows.append((accuracy(model), weak.vanishing, weak.twins, report[group.name].kept, accuracy(small)))
        full, vanishing, twins, width, after = (mean(column) for column in zip(*rows))
        print(f"| {name} | {full:.3f} | {vanishing:.1f} | {twins:.1f} | {width:.1f} | {after:.3f} |", flush=True)


if __name__ == "__main__":
    main()
