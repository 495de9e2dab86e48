"""What monitors of a training run do around its steps: topoopt and its peers, behind one small class.

Every monitor is begun on a model, is called at each step, and says at which steps it did something and what it found. Peers are
imported when they are begun: one that is missing or fails says so in its own words.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from topoopt import TopoOptimizer

LR = 1e-3
BATCHES = 8
"""Mini-batches that a reading of batch sharpness is the mean of."""


@dataclass(frozen=True)
class Task:
    """A model that is trained; batches are (inputs, targets), the same for the same step."""

    name: str
    model: nn.Module
    batch: Callable[[int], tuple[Tensor, Tensor]]
    pieces: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    """From what the model gives, and the targets, to what cross-entropy takes."""

    def criterion(self, out: Any, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(*self.pieces(out, y))

    def loss(self, step: int) -> Tensor:
        x, y = self.batch(step)
        return self.criterion(self.model(x), y)


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


# -- topoopt ----------------------------------------------------------------------------------------------------------


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


# -- peers that are called after a step -------------------------------------------------------------------------------


class PyHessian(Monitor):
    """Power iteration by its own stopping rule; it puts the model into eval mode and leaves gradients behind."""

    reads = "top eigenvalue of the Hessian (in eval mode)"
    quantity = "lambda"

    def look(self, step: int) -> None:
        package: Any = importlib.import_module("pyhessian")
        with sdpa_kernel(SDPBackend.MATH):  # its double backward stops at fused attention
            made = package.hessian(self.task.model, self.task.criterion, data=self.task.batch(step), cuda=False)
            self.found = abs(float(made.eigenvalues()[0][0]))
        self.task.model.train()
        self.task.model.zero_grad(set_to_none=True)


class Eigenthings(Monitor):
    """Ten Lanczos steps from a random vector."""

    reads = "top eigenvalue of the Hessian"
    quantity = "lambda"

    def look(self, step: int) -> None:
        package: Any = importlib.import_module("hessian_eigenthings")

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return self.task.criterion(model(batch[0]), batch[1])

        with sdpa_kernel(SDPBackend.MATH):
            operator = package.HessianOperator(self.task.model, [self.task.batch(step)], loss)
            self.found = abs(float(package.lanczos(operator, k=1, max_iter=10).eigenvalues[0]))


def batch_sharpness(task: Task, steps: range) -> float:
    """Mean over mini-batches of g' H g / g' g, H and g of the same batch (Andreyev and Beneventano, arXiv 2412.20553)."""
    parameters, found = [p for p in task.model.parameters() if p.requires_grad], []
    for step in steps:
        with sdpa_kernel(SDPBackend.MATH):
            g = torch.autograd.grad(task.loss(step), parameters, create_graph=True, allow_unused=True)
            pairs = [(p, d) for p, d in zip(parameters, g) if d is not None]
            along = [d.detach() for _, d in pairs]
            product = torch.autograd.grad([d for _, d in pairs], [p for p, _ in pairs], along, allow_unused=True)
        top = sum(float((a * h).sum()) for a, h in zip(along, product) if h is not None)
        found.append(top / sum(float(a.square().sum()) for a in along))
    return sum(found) / len(found)


class BatchSharpness(Monitor):
    """The quantity that limits SGD in small batches; edge 2 / lr there, and none known for Adam."""

    reads = f"batch sharpness, the mean over {BATCHES} mini-batches"
    quantity = "batch sharpness"

    def look(self, step: int) -> None:
        self.found = batch_sharpness(self.task, range(step + 1, step + 1 + BATCHES))


class WandbWatch(Monitor):
    """wandb.watch(log="all"), offline; a row is logged where histograms are due."""

    reads = "histograms of weights and gradients"

    def begin(self, *, trainer: bool = False) -> Optimizer:
        self._wandb: Any = importlib.import_module("wandb")
        self._folder = tempfile.TemporaryDirectory()
        settings = self._wandb.Settings(silent=True, console="off")
        self._wandb.init(mode="offline", dir=self._folder.name, project="benchmark", settings=settings)
        self._wandb.watch(self.task.model, log="all", log_freq=self.every)
        return super().begin()

    def look(self, step: int) -> None:
        self._wandb.log({"step": step})

    def end(self) -> None:
        self._wandb.unwatch()
        self._wandb.finish()
        self._wandb.teardown()
        self._folder.cleanup()


# -- peers that are an optimizer --------------------------------------------------------------------------------------


class TopologicalAdam(Monitor):
    """Its recommended optimizer, V3, with its statistics on: it takes another step than Adam."""

    reads = "its own field's energy, coupling, gate (steers: takes another step than Adam)"

    def begin(self, *, trainer: bool = False) -> Optimizer:
        package: Any = importlib.import_module("topological_adam")
        self.optimizer = package.TopologicalAdamV3(self.task.model.parameters(), lr=LR, track_stats=True)
        return self.optimizer

    def look(self, step: int) -> None:
        self.optimizer.field_metrics()


class TopoAdamW(Monitor):
    """25 forward passes of a random plane around the weights, to scale the rate."""

    reads = "sharpness and variance of the loss on a random plane (steers: scales the rate)"
    own_loop = "its step() wants the batch and the loss function, which Trainer does not hand over"

    def begin(self, *, trainer: bool = False) -> Optimizer:
        package: Any = importlib.import_module("topoadamw")
        inner = super().begin()
        self.optimizer = package.TopoAdamW(
            self.task.model.parameters(), self.task.model, lr=LR, interval=self.every, warmup_steps=0
        )
        return inner

    def train(self, step: int) -> None:
        self.optimizer.zero_grad()
        self.task.loss(step).backward()
        x, y = self.task.batch(step)
        self.optimizer.step(data=x, target=y, criterion=self.task.criterion)


# -- Cockpit ----------------------------------------------------------------------------------------------------------


class Cockpit(Monitor):
    """Its quantities come out of BackPACK's extended backward pass, which has to know every module."""

    reads = "alpha, distances, gradient histogram, norm, inner and orthogonality tests, update size"
    label = "economy"
    afterwards = False
    own_loop = "it has to own the backward pass"

    def begin(self, *, trainer: bool = False) -> Optimizer:
        backpack: Any = importlib.import_module("backpack")
        cockpit: Any = importlib.import_module("cockpit")
        settings: Any = importlib.import_module("cockpit.utils.configuration")
        backpack.extend(self.task.model)
        self._mean = backpack.extend(nn.CrossEntropyLoss())
        quantities = settings.configuration(self.label, track_schedule=lambda step: step >= 0 and self.due(step))
        self._cockpit = cockpit.Cockpit(self.task.model.parameters(), quantities=quantities)
        return super().begin()

    def train(self, step: int) -> None:
        x, y = self.task.batch(step)
        self.optimizer.zero_grad()
        pieces = self.task.pieces(self.task.model(x), y)
        loss, losses = self._mean(*pieces), nn.functional.cross_entropy(*pieces, reduction="none")
        info = {"batch_size": len(losses), "individual_losses": losses, "loss": loss, "optimizer": self.optimizer}
        with self._cockpit(step, info=info):
            loss.backward(create_graph=self._cockpit.create_graph(step))
        self.optimizer.step()
        if self.due(step) and self.quantity:
            self.found = abs(float(self._cockpit.get_output()[step]["HessMaxEV"]))


class CockpitFull(Cockpit):
    """With the second-order quantities."""

    reads = "economy's, TIC, trace and top eigenvalue of the Hessian, 2-d histogram of gradients"
    label = "full"
    quantity = "lambda"


MONITORS: dict[str, type[Monitor]] = {
    "topoopt, defaults": Topo,
    "topoopt, r": TopoReadings,
    "topoopt, everything": TopoFull,
    "wandb.watch(log='all')": WandbWatch,
    "topological-adam": TopologicalAdam,
    "topoadamw": TopoAdamW,
    "Cockpit, economy": Cockpit,
    "Cockpit, full": CockpitFull,
    "PyHessian": PyHessian,
    "hessian-eigenthings": Eigenthings,
    "batch sharpness": BatchSharpness,
}
