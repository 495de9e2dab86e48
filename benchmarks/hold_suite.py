"""`Hold` against the best of a learning-rate grid: does training in units of eta* do without a learning rate?

Fourteen tasks (widths, depths, activations, initial scales; SGD, momentum, Adam, AdamW; digits and a small GPT on text),
a cosine schedule, the same batches for all; 1,000 steps, 400 of the GPTs. For each: the final training loss of `Hold()` through
the wrapper with its defaults (r from the training's own steps, no learning rate chosen), of the best of seven learning rates,
and of Prodigy and schedule-free AdamW. A run has diverged when its loss is not finite or ends above where it began.
Hold's targets were set on these tasks; `--elsewhere` runs it on those that `rates.py` holds out, beside their grids (one seed).

What was run is kept in results/hold.json; the whole takes about eight minutes on one thread.

    python benchmarks/hold_suite.py                   # what is not kept yet, then the table
    python benchmarks/hold_suite.py --only Hold       # that row anew, on all tasks
    python benchmarks/hold_suite.py --tasks sgd       # of the tasks whose name or rule has this in it
    python benchmarks/hold_suite.py --elsewhere       # Hold on the tasks that rates.py holds out
    python benchmarks/hold_suite.py --show            # the tables alone
"""

from __future__ import annotations

import argparse
import argparse as some_text  # its source is the text that the small GPT learns
import inspect
import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt import Hold, TopoOptimizer

Batch = tuple[Tensor, Tensor]
RESULTS = Path(__file__).parent / "results" / "hold.json"
STEPS = {"digits": 1000, "text": 400}
TARGET = 1.5
"""Times the grid's best up to which a loss counts as good."""
GRID = {
    "sgd": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    "momentum": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
    "adam": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "adamw": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
}
MAKE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, weight_decay=0.01),
}


@dataclass(frozen=True)
class Task:
    """A model, data and an update rule."""

    name: str
    rule: str
    model: Callable[[], nn.Module]
    data: str = "digits"
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy


def mlp(width: int, depth: int, activation: type[nn.Module], scale: float = 1.0) -> nn.Module:
    layers: list[nn.Module] = []
    sizes = [64, *[width] * depth]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


class SmallGpt(nn.Module):
    """Two pre-norm blocks of causal attention over characters."""

    def __init__(self, width: int = 64, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, width), nn.Embedding(length, width)
        block = partial(
            nn.TransformerEncoderLayer, width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.ModuleList([block() for _ in range(2)])
        self.head = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h, src_mask=mask)
        return self.head(h).transpose(1, 2)


TASKS = [
    Task("tanh 64 x 1", "sgd", partial(mlp, 64, 1, nn.Tanh)),
    Task("tanh 64 x 2", "momentum", partial(mlp, 64, 2, nn.Tanh)),
    Task("tanh 64 x 2", "adam", partial(mlp, 64, 2, nn.Tanh)),
    Task("relu 128 x 1", "momentum", partial(mlp, 128, 1, nn.ReLU)),
    Task("relu 128 x 3", "momentum", partial(mlp, 128, 3, nn.ReLU)),
    Task("relu 128 x 3", "adam", partial(mlp, 128, 3, nn.ReLU)),
    Task("relu 256 x 2", "sgd", partial(mlp, 256, 2, nn.ReLU)),
    Task("relu 256 x 2", "adamw", partial(mlp, 256, 2, nn.ReLU)),
    Task("gelu 64 x 4", "adamw", partial(mlp, 64, 4, nn.GELU)),
    Task("tanh 64 x 2, init x 2", "momentum", partial(mlp, 64, 2, nn.Tanh, 2.0)),
    Task("relu 64 x 2, init x 0.5", "adam", partial(mlp, 64, 2, nn.ReLU, 0.5)),
    Task("relu 64 x 2, init x 2", "sgd", partial(mlp, 64, 2, nn.ReLU, 2.0)),
    Task("GPT 64 x 2", "adamw", SmallGpt, "text"),
    Task("GPT 64 x 2", "adam", SmallGpt, "text"),
]


def batches(data: str, steps: int) -> list[Batch]:
    """The same batches for every run of a task."""
    generator = torch.Generator().manual_seed(1)
    if data == "digits":
        images, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
        picks = [torch.randint(len(x), (128,), generator=generator) for _ in range(steps)]
        return [(x[i], y[i]) for i in picks]
    text = torch.tensor([min(ord(c), 127) for c in inspect.getsource(some_text)])
    starts = [torch.randint(len(text) - 66, (16,), generator=generator) for _ in range(steps)]
    windows = [torch.stack([text[i : i + 65] for i in s.tolist()]) for s in starts]
    return [(w[:, :-1], w[:, 1:]) for w in windows]


def train(
    task: Task, data: list[Batch], make: Callable[[nn.Module], Any], hold: Hold | None = None
) -> tuple[float, float, Any]:
    """Train on the batches; the first loss, the mean of the last twentieth's, and the optimizer."""
    torch.manual_seed(0)
    model = task.model()
    optimizer = make(model)
    if hold is not None:
        optimizer = TopoOptimizer(optimizer, model, mode=hold, budget=None, homology=-1, per_group=False)
    free = hasattr(optimizer, "train")  # schedule-free rules have no schedule
    if free:
        optimizer.train()
    scheduler = None if free else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data))
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        value = task.loss(model(x), y)
        value.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            break
    if hold is not None:
        optimizer.detach()
    tail = losses[-max(1, len(data) // 20) :]
    return losses[0], sum(tail) / len(tail) if math.isfinite(losses[-1]) else math.inf, optimizer


# ---------------------------------------------------------------- the rows


def at_rate(task: Task, data: list[Batch], lr: float) -> float:
    """The loss of the task's own rule at a rate."""
    return train(task, data, lambda model: MAKE[task.rule](model.parameters(), lr=lr))[1]


def held(task: Task, data: list[Batch], make: Callable[..., torch.optim.Optimizer] | None = None) -> dict[str, Any]:
    """Hold's loss, and what its readings say of the way: r/e by quarters of the run, and the largest rate."""
    rule = make or MAKE[task.rule]
    first, loss, optimizer = train(task, data, lambda model: rule(model.parameters(), lr=1.0), Hold())
    readings = [one for one in optimizer.readings if one.edge and math.isfinite(one.r)]
    quarters = [
        [one.r / one.edge for one in readings if len(data) * k / 4 <= one.step < len(data) * (k + 1) / 4]
        for k in range(4)
    ]
    return {
        "first": first,
        "loss": loss,
        "readings": len(readings),
        "r_over_e": [statistics.median(part) if part else None for part in quarters],
        "largest_rate": max(one.scale for one in readings),
    }


def prodigy(task: Task, data: list[Batch]) -> float:
    """The loss under Prodigy, at its rate of 1."""
    from prodigyopt import Prodigy

    return train(task, data, lambda model: Prodigy(model.parameters(), lr=1.0))[1]


def schedule_free(task: Task, data: list[Batch]) -> float:
    """The loss under schedule-free AdamW at its default rate, without a schedule."""
    from schedulefree import AdamWScheduleFree

    return train(task, data, lambda model: AdamWScheduleFree(model.parameters()))[1]


ROWS: dict[str, Callable[[Task, list[Batch]], Any]] = {
    "grid": lambda task, data: {f"{lr:g}": at_rate(task, data, lr) for lr in GRID[task.rule]},
    "Hold": held,
    "Prodigy": prodigy,
    "schedule-free": schedule_free,
}


def elsewhere(kept: dict[str, dict[str, Any]]) -> None:
    """Hold on the tasks that `rates.py` holds out, beside what results/rates.json has of their first initialisation."""
    import _rates_tasks

    known = json.loads((RESULTS.parent / "rates.json").read_text())
    for task in _rates_tasks.TASKS:
        name = f"{task.name} | {task.rule}"
        if not task.held_out or task.model is _rates_tasks.MiniLm or name in kept:
            continue
        own = Task(task.name, task.rule, task.model, loss=task.loss)
        kept[name] = {
            "elsewhere": True,
            "grid": {lr: losses[0] for lr, losses in known[name]["grid"].items()},
            "Hold": held(own, task.data(), _rates_tasks.RULES[task.rule].make),
            "Prodigy": known[name]["Prodigy"]["losses"][0],
            "schedule-free": known[name]["schedule-free AdamW"]["losses"][0],
        }
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def show(kept: dict[str, dict[str, Any]]) -> None:
    """Print the table of what is kept."""
    rivals = list(ROWS)[2:]
    columns = ["task", "rule", "first", "best of 7", "at lr", "Hold", "ratio", "r/e by quarters", *rivals]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    good = dict.fromkeys(["Hold", *rivals], 0)
    diverged = 0
    whole = {name: one for name, one in kept.items() if all(row in one for row in ROWS)}
    for name, one in whole.items():
        rate = min(one["grid"], key=one["grid"].get)
        best, hold = one["grid"][rate], one["Hold"]
        for row, loss in {"Hold": hold["loss"], **{rival: one[rival] for rival in rivals}}.items():
            good[row] += loss <= TARGET * best
        diverged += not hold["loss"] <= hold["first"]
        ratios = " ".join("-" if part is None else f"{part:.2g}" for part in hold["r_over_e"])
        cells = [*name.split(" | "), f"{hold['first']:.3f}", f"{best:.4f}", rate, f"{hold['loss']:.4f}"]
        cells += [f"{hold['loss'] / best:.2f}", ratios, *(f"{one[rival]:.4f}" for rival in rivals)]
        print("| " + " | ".join(cells) + " |")
    counts = ", ".join(f"{row} {count}" for row, count in good.items())
    print(f"\nWithin {TARGET:g} of the best of the grid, of {len(whole)} tasks: {counts}. Hold diverged in {diverged}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(ROWS), help="run this row anew")
    parser.add_argument("--tasks", default="", help="part of a task's name or rule")
    parser.add_argument("--show", action="store_true", help="print what is kept, run nothing")
    parser.add_argument("--elsewhere", action="store_true", help="run Hold on the tasks that rates.py holds out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for task in TASKS if not options.show and not options.elsewhere else ():
        name = f"{task.name} | {task.rule}"
        if options.tasks not in name:
            continue
        one = kept.setdefault(name, {})
        data = batches(task.data, STEPS[task.data])
        for row in ROWS:
            if row not in one or row == options.only:
                one[row] = ROWS[row](task, data)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    if options.elsewhere:
        elsewhere(kept)
    for there in (False, True):
        part = {name: one for name, one in kept.items() if ("elsewhere" in one) == there}
        if part:
            show(part)


if __name__ == "__main__":
    main()
