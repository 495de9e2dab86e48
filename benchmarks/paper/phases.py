"""What changes above eta*, what above the edge of stability, and what only with time there? Real layers, constant rates.

A perceptron 64-48-48-10 (Tanh) and a CNN with BatchNorm on digits, squared loss, mini-batches; SGD and Adam at six rates
each, from gentle to lost; nothing is steered. Of every run: r/e over time, the pairwise gain of single steps and whether they
were certified injective, and of the neurons' clouds, as shares of the start's: effective rank, log-persistence of degree 1,
the number of distinct neurons; and expressivity: rank of the hidden activations, and the width that `compact` leaves.

    python benchmarks/paper/phases.py [--tasks mlp cnn] [--seeds 3] [--out benchmarks/results] [--replot]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "simplify"))
from digits_simplify import Perceptron
from driving import command
from tasks import Cnn, Task  # pyright: ignore[reportMissingImports]

from topoopt import TopoOptimizer
from topoopt.errors import TopoError
from topoopt.measurement import Measurement
from topoopt.neurons import compact, discover
from topoopt.report import plots

TASKS: dict[str, tuple[Any, int, int]] = {"mlp": (partial(Perceptron, nn.Tanh), 600, 3), "cnn": (Cnn, 300, 1)}
"""Name -> (task, steps, most seeds)."""
RULES: dict[str, tuple[Any, tuple[float, ...]]] = {
    "sgd": (torch.optim.SGD, (0.1, 0.4, 0.8, 1.6, 3.0, 6.0)),
    "adam": (torch.optim.Adam, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
}
COLOURS = {"sgd": "#1d3557", "adam": "#e76f51"}
MEASURES = {"rank": "clouds: effective rank", "loops": "clouds: log-persistence", "activations": "activations: rank"}


@dataclass
class Moment:
    """The clouds at one step; shares are of the first measurement."""

    step: int
    rank: float
    loops: float
    distinct: float
    gain: float
    """Largest r_pair of this step over the groups: below 1 the step was injective for certain."""
    above_eta_star: int
    """Steps spent at r >= 1 so far, by the readings up to here."""
    above_edge: int
    """Steps spent at r >= e so far."""


@dataclass
class Run:
    """One training."""

    task: str
    rule: str
    rate: float
    seed: int
    steps: int
    r_over_e: list[float]
    """Of the readings once the rule was warm."""
    edge: float
    course: list[Moment]
    activations: tuple[float, float]
    """Participation ratio of the hidden activations on all training data, before and after, summed over layers."""
    width: tuple[int, int]
    loss: tuple[float, float]
    accuracy: float
    seconds: float

    @property
    def median_r(self) -> float:
        return median(self.r_over_e) if self.r_over_e else math.nan

    @property
    def lost(self) -> bool:
        return not (math.isfinite(self.loss[1]) and self.loss[1] < self.loss[0])

    def left(self, measure: str) -> float:
        if measure == "activations":
            return self.activations[1] / self.activations[0]
        return getattr(self.course[-1], measure)


def hidden_rank(task: Task, model: nn.Module) -> float:
    """Participation ratio of each hidden layer's activations, summed."""
    ranks: list[float] = []

    def see(module: nn.Module, args: Any, out: Tensor) -> None:
        rows = (out.movedim(1, -1).flatten(0, -2) if out.ndim == 4 else out).double()
        spread = torch.cov(rows.T)  # (tr C)^2 / |C|_F^2 needs no eigenvalue; NaN for a run that was lost
        ranks.append(float(spread.trace() ** 2 / spread.square().sum()))

    hooks = [m.register_forward_hook(see) for m in model.modules() if isinstance(m, nn.ReLU | nn.Tanh)]
    mode = model.training
    with torch.no_grad():
        model.eval()(task.inputs)
    model.train(mode)
    for hook in hooks:
        hook.remove()
    return sum(ranks)


def compact_width(task: Task, model: nn.Module) -> int:
    """Units that are left when silent, vanishing and equal ones are cut out."""
    groups = [group for group in discover(model.eval(), task.inputs[:4]) if task.chooses(group)]
    try:
        return sum(task.widths(compact(model, groups, inputs=[task.inputs], silent=True)[0]))
    except TopoError:  # not a number anywhere
        return sum(task.widths(model))


def run(name: str, rule: str, rate: float, seed: int) -> Run:
    """One training at a constant rate, in report mode."""
    make, steps, _ = TASKS[name]
    task: Task = make()
    torch.manual_seed(seed)
    model, generator = task.build(), torch.Generator().manual_seed(seed + 10)
    began, before, losses, seen = time.process_time(), hidden_rank(task, model), list[float](), list[Measurement]()
    topo = TopoOptimizer(
        RULES[rule][0](model.parameters(), lr=rate),
        model,
        every=max(50, steps // 6),
        budget=None,
        per_group=False,
        wait=True,
    )
    topo.add_sink(seen.append)
    for _ in range(steps):
        batch = torch.randint(len(task.inputs), (task.batch,), generator=generator)
        topo.zero_grad()
        loss = task.loss(model, task.inputs[batch], task.targets[batch])
        loss.backward()
        topo.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
    readings = [one for one in topo.readings if one.known]
    if math.isfinite(losses[-1]):
        topo.measure()
    topo.detach()
    edge = next((one.edge for one in readings if one.edge), math.nan)
    return Run(
        name, rule, rate, seed, len(losses), [one.r / edge for one in readings], edge, moments(seen, readings, edge),
        (before, hidden_rank(task, model)), (sum(task.widths(model)), compact_width(task, model)),
        (losses[0], sum(losses[-20:]) / 20), task.accuracy(model.eval()), time.process_time() - began,
    )  # fmt: skip


def moments(seen: list[Measurement], readings: list[Any], edge: float) -> list[Moment]:
    """What each measurement says of all groups together, against the first."""

    def of(measurement: Measurement) -> tuple[float, float, float]:
        groups = list(measurement.groups.values())
        near = [int((g.diagrams[0][:, 1] > 0.01 * g.diameter).sum()) for g in groups]
        return sum(g.effective_rank for g in groups), sum(g.log_persistence for g in groups), float(sum(near))

    whole = [one for one in seen if one.groups]
    first, course = of(whole[0]), []
    for one in whole:
        past = [reading for reading in readings if reading.step <= one.step]
        each = one.step / max(1, len(past))
        rank, loops, distinct = (now / then for now, then in zip(of(one), first, strict=True))
        above = [round(each * sum(r.r >= limit for r in past)) for limit in (1.0, edge)]
        course.append(Moment(one.step, rank, loops, distinct, one.r_pair, *above))
    return course


def picture(runs: list[Run], path: Path) -> None:
    """Left at the end against r/e, a panel a measure; and the clouds' rank against the time spent above the edge."""
    figure = plots.new_figure(13.0, 3.6)
    axes = figure.subplots(1, 4)
    for axis, (measure, words) in zip(axes, MEASURES.items(), strict=False):
        for one in runs:
            if len(one.course) > 1 and math.isfinite(one.median_r) and math.isfinite(one.left(measure)):
                marker = "x" if one.lost else "o" if one.task == "mlp" else "s"
                axis.scatter(max(one.median_r, 1e-3), one.left(measure), s=18, marker=marker, color=COLOURS[one.rule])
        for edge, colour in ((2.0, COLOURS["sgd"]), (3.8, COLOURS["adam"])):
            axis.axvline(1 / edge, color=colour, linestyle=":", linewidth=0.9)
        axis.axvline(1.0, color="#999999", linestyle="--", linewidth=0.9)
        axis.set(xscale="log", xlabel="median r/e (dotted: eta*, dashed: e)", title=words)
    for one in runs:
        if not one.lost:
            times, ranks = [m.above_edge for m in one.course], [m.rank for m in one.course]
            axes[-1].plot(times, ranks, color=COLOURS[one.rule], marker=".", linewidth=0.7, alpha=0.7)
    axes[-1].set(xlabel="steps spent at r >= e", title="clouds: effective rank, over time")
    axes[0].set_ylabel("left at the end, of the start's")
    for axis in axes:
        axis.title.set_fontsize(9)
    for rule, colour in COLOURS.items():
        axes[0].scatter([], [], color=colour, label=rule)
    for marker, words in (("o", "perceptron"), ("s", "CNN"), ("x", "lost")):
        axes[0].scatter([], [], color="#555555", marker=marker, label=words)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def table(runs: list[Run]) -> None:
    """A row a task, rule and rate: medians over seeds."""
    print(
        "| task | rule | rate | r/e | at r >= 1 | at r >= e | largest r_pair | rank | loops | distinct | activations | width "
        "| accuracy |\n|" + "---|" * 13
    )
    for task, rule, rate in dict.fromkeys((one.task, one.rule, one.rate) for one in runs):
        some = [one for one in runs if (one.task, one.rule, one.rate) == (task, rule, rate)]

        def mid(value: Any, some: list[Run] = some) -> float:
            return median(value(one) for one in some)

        cells = [task, rule, f"{rate:g}", f"{mid(lambda o: o.median_r):.2f}",
                 f"{mid(lambda o: o.course[-1].above_eta_star / max(1, o.course[-1].step)):.0%}",
                 f"{mid(lambda o: o.course[-1].above_edge / max(1, o.course[-1].step)):.0%}",
                 f"{mid(lambda o: max(m.gain for m in o.course)):.2g}"]  # fmt: skip
        cells += [f"{mid(lambda o, m=m: o.left(m)):.2f}" for m in ("rank", "loops", "distinct", "activations")]
        lost = sum(one.lost for one in some)
        accuracy = f"{mid(lambda o: o.accuracy):.3f}" + (f" ({lost} of {len(some)} lost)" if lost else "")
        print("| " + " | ".join([*cells, f"{mid(lambda o: o.width[1]):.0f} of {some[0].width[0]}", accuracy]) + " |")


def read(row: dict[str, Any]) -> Run:
    """A run that was kept."""
    return Run(**{**row, "course": [Moment(**moment) for moment in row["course"]]})


def runs_of(task: str, seeds: int) -> Iterator[Run]:
    """Of every seed: each rule at each of its rates."""
    for seed in range(min(seeds, TASKS[task][2])):
        for rule, (_, rates) in RULES.items():
            for rate in rates:
                one = run(task, rule, rate, seed)
                print(task, rule, rate, seed, f"r/e {one.median_r:.2f} {one.seconds:.1f} s", flush=True)
                yield one


if __name__ == "__main__":
    command(__doc__, "paper_phases", TASKS, runs=runs_of, read=read, table=table, picture=picture)
