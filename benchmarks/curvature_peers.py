"""Products and time until the top eigenvalue is right: topoopt cold and warm, beside PyHessian, hessian-eigenthings and curvlinops.

    python benchmarks/curvature_peers.py [--full] [--networks NAME ...] [--tools TOOL ...] [--fill] [--since DATE] [--output FILE]

Along runs of Adam the top eigenvalue of the Hessian of the loss that is trained is measured on one kept batch, every ten steps
after the first hundred: 18 measurements of three runs, in a short run of the benchmark 6 of two. For each tool the table has the
fewest Hessian-vector products whose median error over the measurements is at most 5 % and 1 %, and the processor time of that many,
everything else that the call takes included, in forward and backward passes of the batch. Cold calls know nothing; warm ones have
the last measurement's vector, which PyHessian and hessian-eigenthings have no argument for. For curvlinops, whose Hessian scipy's
eigsh is run on, the tolerance and the size of the basis are those of a short list that need the fewest. The truth is Lanczos with
60 products. Models are in training mode, but PyHessian puts them into eval mode, which with BatchNorm is another loss.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from _kept import kept, parser_of
from _networks import NETWORKS, Network
from _results import Column, Row, Table, Value, results, save
from _torchvision import torchvision
from torch import Tensor, nn, optim
from torch.nn.attention import SDPBackend, sdpa_kernel

from topoopt.curvature import SpectralTracker, proximity

BETWEEN = 10
SMALL = ("MLP", "CNN")
BOUNDS = {"5 %": 0.05, "1 %": 0.01}
MOST = {"topoopt, warm": 6, "topoopt, cold": 10, "PyHessian": 40, "hessian-eigenthings": 10}
BASES = ((2, 0.1), (3, 0.1), (6, 0.1), (None, 0.1))
"""Of eigsh: vectors that are kept (None: its own choice, 20), and tolerance."""


@dataclass
class Seen:
    """Errors of a tool: for each setting a list over measurements, and the products that it took."""

    errors: dict[Any, list[float]] = field(default_factory=dict)
    products: dict[Any, list[int]] = field(default_factory=dict)

    def add(self, setting: Any, value: float, truth: float, products: int) -> None:
        self.errors.setdefault(setting, []).append(abs(value / truth - 1))
        self.products.setdefault(setting, []).append(products)

    def best(self, bound: float) -> tuple[float, Any] | None:
        """(products, setting) of the cheapest setting whose median error is within the bound."""
        fit = [s for s, e in self.errors.items() if statistics.median(e) <= bound]
        return min(((statistics.median(self.products[s]), s) for s in fit), key=lambda one: one[0], default=None)


# -- peers: value and products for a setting --------------------------------------------------------------------------


def pyhessian(network: Network, most: int, seed: int) -> list[float]:
    """Its estimate after each of its products; attention is spelled out, without which it stops with an error."""
    theirs: Any = importlib.import_module("pyhessian.hessian")  # the package's attribute of that name is the class
    product, seen = theirs.hessian_vector_product, []

    def noted(gradient: Any, parameters: Any, v: Any) -> Any:
        out = product(gradient, parameters, v)
        seen.append(abs(sum(float((a * b).sum()) for a, b in zip(out, v))))
        return out

    theirs.hessian_vector_product = noted
    try:
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(seed)
            made = theirs.hessian(network.model, nn.CrossEntropyLoss(), data=network.probe, cuda=False)
            made.eigenvalues(maxIter=most, tol=0.0)
    finally:
        theirs.hessian_vector_product = product
        network.model.train()
        network.model.zero_grad(set_to_none=True)
    return seen


def eigenthings(network: Network, products: int, seed: int) -> float:
    """Lanczos from a random vector."""
    theirs: Any = importlib.import_module("hessian_eigenthings")

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with sdpa_kernel(SDPBackend.MATH):
        operator = theirs.HessianOperator(network.model, [network.probe], loss)
        return abs(float(theirs.lanczos(operator, k=1, max_iter=products, seed=seed).eigenvalues[0]))


def curvlinops(network: Network, setting: Any, start: Any) -> tuple[float, int, Any]:
    """eigsh on its Hessian: value, products, and the vector to go on from."""
    theirs: Any = importlib.import_module("curvlinops")
    from scipy.sparse.linalg import LinearOperator, eigsh

    basis, tolerance = setting
    parameters = [p for p in network.model.parameters() if p.requires_grad]
    spent = 0
    with sdpa_kernel(SDPBackend.MATH):
        made: Any = theirs.HessianLinearOperator(
            network.model, nn.CrossEntropyLoss(), parameters, [network.probe], check_deterministic=False
        )
        inner = made.to_scipy(dtype=np.float32)

        def counted(v: Any) -> Any:
            nonlocal spent
            spent += 1
            return inner @ v

        operator: Any = LinearOperator(inner.shape, matvec=counted, dtype=np.float32)  # type: ignore[call-arg]
        start = None if start is None else start.astype(np.float32)
        values, vectors = eigsh(operator, k=1, which="LM", ncv=basis, tol=tolerance, v0=start)
    return abs(float(values[0])), spent, vectors[:, 0]


# -- a run ------------------------------------------------------------------------------------------------------------


class Runs:
    """What is seen along the runs of one network."""

    def __init__(self, tools: list[str]) -> None:
        self.tools = tools
        self.seen: dict[str, Seen] = {}
        self.failed: dict[str, str] = {}
        self.calls: dict[str, Callable[[Any], Any]] = {}
        """By tool, a call with a setting on the last measurement, to be timed."""

    def run(self, network: Network, measurements: int, seed: int) -> None:
        optimizer = optim.Adam(network.model.parameters(), lr=1e-3)
        unit, training = (
            optim.SGD(network.model.parameters(), lr=1.0),
            network.batches(),
        )  # r of it is the Hessian's end
        warm = {m: SpectralTracker(unit, products=m) for m in range(1, MOST["topoopt, warm"] + 1)}
        vectors: dict[Any, Any] = {}
        for turn in range(measurements + 1):
            for _ in range(BETWEEN if turn else 100):
                optimizer.zero_grad()
                training().backward()
                optimizer.step()
            network.model.zero_grad(set_to_none=True)
            truth = proximity(unit, network.probe_loss, products=60, grads="probe").r
            self._ours(network, unit, warm, truth, first=turn == 0)
            self._peers(network, truth, vectors, turn, seed)

    def _peers(self, network: Network, truth: float, vectors: dict[Any, Any], turn: int, seed: int) -> None:
        calls: dict[str, Callable[[], None]] = {
            "PyHessian": lambda: self._pyhessian(network, truth, 1000 * seed + turn),
            "hessian-eigenthings": lambda: self._eigenthings(network, truth, 1000 * seed + turn),
            "curvlinops + eigsh": lambda: self._curvlinops(network, truth, vectors, first=turn == 0),
        }
        for tool, call in calls.items():
            if tool in self.tools and tool not in self.failed:
                try:
                    call()
                except Exception as error:  # a peer's, to be reported as its row
                    self.failed[tool] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]

    def _note(self, tool: str, setting: Any, value: float, truth: float, products: int) -> None:
        self.seen.setdefault(tool, Seen()).add(setting, value, truth, products)

    def _ours(self, network: Network, unit: Any, warm: dict[int, SpectralTracker], truth: float, first: bool) -> None:
        def read(m: int) -> float:
            with warm[m].open(network.probe_loss, grads="probe") as tracked:
                return tracked.estimate(m if warm[m].is_warm else None).r

        def cold(m: int) -> float:
            with SpectralTracker(unit, products=m, first=m).open(network.probe_loss, grads="probe") as tracked:
                return tracked.estimate(m).r

        self.calls |= {"topoopt, warm": read, "topoopt, cold": cold}
        values = {m: read(m) for m in warm}
        if first:  # a tracker's cold start
            return
        for m, value in values.items():
            self._note("topoopt, warm", m, value, truth, m)
        for m in range(1, MOST["topoopt, cold"] + 1):
            self._note("topoopt, cold", m, cold(m), truth, m)

    def _pyhessian(self, network: Network, truth: float, seed: int) -> None:
        self.calls["PyHessian"] = lambda m: pyhessian(network, m, seed)
        for i, value in enumerate(pyhessian(network, MOST["PyHessian"], seed)):
            self._note("PyHessian", i + 1, value, truth, i + 1)

    def _eigenthings(self, network: Network, truth: float, seed: int) -> None:
        self.calls["hessian-eigenthings"] = lambda m: eigenthings(network, m, seed)
        for m in range(2, MOST["hessian-eigenthings"] + 1):
            self._note("hessian-eigenthings", m, eigenthings(network, m, seed), truth, m)

    def _curvlinops(self, network: Network, truth: float, vectors: dict[Any, Any], first: bool) -> None:
        for setting in BASES:
            value, spent, found = curvlinops(network, setting, None)
            self._note("curvlinops + eigsh, cold", setting, value, truth, spent)
            if not first:
                last = vectors[setting]
                value, spent, found = curvlinops(network, setting, last)
                self._note("curvlinops + eigsh, warm", setting, value, truth, spent)
                self.calls["curvlinops + eigsh, warm"] = lambda s: curvlinops(network, s, vectors[s])
            vectors[setting] = found
        self.calls["curvlinops + eigsh, cold"] = lambda s: curvlinops(network, s, None)


def timed(call: Callable[[Any], Any], setting: Any, unit: float, repeats: int = 5) -> Value:
    """Processor time of a call with a setting, in units."""
    took = []
    for _ in range(repeats):
        began = time.process_time()
        call(setting)
        took.append((time.process_time() - began) / unit)
    return Value.of(took)


def rows_of(name: str, tools: list[str], measurements: int, seeds: list[int]) -> list[Row]:
    """Every tool along the runs of a network."""
    runs, network = Runs(tools), None
    for seed in seeds:
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        runs.run(network, measurements, seed)
    assert network is not None
    passes = []
    for _ in range(20):
        began = time.process_time()
        network.probe_loss().backward()
        passes.append(time.process_time() - began)
    rows = []
    for tool, seen in runs.seen.items():
        values, words = {}, {}
        for word, bound in BOUNDS.items():
            best = seen.best(bound)
            if best is None:
                least = min(statistics.median(e) for e in seen.errors.values())
                words["remark"] = f"never within {word}: its least median error is {least:.0%}"
                continue
            values[f"products to {word}"] = Value.of([best[0]])
            values[f"time to {word}"] = timed(runs.calls[tool], best[1], statistics.median(passes))
            if tool.startswith("curvlinops"):
                words["remark"] = f"ncv={best[1][0]}, tol={best[1][1]}"
        rows.append(Row(name, tool, values, words))
    return rows + [Row(name, tool, failed=error) for tool, error in runs.failed.items()]


COLUMNS = (
    Column("products to 5 %", "count", factor=1.0, slack=1.0),
    Column("products to 1 %", "count", factor=1.0, slack=1.0),
    Column("time to 5 %", "x", factor=2.0, slack=2.0),
    Column("time to 1 %", "x", factor=2.0, slack=2.0),
    Column("remark", "words", ""),
)
PACKAGES = ("PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch", "scipy", "transformers")
TOOLS = ("topoopt", "PyHessian", "hessian-eigenthings", "curvlinops + eigsh")
OURS = ("topoopt, warm", "topoopt, cold")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torchvision()  # which transformers imports
    explains, arguments = (__doc__ or "").split("\n\n", 2)[2].strip(), ["--full"] if given.full else []
    there = kept(given, __file__, PACKAGES)
    for name in given.networks or (NETWORKS if given.full else SMALL):
        if there.has("curvature", name, OURS):
            continue
        rows = rows_of(name, given.tools, *((6, [0, 1, 2]) if given.full else (3, [0, 1])))
        for row in rows:
            said = ", ".join(f"{k} {v.median:.3g}" for k, v in row.values.items())
            print(f"{row.case:<12}{row.tool:<26}{row.failed or said} {row.words.get('remark', '')}", flush=True)
        table = Table("curvature", "Top eigenvalue of the Hessian", explains, COLUMNS, tuple(rows))
        save(results(__file__, arguments, [table], PACKAGES), given.output)


if __name__ == "__main__":
    main()
