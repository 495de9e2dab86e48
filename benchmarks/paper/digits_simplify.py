"""Simplifying real layers: three-layer perceptrons on digits, in batches of 256, by plain SGD.

`Preserve` throughout against `Simplify` from step 200 on; effective rank (participation ratio of each hidden layer's cloud of
neurons) and silent units at the end, and test accuracy. Under squared loss, and under cross entropy, where the loss goes to
nothing and curvature with it. Writes every run as JSON and the courses as a plot.

    python benchmarks/paper/digits_simplify.py [--steps 4000] [--seeds 2] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from driving import Driven, measure_cloud, train
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from topoopt.control import Policy, Preserve, Schedule, Simplify, looks_in
from topoopt.report import plots

ACTIVATIONS: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "Tanh": nn.Tanh, "GELU": nn.GELU}
WIDTH, BATCH, BEFORE = 48, 256, 200


@dataclass
class Outcome:
    """One run."""

    activation: str
    loss_name: str
    seed: int
    policy: str
    accuracy: float
    rank: list[float]
    silent: list[int]
    loss: float
    lost: int
    course: list[tuple[float, float, float]]
    """(rate in e/K, loss, effective rank) of every look."""
    why: list[str]


def clouds(model: nn.Sequential, x: Tensor) -> dict[str, tuple[Tensor, int]]:
    """Both hidden layers: rows, biases and columns of every unit, and how many units are silent on x."""
    first = model[1](model[0](x))
    second = model[3](model[2](first))
    layers = [(model[0], model[2], first), (model[2], model[4], second)]
    return {
        str(i): (torch.cat([a.weight, a.bias[:, None], b.weight.T], dim=1), int((out.std(dim=0) == 0).sum()))  # type: ignore[union-attr, list-item]
        for i, (a, b, out) in enumerate(layers)
    }


def run(activation: str, loss_name: str, seed: int, policy: Policy, steps: int) -> Outcome:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    known, new = order[:1297], order[1297:]
    torch.manual_seed(seed)
    act = ACTIVATIONS[activation]
    model = nn.Sequential(nn.Linear(64, WIDTH), act(), nn.Linear(WIDTH, WIDTH), act(), nn.Linear(WIDTH, 10))
    generator = torch.Generator().manual_seed(seed + 10)
    batch = known

    def loss() -> Tensor:
        out = model(x[batch])
        squared = (out - one_hot(y[batch], 10)).square().sum(dim=1).mean() / 2
        return squared if loss_name == "squared" else cross_entropy(out, y[batch])

    def batches() -> Iterator[None]:
        nonlocal batch
        for _ in range(steps):
            batch = known[torch.randint(len(known), (BATCH,), generator=generator)]
            yield

    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    driven = Driven(sgd, model, policy, loss, lambda: clouds(model, x[known]), total_steps=steps)
    losses: list[float] = []
    train(driven, batches(), losses)
    with torch.no_grad():
        ends = [measure_cloud(points, silent) for points, silent in clouds(model, x[known]).values()]
        accuracy = float((model(x[new]).argmax(dim=1) == y[new]).float().mean())
    events = driven.events
    name = "preserve" if isinstance(policy, Preserve) else "simplify"
    return Outcome(
        activation, loss_name, seed, name, accuracy, [one.effective_rank for one in ends], [one.silent for one in ends],
        sum(losses[-50:]) / 50, sum("being lost" in event for event in events),
        [(look.dose, look.loss, look.left.get("effective_rank", math.nan)) for look in looks_in(events)],
        [event for event in events if not event.startswith("look:")],
    )  # fmt: skip


def picture(outcomes: list[Outcome], path: Path) -> None:
    figure = plots.new_figure(9.0, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, loss_name in zip(axes, ("squared", "cross entropy"), strict=True):
        for colour, name in zip(("#e76f51", "#1d3557", "#2a9d8f"), ACTIVATIONS, strict=True):
            for one in (o for o in outcomes if (o.activation, o.loss_name, o.policy) == (name, loss_name, "simplify")):
                doses, ranks = [look[0] for look in one.course], [look[2] for look in one.course]
                axis.plot(doses, ranks, color=colour, marker=".", linewidth=0.9, label=name if one.seed == 0 else None)
        axis.set(xscale="log", xlabel="rate in e/K of the start", title=loss_name)
    axes[0].set_ylabel("effective rank, both layers")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| loss | activation | seed | policy | test accuracy | effective rank | silent of 48 + 48 | loss | lost |\n|"
        + "---|" * 9
    )
    outcomes = []
    policies = (Preserve(floor=1e-6), Schedule({0: Preserve(floor=1e-6), BEFORE: Simplify()}))
    cases = itertools.product(("squared", "cross entropy"), ACTIVATIONS, range(options.seeds), policies)
    for loss_name, activation, seed, policy in cases:
        one = run(activation, loss_name, seed, policy, options.steps)
        outcomes.append(one)
        ranks = " + ".join(f"{rank:.1f}" for rank in one.rank)
        cells = [loss_name, activation, str(seed), one.policy, f"{one.accuracy:.3f}", ranks,
                 " + ".join(map(str, one.silent)), f"{one.loss:.4g}", str(one.lost)]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)
    for one in outcomes:
        if one.policy == "simplify":
            print(f"{one.loss_name}, {one.activation}, {one.seed}: {[w for w in one.why if 'ended' in w]}")
    options.out.mkdir(exist_ok=True)
    rows = ",\n".join(json.dumps(asdict(one)) for one in outcomes)
    (options.out / "digits_simplify.json").write_text(f"[{rows}]\n")
    picture(outcomes, options.out / "digits_simplify.png")


if __name__ == "__main__":
    main()
