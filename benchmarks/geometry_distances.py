"""Distances: seconds beside the bare product X X^T, and how wrong near twins come out.

    python benchmarks/geometry_distances.py [--n 2048] [--d 513]

Every library gets the same float32 points; half of them have a twin at the relative separation named. Medians of three
runs on one thread; the error is the largest relative one over the pairs of twins, against float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import pairwise_distances
from torch import Tensor

from topoopt.geometry import compare, distances, ratios

SEPARATIONS = (1e-1, 1e-3, 1e-5)


def seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def twins(n: int, d: int, separation: float) -> Tensor:
    """Points 2 k and 2 k + 1 are that far apart, as a share of their norm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    x[1::2] = x[::2] + separation * torch.randn(n // 2, d, generator=generator)
    return x


def error(find: Callable[[Tensor], Tensor], x: Tensor) -> float:
    exact = (x[::2].double() - x[1::2].double()).norm(dim=1)
    found = find(x)[::2, 1::2].diagonal().double()
    return float(((found - exact) / exact).abs().max())


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--n", type=int, default=2048)
    arguments.add_argument("--d", type=int, default=513)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    n, d = options.n, options.d
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    floor = seconds(lambda: x @ x.T)
    print(f"n = {n}, d = {d}; X X^T takes {floor:.3f} s")
    libraries: dict[str, Callable[[Tensor], Tensor]] = {
        "topoopt": distances,
        "torch.cdist": lambda x: torch.cdist(x, x),
        "torch.cdist, no product": lambda x: torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"),
        "scikit-learn": lambda x: torch.from_numpy(pairwise_distances(x.numpy())),
        "scipy": lambda x: torch.from_numpy(squareform(pdist(x.numpy().astype(np.float64)))),
    }
    print(f"{'distances':<26}{'times X X^T':>12}" + "".join(f"{'error ' + format(s, '.0e'):>16}" for s in SEPARATIONS))
    for name, find in libraries.items():
        errors = "".join(f"{error(find, twins(n, d, s)):>16.1e}" for s in SEPARATIONS)
        print(f"{name:<26}{seconds(lambda: find(x)) / floor:>12.2f}{errors}", flush=True)  # noqa: B023
    y = x + 1e-3 * torch.randn(n, d, generator=torch.Generator().manual_seed(2))
    of_y = distances(y)
    print(f"\n{'of a step':<26}{'times X X^T':>12}")
    print(f"{'compare':<26}{seconds(lambda: compare(x, y)) / floor:>12.2f}")
    print(f"{'ratios':<26}{seconds(lambda: ratios(x, y)) / floor:>12.2f}")
    print(f"{'ratios, given distances':<26}{seconds(lambda: ratios(x, y, distances=of_y)) / floor:>12.2f}")


if __name__ == "__main__":
    main()
