"""PyHessian as shipped beside the warm tracker: products spent, and the error of the top eigenvalue when they are spent.

    python benchmarks/curvature_pyhessian.py [--measurements 20] [--seeds 0 1 2] [--only mlp cnn gpt2 bert]

PyHessian runs its own `eigenvalues()` with its own stopping rule from its own random vector. It puts the model into eval
mode, so the tracker is run on the eval-mode loss too, and PyHessian's error is also given against the loss that is trained.
The tracker gets a fixed number of products, after a cold start with ten before the first measurement; named is the fewest
whose error (median, and worst, over the measurements of all runs) is at most PyHessian's. Weights move by ten Adam steps
between measurements. The reference is Lanczos with 60 products.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from curvature_products import BETWEEN, bert, cnn, digits, gpt2, measure, mlp, tokens, trackers_of
from torch import Tensor, nn, optim
from torch.nn.attention import SDPBackend, sdpa_kernel

from topoopt.curvature import proximity

MOST = 8
Batch = tuple[Tensor, Tensor]
Criterion = Callable[[Any, Tensor], Tensor]


def classes(out: Any, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(getattr(out, "logits", out), target)


def following(out: Any, target: Tensor) -> Tensor:
    """Next token."""
    return nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def batches() -> dict[str, tuple[Batch, Criterion]]:
    """The probe of each network of curvature_products, in the form that PyHessian takes."""
    (x, y), (ids, labels) = digits(), tokens()
    return {
        "mlp": ((x[:256], y[:256]), classes),
        "cnn": ((x[:256].view(-1, 1, 8, 8), y[:256]), classes),
        "gpt2": ((ids[:32], ids[:32]), following),
        "bert": ((ids[:64], labels[:64]), classes),
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients left behind."""
    model.eval()
    try:
        yield
    finally:
        model.train()
        model.zero_grad(set_to_none=True)


def pyhessian(model: nn.Module, batch: Batch, criterion: Criterion, seed: int) -> tuple[float, int]:
    """Its top eigenvalue and the products it took; attention is spelled out, without which it stops with an error."""
    theirs: Any = importlib.import_module("pyhessian.hessian")  # the package's attribute of that name is the class
    product, spent = theirs.hessian_vector_product, 0

    def counted(*args: Any) -> Any:
        nonlocal spent
        spent += 1
        return product(*args)

    theirs.hessian_vector_product = counted
    try:
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), evaluating(model):
            torch.manual_seed(seed)
            found = theirs.hessian(model, criterion, data=batch, cuda=False).eigenvalues()[0][0]
    finally:
        theirs.hessian_vector_product = product
    return abs(float(found)), spent


@dataclass
class Run:
    """Each measurement's figures."""

    products: list[int] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    """PyHessian's error against the eval-mode truth."""
    trained: list[float] = field(default_factory=list)
    """The same against the loss that is trained."""
    eval_mode: dict[int, list[float]] = field(default_factory=lambda: {m: [] for m in range(1, MOST + 1)})
    """The tracker's errors on the eval-mode loss, by its products."""
    train_mode: dict[int, list[float]] = field(default_factory=lambda: {m: [] for m in range(1, MOST + 1)})
    """The tracker's errors on the loss that is trained."""


def measured(name: str, measurements: int, seed: int, run: Run) -> None:
    """Add one run of training with a measurement every ten steps."""
    torch.manual_seed(seed)
    model, training, probe = {"mlp": mlp, "cnn": cnn, "gpt2": gpt2, "bert": bert}[name]()
    batch, criterion = batches()[name]
    optimizer, unit = optim.Adam(model.parameters(), lr=1e-3), optim.SGD(model.parameters(), lr=1.0)
    evals, trains = (trackers_of(unit, MOST) for _ in range(2))

    def plain() -> Tensor:
        return criterion(model(batch[0]), batch[1])

    for turn in range(measurements + 1):
        for _ in range(BETWEEN if turn else 100):
            optimizer.zero_grad()
            training().backward()
            optimizer.step()
        model.zero_grad(set_to_none=True)
        with evaluating(model):
            truth = proximity(unit, plain, products=60, grads="probe").r
            ours = {m: abs(measure(t, plain, m) / truth - 1) for m, t in evals.items()}
        other = proximity(unit, probe, products=60, grads="probe").r
        same = {m: abs(measure(t, probe, m) / other - 1) for m, t in trains.items()}
        if not turn:  # a tracker's cold start
            continue
        value, spent = pyhessian(model, batch, criterion, 1000 * seed + turn)
        run.products.append(spent)
        run.theirs.append(abs(value / truth - 1))
        run.trained.append(abs(value / other - 1))
        for m in ours:
            run.eval_mode[m].append(ours[m])
            run.train_mode[m].append(same[m])


def fewest(errors: dict[int, list[float]], bound: float, of: Callable[[list[float]], float]) -> float:
    """Fewest products whose error is at most the bound; infinity where none is."""
    return next((m for m, row in errors.items() if of(row) <= bound), float("inf"))


def main() -> None:
    """Print one line a network and statistic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=["mlp", "cnn", "gpt2", "bert"])
    given = parser.parse_args()
    columns = ("their products", "their error", "against trained", "ours, eval", "ratio", "ours, trained", "ratio")
    print(f"{'network':<9}{'over':<8}" + "".join(f"{c:>16}" for c in columns))
    for name in given.only:
        run = Run()
        for seed in given.seeds:
            measured(name, given.measurements, seed, run)
        for label, of in (("median", statistics.median), ("worst", max)):
            spent, bound = statistics.median(run.products), of(run.theirs)
            ours, same = fewest(run.eval_mode, bound, of), fewest(run.train_mode, bound, of)
            row = f"{spent:>16.1f}{bound:>16.2e}{of(run.trained):>16.2e}"
            row += f"{ours:>16.0f}{ours / spent:>16.2f}{same:>16.0f}{same / spent:>16.2f}"
            print(f"{name:<9}{label:<8}{row}", flush=True)


if __name__ == "__main__":
    main()
