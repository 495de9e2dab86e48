"""`Hold` against the best of a learning-rate grid: does training in units of eta* do without a learning rate?

Fourteen tasks (widths, depths, activations, initial scales; SGD, momentum, Adam, AdamW; digits and a small GPT on text),
a cosine schedule, the same batches for all. For each: the final training loss of `Hold()` with its defaults, of the best of
seven learning rates, and of Prodigy and schedule-free AdamW where they are installed. A run has diverged when its loss is
not finite or ends above where it began.

Without options, what runs in about eight minutes on one thread: 400 steps, a grid of five rates (the outermost two are left
out), and of the two GPTs one. `--full` is everything.

    python benchmarks/hold_suite.py [--full] [--steps 400] [--only NAME]
"""

from __future__ import annotations

import argparse
import argparse as some_text  # its source is the text that the small GPT learns
import importlib
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt import Hold, TopoOptimizer

Batch = tuple[Tensor, Tensor]
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


def train(task: Task, data: list[Batch], make: Callable[[nn.Module], Any], hold: bool = False) -> tuple[float, float]:
    """Train on the batches; returns the first loss and the mean of the last twentieth's."""
    torch.manual_seed(0)
    model = task.model()
    current = data[0]

    def loss() -> Tensor:
        return cross_entropy(model(current[0]), current[1])

    optimizer = make(model)
    if hold:
        optimizer = TopoOptimizer(
            optimizer, model, mode=Hold(), loss=loss, every=200, budget=None, homology=-1, products=4, per_group=False
        )
    schedule = getattr(optimizer, "train", None) is None  # schedule-free rules have no schedule
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data)) if schedule else None
    if not schedule:
        optimizer.train()
    losses = []
    for batch in data:
        current = batch
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            return losses[0], math.inf
    if hold:
        optimizer.detach()
    tail = losses[-max(1, len(losses) // 20) :]
    return losses[0], sum(tail) / len(tail)


def others() -> dict[str, Callable[[nn.Module], Any]]:
    """Rate-free rules of other libraries, where they are installed."""
    found: dict[str, Callable[[nn.Module], Any]] = {}
    for name, module, kind in (
        ("Prodigy", "prodigyopt", "Prodigy"),
        ("schedule-free", "schedulefree", "AdamWScheduleFree"),
    ):
        try:
            made = getattr(importlib.import_module(module), kind)
        except ImportError:
            continue
        options = {"lr": 1.0} if name == "Prodigy" else {}
        found[name] = lambda model, made=made, options=options: made(model.parameters(), **options)
    return found


@dataclass(frozen=True)
class Row:
    """One task's losses."""

    first: float
    best: float
    held: float
    cells: list[str]


def compare(task: Task, steps: int, rates: list[float], rivals: dict[str, Callable[[nn.Module], Any]]) -> Row:
    """All runs of one task."""
    data = batches(task.data, steps)

    def plain(lr: float) -> Callable[[nn.Module], Any]:
        return lambda model: MAKE[task.rule](model.parameters(), lr=lr)

    grid = {lr: train(task, data, plain(lr))[1] for lr in rates}
    best = min(grid, key=lambda lr: grid[lr])
    first, held = train(task, data, plain(1.0), hold=True)
    cells = [task.name, task.rule, f"{first:.3f}", f"{grid[best]:.4f}", f"{best:g}", f"{held:.4f}"]
    cells += [f"{held / grid[best]:.2f}", *(f"{train(task, data, make)[1]:.4f}" for make in rivals.values())]
    return Row(first, grid[best], held, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all tasks, seven rates, 1,000 steps, and rate-free rules")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--only", default="", help="part of a task's name or rule")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rivals = others() if options.full else {}
    steps = options.steps or (1000 if options.full else 400)
    tasks = TASKS if options.full else TASKS[:-1]
    columns = ["task", "rule", "first", "best of grid", "at lr", "Hold", "ratio", *rivals]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    rows = []
    for task in tasks:
        if options.only in f"{task.name} {task.rule}":
            rates = GRID[task.rule] if options.full else GRID[task.rule][1:-1]
            rows.append(compare(task, steps, rates, rivals))
            print("| " + " | ".join(rows[-1].cells) + " |", flush=True)
    good = sum(row.held <= 1.5 * row.best for row in rows)
    diverged = sum(not row.held <= row.first for row in rows)
    print(f"\nHold diverged in {diverged} of {len(rows)} tasks; it ended within 1.5 of the best of the grid in {good}.")


if __name__ == "__main__":
    main()
