"""Simplifying real layers, through the wrapper: `Preserve` against `Simplify`, the same steps, from the first step on.

Perceptrons 64-48-48-10 (ReLU, Tanh, GELU) and a small CNN with BatchNorm on digits under squared loss, by plain SGD; a GPT-2
of two layers on characters under cross entropy with label smoothing, by AdamW; and the ReLU perceptron under plain cross
entropy, where the loss goes to nothing and curvature with it. At the end: effective rank (participation ratio, summed over
the groups of neurons), the share of units that are silent on a batch, test accuracy, and what the run said. The bar: half the
effective rank that `Preserve` has, or a third of the units silent, at an accuracy at most one point below its, or a reason.

    python benchmarks/paper/digits_simplify.py [--tasks ReLU CNN ...] [--seeds 3] [--out benchmarks/results] [--replot]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from driving import command
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1] / "simplify"))
from tasks import Cnn, Gpt2, Mlp, Task  # pyright: ignore[reportMissingImports]

from topoopt import Preserve, Simplify, TopoOptimizer
from topoopt.control import Policy, looks_in
from topoopt.measurement import Decision, Measurement, SpectralReading
from topoopt.report import plots

EVERY = 100
SGD, ADAMW = partial(torch.optim.SGD, lr=1.0), partial(torch.optim.AdamW, lr=3e-3)
SIMPLIFY = Simplify(effective_rank=0.3, silent=1 / 3)
"""Of the start's rank about half of what `Preserve` comes to, or a third of the units."""


class Perceptron(Mlp):
    """The digits' perceptron with another activation."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self._activation = activation

    def build(self, widths: list[int] | None = None) -> nn.Module:
        parts = (self._activation() if isinstance(m, nn.ReLU) else m for m in super().build(widths).children())
        return nn.Sequential(*parts)


class CrossEntropy(Mlp):
    """Under plain cross entropy."""

    def loss(self, model: nn.Module, x: Any, y: Any) -> Any:
        return cross_entropy(model(x), y)


TASKS: dict[str, tuple[Any, Any, int]] = {
    "ReLU": (Mlp, SGD, 3000),
    "Tanh": (partial(Perceptron, nn.Tanh), SGD, 3000),
    "GELU": (partial(Perceptron, nn.GELU), SGD, 3000),
    "CNN": (Cnn, SGD, 1200),
    "GPT": (Gpt2, ADAMW, 600),
    "ReLU, cross entropy": (CrossEntropy, SGD, 3000),
}
"""Name -> (task, optimizer, steps)."""


@dataclass
class Notes:
    """A sink that keeps what a run says."""

    events: list[str] = field(default_factory=list)
    silent: float = math.nan

    def __call__(self, measurement: Measurement) -> None:
        """Nothing of a measurement is kept."""

    def decided(self, step: int, decision: Decision) -> None:
        self.events += [f"{step}: {e}" if not e.startswith("look:") else e for e in decision.events]

    def reading(self, reading: SpectralReading) -> None:
        if not math.isnan(reading.silent):
            self.silent = reading.silent


@dataclass
class Outcome:
    """One run."""

    task: str
    seed: int
    policy: str
    accuracy: float
    rank: dict[str, float]
    """Effective rank of each group of neurons."""
    silent: float
    """Share of the units that were silent on the last batch that was read; NaN where none was."""
    loss: float
    lost: int
    course: list[tuple[float, float, dict[str, float]]]
    """(rate in e/K, loss, share left of each measure) of every look."""
    why: list[str]
    seconds: float

    @property
    def whole_rank(self) -> float:
        return sum(self.rank.values())


def run(name: str, seed: int, policy: Policy) -> Outcome:
    make, optimizer, steps = TASKS[name]
    task: Task = make()
    torch.manual_seed(seed)
    model, generator = task.build(), torch.Generator().manual_seed(seed + 10)
    notes, losses, began = Notes(), [], time.process_time()
    topo = TopoOptimizer(optimizer(model.parameters()), model, mode=policy, every=EVERY, budget=None, per_group=False)
    topo.total_steps = steps
    topo.add_sink(notes)
    for _ in range(steps):
        batch = torch.randint(len(task.inputs), (task.batch,), generator=generator)
        topo.zero_grad()
        loss = task.loss(model, task.inputs[batch], task.targets[batch])
        loss.backward()
        topo.step()
        losses.append(float(loss.detach()))
    groups = topo.measure().groups
    topo.detach()
    looks = [(look.dose, look.loss, look.shares) for look in looks_in(notes.events)]
    return Outcome(
        name, seed, "preserve" if isinstance(policy, Preserve) else "simplify", task.accuracy(model.eval()),
        {key: group.effective_rank for key, group in groups.items()}, notes.silent, sum(losses[-50:]) / 50,
        sum("the run was" in event and "the rate goes" in event for event in notes.events), looks,
        [event for event in notes.events if not event.startswith("look:")], time.process_time() - began,
    )  # fmt: skip


def picture(outcomes: list[Outcome], path: Path) -> None:
    """Dose and response: a panel a task, a line a seed."""
    names = [name for name in TASKS if any(one.task == name for one in outcomes)]
    figure = plots.new_figure(3.0 * len(names), 3.2)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for one in (o for o in outcomes if o.task == name and o.policy == "simplify"):
            course = [(dose, left["effective_rank"]) for dose, _, left in one.course if "effective_rank" in left]
            if course:
                axis.plot(*zip(*course, strict=True), marker=".", linewidth=0.9, label=f"seed {one.seed}")
        axis.set(xscale="log", xlabel="rate in e/K of the start", title=name, ylim=(0, 1.3))
    axes[0].set_ylabel("effective rank left, of the start's")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def table(outcomes: list[Outcome]) -> None:
    """A row a task and seed, and how many of each task meet the bar by what they reached."""
    print(
        "| task | seed | test accuracy, preserve and simplify | effective rank | rank left | silent | lost | the bar |\n|"
        + "---|" * 8
    )
    for name in TASKS:
        pairs = {(one.seed, one.policy): one for one in outcomes if one.task == name}
        for seed in sorted({seed for seed, _ in pairs}):
            kept, simple = pairs[seed, "preserve"], pairs[seed, "simplify"]
            share = simple.whole_rank / kept.whole_rank
            reached = share <= 0.5 or simple.silent >= 1 / 3
            said = any("ended" in event and not ("fell to" in event or "rose to" in event) for event in simple.why)
            bar = (
                "reached"
                if reached and simple.accuracy >= kept.accuracy - 0.01
                else "said why not"
                if said
                else "missed"
            )
            cells = [name, str(seed), f"{kept.accuracy:.3f} {simple.accuracy:.3f}",
                     f"{kept.whole_rank:.1f} {simple.whole_rank:.1f}", f"{share:.2f}",
                     f"{kept.silent:.0%} {simple.silent:.0%}", str(simple.lost), bar]  # fmt: skip
            print("| " + " | ".join(cells) + " |")
    for one in outcomes:
        if one.policy == "simplify":
            print(f"{one.task}, {one.seed}: {[event for event in one.why if 'ended' in event]}")


def runs(task: str, seeds: int) -> Iterator[Outcome]:
    """Of every seed: gently, then simplified."""
    for seed in range(seeds):
        for policy in (Preserve(floor=1e-6), SIMPLIFY):
            one = run(task, seed, policy)
            said = f"{one.accuracy:.3f} rank {one.whole_rank:.1f} {one.seconds:.0f} s"
            print(task, seed, one.policy, said, flush=True)
            yield one


if __name__ == "__main__":
    command(__doc__, "digits_simplify", TASKS, runs=runs, read=lambda row: Outcome(**row), table=table, picture=picture)
