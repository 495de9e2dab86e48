"""The paper's shape experiment on shapes and targets on which nothing was set: does `Simplify` simplify, `Preserve` preserve?

A two-layer tanh network f(x) = sum a tanh(w x) whose neurons (w, a) start on a shape: four closed curves in the plane and a
surface of genus 2 in space. Full batch, 2,000 steps, from two base rates, by gradient descent, momentum and Adam. Reported:
the largest loop over the diameter before and after, the loss, how often the run was lost, readings and looks. Writes every
run with its course as JSON, and the courses as a plot: the rate in units of e/K against what is left of the largest loop.

    python benchmarks/paper/shapes.py [--steps 2000] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from driving import Driven, measure_cloud, train
from torch import Tensor, nn

from topoopt.control import Policy, Preserve, Simplify, looks_in
from topoopt.geometry import maxmin
from topoopt.report import plots

RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}
RATES = (0.001, 0.06)
TARGETS: dict[str, Callable[[Tensor], Tensor]] = {  # odd, as the network is
    "3 sin 2x + sin x": lambda x: 3 * torch.sin(2 * x) + torch.sin(x),
    "2 tanh 4x": lambda x: 2 * torch.tanh(4 * x),
    "x cos 2x": lambda x: x * torch.cos(2 * x),
}


class Net(nn.Module):
    """Its neurons are given: (n, inputs + 1), incoming weights and the outgoing one."""

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


def curve(x: Callable[[Tensor], Tensor], y: Callable[[Tensor], Tensor], n: int = 200) -> Tensor:
    t = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([x(t), y(t)], dim=1)


def genus_two(n: int = 300) -> Tensor:
    """(x (x - 1)^2 (x - 2) + y^2)^2 + z^2 = 0.01, a chain of two tori, thinned out to n even points by maxmin."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([-0.2, -0.75, -0.11]), torch.tensor([2.2, 0.75, 0.11])
    p = (low + (high - low) * torch.rand(400_000, 3, generator=generator)).double()
    f = p[:, 0] * (p[:, 0] - 1) ** 2 * (p[:, 0] - 2) + p[:, 1] ** 2
    p = p[((f**2 + p[:, 2] ** 2).sqrt() - 0.1).abs() < 0.004]
    chosen = p[maxmin(p, n).indices]
    return chosen - chosen.mean(dim=0)


def shapes() -> dict[str, Tensor]:
    return {
        "bean": curve(lambda t: torch.cos(t) + 0.3 * torch.cos(2 * t), lambda t: 0.7 * torch.sin(t)),
        "cardioid": curve(lambda t: (1 - torch.cos(t)) * torch.cos(t) + 0.6, lambda t: (1 - torch.cos(t)) * torch.sin(t)),
        "trefoil": curve(lambda t: torch.sin(t) + 2 * torch.sin(2 * t), lambda t: torch.cos(t) - 2 * torch.cos(2 * t)) / 2,
        "square": curve(
            lambda t: torch.cos(t) / torch.maximum(torch.cos(t).abs(), torch.sin(t).abs()),
            lambda t: torch.sin(t) / torch.maximum(torch.cos(t).abs(), torch.sin(t).abs()),
        ),
        "genus 2": genus_two(),
    }  # fmt: skip


@dataclass
class Outcome:
    """One run."""

    shape: str
    target: str
    rule: str
    rate: float
    policy: str
    loop: tuple[float, float]
    loss: tuple[float, float]
    largest_loss: float
    lost: int
    readings: int
    looks: int
    course: list[tuple[float, float, float]]
    """(rate in e/K, loss, largest loop) of every look."""
    why: list[str]

    @property
    def kept(self) -> float:
        return self.loop[1] / self.loop[0]

    @property
    def simplified(self) -> bool:
        return self.loop[1] <= 0.01 and self.loss[1] < self.loss[0]


def run(name: str, points: Tensor, target: str, rule: str, rate: float, policy: Policy, steps: int) -> Outcome:
    torch.manual_seed(0)
    net = Net(points)
    line = torch.linspace(-2, 2, 64 if points.shape[1] == 2 else 9, dtype=torch.float64)
    x = line[:, None] if points.shape[1] == 2 else torch.cartesian_prod(line, line)
    y = TARGETS[target](x[:, :1] + 0.5 * x[:, 1:].sum(dim=1, keepdim=True))
    optimizer = RULES[rule](net.parameters(), lr=rate)
    driven = Driven(
        optimizer, net, policy, lambda: (net(x) - y).square().mean() / 2, lambda: {"hidden": (net.neurons(), -1)}
    )
    losses: list[float] = []
    train(driven, range(steps), losses)
    finite = bool(torch.isfinite(net.neurons()).all())
    after = measure_cloud(net.neurons()).largest_loop if finite else math.nan
    events = driven.events
    return Outcome(
        name, target, rule, rate, policy.name, (measure_cloud(points).largest_loop, after), (losses[0], losses[-1]),
        max(losses), sum("being lost" in event for event in events), driven.readings, driven.looks,
        [(look.dose, look.loss, look.left.get("largest_loop", math.nan)) for look in looks_in(events)],
        [event for event in events if not event.startswith("look:")],
    )  # fmt: skip


def picture(outcomes: list[Outcome], path: Path) -> None:
    """Dose and response: one panel a rule, one line a run."""
    figure = plots.new_figure(11.0, 3.6)
    axes = figure.subplots(1, len(RULES), sharey=True)
    colours = dict(zip(shapes(), ["#1d3557", "#e76f51", "#2a9d8f", "#8e7dbe", "#e9a400"], strict=True))
    for axis, rule in zip(axes, RULES, strict=True):
        for one in outcomes:
            if one.rule != rule or one.policy != "simplify" or one.rate != RATES[0] or not one.course:
                continue
            doses, left = [dose for dose, _, _ in one.course], [loop / one.loop[0] for _, _, loop in one.course]
            label = one.shape if one.target == next(iter(TARGETS)) else None
            axis.plot(doses, [max(v, 1e-3) for v in left], color=colours[one.shape], marker=".", lw=0.9, label=label)
        axis.set(xscale="log", yscale="log", xlabel="rate in e/K of the start", title=rule, ylim=(8e-4, 2))
        axis.axhline(1.0, color="#999999", linewidth=0.8, linestyle="--")
    axes[0].set_ylabel("largest loop left, of the start's")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = []
    for (name, points), target, rule, rate in itertools.product(shapes().items(), TARGETS, RULES, RATES):
        outcomes.append(run(name, points, target, rule, rate, Simplify(largest_loop=0.01), options.steps))
        if target == next(iter(TARGETS)):
            outcomes.append(run(name, points, target, rule, rate, Preserve(), options.steps))
    print(
        "| rule | base rate | simplified | median of loss left | lost | preserved: at least 0.4 kept |\n|" + "---|" * 6
    )
    for rule, rate in itertools.product(RULES, RATES):
        both = [one for one in outcomes if (one.rule, one.rate) == (rule, rate)]
        simple, kept = ([one for one in both if one.policy == name] for name in ("simplify", "preserve"))
        left = sorted(one.loss[1] / one.loss[0] for one in simple)[len(simple) // 2]
        cells = [rule, f"{rate:g}", f"{sum(one.simplified for one in simple)} of {len(simple)}", f"{left:.3f}",
                 f"{sum(one.lost for one in simple)}", f"{sum(one.kept >= 0.4 for one in kept)} of {len(kept)}"]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    for one in outcomes:
        if one.policy == "simplify" and not one.simplified:
            loop = f"largest loop {one.loop[0]:.3f} to {one.loop[1]:.3f}"
            print(f"not simplified: {one.shape}, {one.target}, {one.rule} {one.rate:g}: {loop}; {one.why[-2:]}")
    options.out.mkdir(exist_ok=True)
    rows = ",\n".join(json.dumps(asdict(one)) for one in outcomes)
    (options.out / "shapes.json").write_text(f"[{rows}]\n")
    picture(outcomes, options.out / "shapes_dose.png")


if __name__ == "__main__":
    main()
