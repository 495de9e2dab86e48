"""Distances: seconds beside the bare product X X^T, and how wrong near twins come out.

    python benchmarks/geometry_distances.py [--n 2048] [--d 513] [--fill] [--since DATE] [--output FILE]

Every library gets the same float32 points; half of them have a twin at the relative separation named. Medians of five
runs on one thread, each beside its own X X^T; the error is the largest relative one over the pairs of twins, against float64.
A time below 1 is no error: only half of a symmetric matrix is computed. The rows of a step are of all that is found out about two
clouds, one step apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from _kept import kept, parser_of
from _results import Column, Row, Table, Value, results, save
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import pairwise_distances
from torch import Tensor

from topoopt.geometry import compare, distances, ratios

SEPARATIONS = (1e-1, 1e-3, 1e-5)


def beside(work: Callable[[], object], floor: Callable[[], object], repeats: int = 5) -> Value:
    """Processor time in units of another's, the two in turn."""
    ratios = []
    for _ in range(repeats):
        took = []
        for call in (floor, work):
            began = time.process_time()
            call()
            took.append(time.process_time() - began)
        ratios.append(took[1] / took[0])
    return Value.of(ratios)


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


LIBRARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "topoopt": distances,
    "torch.cdist": lambda x: torch.cdist(x, x),
    "torch.cdist, no product": lambda x: torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"),
    "scikit-learn": lambda x: torch.from_numpy(pairwise_distances(x.numpy())),
    "scipy (float64)": lambda x: torch.from_numpy(squareform(pdist(x.numpy().astype(np.float64)))),
}
COLUMNS = (
    Column("time over X X^T", "x", factor=2.0, slack=0.2),
    *(Column(f"error, twins at {s:.0e}", "x", factor=2.0, slack=1e-6) for s in SEPARATIONS),
)
PACKAGES = ("numpy", "scipy", "scikit-learn")


def main() -> None:
    arguments = parser_of(__doc__)
    arguments.add_argument("--n", type=int, default=2048)
    arguments.add_argument("--d", type=int, default=513)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    n, d = options.n, options.d
    if kept(options, __file__, PACKAGES).has("distances", f"n = {n:,}, d = {d:,}", list(LIBRARIES)):
        return
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    case, rows = f"n = {n:,}, d = {d:,}", []
    for name, find in LIBRARIES.items():
        values = {COLUMNS[0].name: beside(lambda: find(x), lambda: x @ x.T)}  # noqa: B023
        values |= {c.name: Value.of([error(find, twins(n, d, s))]) for c, s in zip(COLUMNS[1:], SEPARATIONS)}
        rows.append(Row(case, name, values))
    y = x + 1e-3 * torch.randn(n, d, generator=torch.Generator().manual_seed(2))
    of_y = distances(y)
    parts: dict[str, Callable[[], object]] = {
        "topoopt, compare": lambda: compare(x, y),
        "topoopt, ratios": lambda: ratios(x, y),
        "topoopt, ratios, given distances": lambda: ratios(x, y, distances=of_y),
    }
    rows += [
        Row(f"a step, {case}", name, {COLUMNS[0].name: beside(call, lambda: x @ x.T)}) for name, call in parts.items()
    ]
    for row in rows:
        print(
            f"{row.case:<28}{row.tool:<34}" + ", ".join(f"{k} {v.median:.3g}" for k, v in row.values.items()),
            flush=True,
        )
    table = Table(
        "distances", "Distances between neurons", (__doc__ or "").split("\n\n", 2)[2].strip(), COLUMNS, tuple(rows)
    )
    save(results(__file__, [], [table], PACKAGES), options.output)


if __name__ == "__main__":
    main()
