"""Does simplification pay? Accuracy over the width that is left, for several ways to a small network in equal steps.

    simplify       `Simplify`, its repair, `topoopt.compact`: units silent on the training data are cut out
    simplify, L2   `Simplify` for three quarters of the steps, cut to a width by the norm of the units' incoming weights, then
                   trained for the last quarter
    scratch        the same widths, trained from the start in as many steps
    L1, L2         the gently trained network, cut at three quarters of the steps by norm, then trained for the last quarter
    Torch-Pruning  the same by Torch-Pruning's magnitude pruner
    cut only       L2 without training after it, from the network trained to the end
    plain          one large constant rate, and what `compact` finds in it
    plain, L2      the control for `simplify, L2`: one large constant rate for three quarters of the steps, cut to the same widths,
                   then trained for the last quarter like the others
    gentle         the full network under `Preserve`, as it is

Tasks: `mlp` (scikit-learn's digits, 64-48-48-10, ReLU), `cnn` (the same images, two convolutions with BatchNorm), both by SGD
under squared loss with one-hot targets; `gpt2` (a GPT-2 of two layers with ReLU, next characters of scikit-learn's own data
descriptions) by AdamW under cross entropy with label smoothing: a loss must keep its curvature for a rate to reach the edge
of stability late. Every training but `plain` is steered by `Preserve` where it is not by `Simplify`.

    python benchmarks/simplify/pays.py [--tasks mlp cnn gpt2] [--seeds 3] [--control] [--out FILE.json] [--replot]

`--control` takes the rows `plain` and `plain, L2` anew, at the widths that the kept rows have.

Needs scikit-learn, and for its rows Torch-Pruning (benchmarks/requirements.txt).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tasks import TASKS, Task
from torch import nn

import topoopt
from topoopt import Preserve, Schedule, Simplify, TopoOptimizer
from topoopt.control import Policy
from topoopt.measurement import Decision, Measurement
from topoopt.neurons import NeuronGroup, compact, discover
from topoopt.neurons.compacting.cutting import Cut, Original
from topoopt.neurons.compacting.result import Plan
from topoopt.neurons.compacting.roles import incoming

GENTLE = Preserve(floor=1e-9, keep=0.0)
SIMPLIFY = Schedule({0: GENTLE, 0.07: Simplify(silent=0.5, then=GENTLE)})
"""Half of the units are to be silent: as far as it comes."""
SHARES = (0.5, 0.25)
"""Widths, as shares of the full ones, to which the other ways go."""


class Said:
    """A sink that keeps how simplifying ended."""

    def __init__(self) -> None:
        self.end = ""

    def __call__(self, measurement: Measurement) -> None:
        """Nothing of a measurement is kept."""

    def decided(self, step: int, decision: Decision) -> None:
        self.end = next((event for event in decision.events if event.startswith("simplify ended")), self.end)


def train(task: Task, model: nn.Module, seed: int, steps: int, way: Policy | float) -> tuple[nn.Module, str]:
    """Train in place under a policy, or at a constant rate; returns the model in eval mode, and how simplifying ended."""
    generator, said = torch.Generator().manual_seed(seed), Said()
    optimizer = task.optimizer(model, way if isinstance(way, float) else None)
    if isinstance(way, Policy):
        optimizer = TopoOptimizer(optimizer, model, mode=way, budget=None, per_group=False, max_points=64)
        optimizer.total_steps = steps
        optimizer.add_sink(said)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(task.inputs), (task.batch,), generator=generator)
        optimizer.zero_grad()
        task.loss(model, task.inputs[batch], task.targets[batch]).backward()
        optimizer.step()
    if isinstance(optimizer, TopoOptimizer):
        optimizer.detach()
    return model.eval(), said.end


def groups_of(task: Task, model: nn.Module) -> list[NeuronGroup]:
    """The groups whose widths a task chooses, in its order."""
    return [group for group in discover(model.eval(), task.inputs[:4]) if task.chooses(group)]


def cut_to(task: Task, model: nn.Module, widths: list[int], power: int) -> nn.Module:
    """The model with only the units of the largest incoming L1 or L2 norm left."""
    small, cut, of = copy.deepcopy(model), Cut(), Original(model)
    for group, width in zip(groups_of(task, model), task.per_group(widths), strict=True):
        made = [s for s in incoming(model, group) if s.role != "state"]
        rows = [of.tensors[of.name[s.tensor]].movedim(s.dim, 0).reshape(group.n, -1) for s in made]
        norms = torch.cat(rows, 1).abs().pow(power).sum(1)
        cut = cut.with_plan(of, group, Plan(removed=tuple(norms.argsort()[: group.n - width].tolist())))
    cut.carry_out(of, small)
    return small


def by_torch_pruning(task: Task, model: nn.Module, widths: list[int]) -> nn.Module:
    import torch_pruning  # pyright: ignore[reportMissingImports]

    small, groups = copy.deepcopy(model), groups_of(task, model)
    layers = [small.get_submodule(g.name) for g in groups]
    ratios: dict[Any, float] = {
        layer: 1 - w / g.n for layer, w, g in zip(layers, task.per_group(widths), groups, strict=True)
    }
    others: list[Any] = [m for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m not in layers]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.MagnitudePruner(
        small, task.inputs[:4], importance, pruning_ratio=0.0, pruning_ratio_dict=ratios, ignored_layers=others
    )
    pruner.step()
    return small


def compacted(task: Task, model: nn.Module) -> nn.Module:
    """The model without the units that are silent on the training data: it computes the same there."""
    small, report = compact(model, groups_of(task, model), inputs=[task.inputs], silent=True)
    failed = [one.reason for one in report.values() if one.reason]
    if failed:
        print("left whole:", failed, flush=True)
    return small


class Notes:
    """The rows of one task and seed."""

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._seed, self.rows = task, seed, list[dict[str, Any]]()

    def add(self, method: str, model: nn.Module, **more: Any) -> None:
        row = {"task": self._task.name, "method": method, "seed": self._seed, "widths": self._task.widths(model),
               "parameters": sum(p.numel() for p in model.parameters()),
               "accuracy": self._task.accuracy(model.eval()), **more}  # fmt: skip
        self.rows.append(row)
        print(row, flush=True)


def fresh_model(task: Task, seed: int, widths: list[int] | None = None) -> nn.Module:
    """The start of every way of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return task.build(widths)


def run_seed(task: Task, seed: int) -> list[dict[str, Any]]:
    """All ways for one seed."""
    notes, steps, quarter = Notes(task, seed), task.steps, task.steps // 4

    def fresh(widths: list[int] | None = None) -> nn.Module:
        return fresh_model(task, seed, widths)

    def tuned(cut: nn.Module) -> nn.Module:
        return train(task, cut, seed + 1000, quarter, GENTLE)[0]

    def others(widths: list[int], given: str) -> None:
        notes.add("scratch", train(task, fresh(widths), seed, steps, GENTLE)[0], given=given)
        notes.add("cut only", cut_to(task, full, widths, 2), given=given)
        notes.add("simplify, L2", tuned(cut_to(task, simple, widths, 2)), given=given)
        pruned = {f"L{power}": cut_to(task, most, widths, power) for power in (1, 2)}
        if task.torch_pruning and find_spec("torch_pruning"):
            pruned["Torch-Pruning"] = by_torch_pruning(task, most, widths)
        for method, cut in pruned.items():
            notes.add(method, tuned(cut), given=given)

    most, _ = train(task, fresh(), seed, steps - quarter, GENTLE)
    full = tuned(copy.deepcopy(most))
    notes.add("gentle", full)
    large, said = train(task, fresh(), seed, steps, SIMPLIFY)
    simple, _ = train(task, fresh(), seed, steps - quarter, SIMPLIFY)
    small = compacted(task, large)
    notes.add("simplify", small, given="simplify", before=task.accuracy(large), said=said)
    if task.widths(small) != task.widths(full):
        others(task.widths(small), "simplify")
    for share in SHARES:
        others([max(1, int(share * width)) for width in task.widths(full)], f"{share:.0%} of the width")
    return [*notes.rows, *control(task, seed, notes.rows)]


def control(task: Task, seed: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A plain large rate: as it is, and cut to the widths of the other ways' rows, then trained like them."""
    notes, steps, quarter = Notes(task, seed), task.steps, task.steps // 4
    for rate in task.large_rates:
        large, most = (train(task, fresh_model(task, seed), seed, n, rate)[0] for n in (steps, steps - quarter))
        notes.add("plain", compacted(task, large), rate=rate, before=task.accuracy(large))
        for row in rows:
            if row["method"] == "scratch" and row["seed"] == seed:
                small = train(task, cut_to(task, most, row["widths"], 2), seed + 1000, quarter, GENTLE)[0]
                notes.add("plain, L2", small, given=row["given"], rate=rate)
    return notes.rows


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    tasks = sorted({row["task"] for row in result["rows"]})
    figure, axes = plt.subplots(1, len(tasks), figsize=(6.5 * len(tasks), 4.5), squeeze=False)
    for ax, task in zip(axes[0], tasks):
        points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        rows = [row for row in result["rows"] if row["task"] == task]
        for row in rows:
            points[row["method"]].append((sum(row["widths"]), row["accuracy"]))
        for method, marker in zip(points, "o*svP^XDd<>"):
            x, y = zip(*sorted(points[method]))
            ax.scatter(x, y, marker=marker, s=90 if marker == "*" else 28, label=method, alpha=0.75)
        title = f"{task}, {rows[0]['steps']} steps"
        ax.set(xlabel="units left", ylabel="test accuracy", title=title)
        ax.set_ylim(bottom=max(0.0, median(row["accuracy"] for row in rows) - 0.15))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(rows: list[dict[str, Any]]) -> None:
    print("\n| task | width from | method | units left | test accuracy |\n|---|---|---|--:|--:|")
    groups: dict[tuple[str, Any, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        method = row["method"] + (f", lr {row['rate']}" if "rate" in row else "")
        groups[row["task"], row.get("given", ""), method].append(row)
    for (task, given, method), some in groups.items():
        width, got = mean(sum(row["widths"]) for row in some), [row["accuracy"] for row in some]
        print(f"| {task} | {given} | {method} | {width:.1f} | {mean(got):.3f} ({min(got):.3f} to {max(got):.3f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--control", action="store_true", help="only the rows of a plain large rate")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "simplify.json")
    parser.add_argument("--replot", action="store_true", help="only print and draw the result that is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    for name in () if options.replot else options.tasks:
        kept = [row for row in result["rows"] if row["task"] == name and not row["method"].startswith("plain")]
        seeds = range(options.seeds)
        if options.control:
            rows = kept + [row for seed in seeds for row in control(TASKS[name](), seed, kept)]
        else:
            rows = [row for seed in seeds for row in run_seed(TASKS[name](), seed)]
        rows = [{**row, "steps": TASKS[name].steps} for row in rows]
        result["rows"] = [row for row in result["rows"] if row["task"] != name] + rows
        result |= {"torch": torch.__version__, "topoopt": topoopt.__version__}
        result["seconds"] = round(time.process_time() - began, 1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    table(result["rows"])
    plot(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
