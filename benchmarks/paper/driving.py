"""A training run driven by a policy alone: readings of r, looks at the neurons and snapshots, with no wrapper in between.

Full freedom over when things are read, and nothing but the library below the wrapper: `curvature.SpectralTracker`,
`homology.persistence`, `geometry.degeneracy`, and `optimizer.steering.Steering` with `optimizer.rate.RateScaler`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.control import Policy
from topoopt.curvature import SpectralTracker
from topoopt.errors import TopoError
from topoopt.geometry import degeneracy, distances
from topoopt.homology import persistence, total_persistence
from topoopt.measurement import (
    Assessment,
    Decision,
    GroupMeasurement,
    Measurement,
    Phase,
    SpectralReading,
)
from topoopt.optimizer.rate import RateScaler, read_rates
from topoopt.optimizer.steering import Steering
from topoopt.optimizer.weights import Snapshot

WARMUP = 10
"""Steps for which a reading under Adam's family counts as warming up."""
SECOND_MOMENT = ("adam", "rmsprop", "adagrad")


def measure_cloud(points: Tensor, silent: int = -1) -> GroupMeasurement:
    """What a policy may know of one cloud (n, d); persistence of degree 1, exact."""
    d = distances(points)
    found = persistence(distances=d, degree=1)
    h1, diameter = found.diagrams[1], float(d.max())
    lives = h1[:, 1] - h1[:, 0]
    weak = degeneracy(points, d)
    spectrum = torch.linalg.svdvals((points - points.mean(dim=0)).double()).square()
    return GroupMeasurement(
        n=points.shape[0], d=points.shape[1], gain=0.0, certified=True, distortion=(1, 1), distortion_window=(1, 1),
        distortion_total=(1, 1), contraction=0.0, merge_margin=0.0, diagrams=tuple(found.diagrams), diagrams_step=0,
        covering_radius=0.0, resolution=1.0, recomputed=False, vanishing=weak.vanishing, twins=weak.twins,
        vanishing_tolerance=weak.vanishing_tolerance, twin_tolerance=weak.twin_tolerance, diameter=diameter,
        total_persistence=tuple(total_persistence(diagram) for diagram in found.diagrams),
        largest_loop=float(lives.max(initial=0.0)) / diameter if diameter else 0.0,
        log_persistence=float(np.log(h1[:, 1] / h1[:, 0]).sum()) if len(h1) else 0.0,
        effective_rank=float(spectrum.sum() ** 2 / spectrum.square().sum()), silent=silent,
    )  # fmt: skip


@dataclass
class Driven:
    """Wraps an optimizer's step in a policy's decisions.

    Args:
        loss: of the step's own batch, with a graph.
        clouds: name -> (points, silent units) of each group as it stands.
        snapshot: whether the weights, and the optimizer's state with them, may be remembered.
    """

    optimizer: Optimizer
    model: nn.Module
    policy: Policy
    loss: Callable[[], Tensor]
    clouds: Callable[[], dict[str, tuple[Tensor, int]]]
    total_steps: int | None = None
    snapshot: bool = True
    products: int = 6
    step: int = 0
    readings: int = 0
    looks: int = 0
    factor: float = 1.0
    r: float = math.nan
    edge: float | None = None
    changes: list[tuple[int, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steering = Steering(
            self.policy, 100, snapshot=self.snapshot, losses=True, on_change=lambda *change: self.changes.append(change)
        )
        self.rate = RateScaler(self.optimizer)
        self._tracker = SpectralTracker(self.optimizer, self.products)
        self._kept = Snapshot(self.snapshot)

    @property
    def events(self) -> list[str]:
        """Every event so far."""
        return [event for _, decision in self.changes for event in decision.events]

    def take(self, value: float) -> None:
        """One step of the optimizer, whose gradients are there and whose loss was `value`."""
        groups, steering = self.optimizer.param_groups, self.steering
        value = value if math.isfinite(value) else math.inf  # seen, and not finite; NaN would be: not seen
        rates = read_rates(groups)
        decision = None
        if self.step == 0 or steering.looks(self.step):  # a run measures its first step, whoever asks
            self.looks += 1
            steering.remember(self._measure())
        if steering.due(self.step, rates, self.total_steps):
            decision = self._decide(self._read(value), rates)
        elif steering.watches(self.step):
            decision = self._decide(SpectralReading(loss=value, edge=self.edge, reason="the loss alone"), rates)
        self.factor = steering.between(self.step, max(rates)) if decision is None else decision.scale
        wants = "" if decision is None else decision.weights
        if wants == "keep":
            self._kept.keep(self.optimizer, self.model.buffers())
        self.rate.apply(groups, self.factor)
        try:
            self.optimizer.step()
        finally:
            self.rate.restore()
        if wants == "back":  # after the step, whose gradients were those of a lost run
            self._kept.back(self.optimizer)
        self.step += 1

    def _decide(self, reading: SpectralReading, rates: tuple[float, ...]) -> Decision:
        peak = max(group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups)
        return self.steering.decide(reading, self.step, max(rates), peak, self.total_steps)

    def _read(self, value: float) -> SpectralReading:
        self.readings += 1
        try:
            found = self._tracker.estimate(self.loss, model=self.model)
        except TopoError as error:
            return SpectralReading(loss=value, reason=str(error))
        self.edge = found.edge
        self.r = found.r
        warming = any(name in found.rule for name in SECOND_MOMENT) and self.step < WARMUP
        return SpectralReading(
            step=self.step, r=found.r, edge=found.edge, rule=found.rule, loss=value, products=found.products,
            warming="the second moment is warming up" if warming else "",
        )  # fmt: skip

    def _measure(self) -> Measurement:
        try:
            with torch.no_grad():
                groups = {name: measure_cloud(points, silent) for name, (points, silent) in self.clouds().items()}
        except TopoError:
            groups = {}
        nothing = Assessment(Phase.UNKNOWN, math.nan, "none", (), ())
        return Measurement(self.step, (), 1.0, SpectralReading(), nothing, groups)


def train(driven: Driven, batches: Iterator[Any] | range, losses: list[float]) -> None:
    """Step through the batches; the caller's `driven.loss` sees the batch of now through what the iterator changes."""
    for _ in batches:
        driven.optimizer.zero_grad()
        value = driven.loss()
        value.backward()
        losses.append(float(value.detach()))
        driven.take(losses[-1])


def command(
    doc: str | None,
    name: str,
    tasks: Iterable[str],
    *,
    runs: Callable[[str, int], Iterable[Any]],
    read: Callable[[dict[str, Any]], Any],
    table: Callable[[list[Any]], None],
    picture: Callable[[list[Any], Path], None],
) -> None:
    """The command line of an experiment whose runs are kept, one a row, in `NAME.json`, with a plot beside it.

    Args:
        doc: help text.
        name: of the two files.
        tasks: their names; one that is run anew replaces its rows.
        runs: (task, number of seeds) -> its runs, dataclasses with a `task`; each is kept as soon as it is there.
        read: from a row to a run.
        table: prints all runs.
        picture: draws them.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(tasks), default=list(tasks))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--replot", action="store_true", help="only print and draw the result that is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / f"{name}.json"
    options.out.mkdir(exist_ok=True)
    kept = [read(row) for row in json.loads(path.read_text())] if path.exists() else []
    for task in () if options.replot else options.tasks:
        kept = [one for one in kept if one.task != task]
        for one in runs(task, options.seeds):
            kept.append(one)
            path.write_text("[" + ",\n".join(json.dumps(asdict(each)) for each in kept) + "]\n")
    table(kept)
    picture(kept, path.with_suffix(".png"))
