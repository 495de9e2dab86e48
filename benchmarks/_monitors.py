"""What a monitor of a training run does around its steps: one small class, and topoopt behind it.

Every monitor is begun on a model, is called at each step, and says at which steps it did something and what it found.
"""

from __future__ import annotations

from typing import Any

import torch
from _watched import Task
from torch.optim import Optimizer

from topoopt import TopoOptimizer

LR = 1e-3


class Monitor:
    """No monitor: Adam alone; its peers override what they need."""

    reads = ""
    """What it finds out, in words."""
    quantity = ""
    """What `found` is: "lambda", "r", "batch sharpness" or nothing."""
    afterwards = True
    """Whether it looks at the weights after the step, or at those that the step was taken from."""
    own_loop = ""
    """Why it cannot be used under Trainer."""

    def __init__(self, task: Task, every: int) -> None:
        self.task, self.every = task, every
        self.found = float("nan")

    def begin(self, *, trainer: bool = False) -> Optimizer:
        """The optimizer that trains the task's model, by the loop of `train` or by a Trainer."""
        self.optimizer: Any = torch.optim.Adam(self.task.model.parameters(), lr=LR)
        return self.optimizer

    def callbacks(self) -> list[Any]:
        """What a Trainer is given."""
        return []

    def due(self, step: int) -> bool:
        """Whether a monitor that is called does something at this step."""
        return step % self.every == self.every - 1

    def train(self, step: int) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        self.task.loss(step).backward()
        self.optimizer.step()
        if self.due(step):
            self.look(step)

    def look(self, step: int) -> None:
        """What is done after a step that is due."""

    def happened(self, step: int) -> bool:
        """Whether something was done at the step just taken."""
        return self.due(step)

    def setup_seconds(self) -> float:
        """Of the time since `begin`, what was spent once and not at an event."""
        return 0.0

    def readings(self) -> str:
        """How many readings it got, where that is not one an event."""
        return ""

    def end(self) -> None:
        """Give back what it holds."""


class Topo(Monitor):
    """The wrapper with its defaults: the budget decides."""

    reads = "r, edge, phase, verdict; neurons and H1 now and then"
    quantity = "r"
    afterwards = False

    def begin(self, *, trainer: bool = False) -> Optimizer:
        inner, self._callback = super().begin(), None
        if not trainer:
            self.optimizer = TopoOptimizer(inner, self.task.model, **self.settings())
        return self.optimizer

    def callbacks(self) -> list[Any]:
        from topoopt.integrations.transformers import TopoCallback

        self._callback = TopoCallback(**self.settings())
        return [self._callback]

    def settings(self) -> dict[str, Any]:
        """TopoConfig's fields."""
        return {}

    def measured(self) -> Any:
        """The optimizer that is measured."""
        return self.optimizer if self._callback is None else self._callback.topo

    def due(self, step: int) -> bool:
        return False

    def happened(self, step: int) -> bool:
        seen = self.measured()
        latest = seen.readings[-1] if seen.readings else None
        read = latest is not None and latest.step == seen.steps - 1
        if read and latest is not None:
            self.found = latest.r
        return read or seen.measured

    def setup_seconds(self) -> float:
        return self.measured().setup_seconds

    def readings(self) -> str:
        cadence = self.measured().topo.cadence
        return f"{cadence.readings} readings, {cadence.measurements} measurements"

    def end(self) -> None:
        if self._callback is None:
            self.optimizer.detach()


class TopoReadings(Topo):
    """r alone, every so many steps: what peers that give an eigenvalue are to be held against."""

    reads = "r, edge, phase, verdict"

    def settings(self) -> dict[str, Any]:
        # readings lie a fifth of `every` apart, and there is nothing that a measurement would measure
        return {"every": 5 * self.every, "budget": None, "exclude": "*", "homology": -1, "per_group": False}


class TopoFull(Topo):
    """Every reading and every group; nothing left out for its price but the neuron field, which has an option of its own."""

    reads = "r with 10 products, r of a group, distortion, gain, certificates, H0, H1 of all groups"

    def settings(self) -> dict[str, Any]:
        return {
            "every": self.every, "budget": None, "products": 10, "reading_products": 10,
            "keep": "host", "wait": True,
        }  # fmt: skip
