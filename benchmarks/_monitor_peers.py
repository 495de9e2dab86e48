"""topoopt's peers as monitors; each is imported when it is begun, and one that is missing or fails says so in its own words."""

from __future__ import annotations

import importlib
import tempfile
from typing import Any

from _monitors import LR, Monitor, Topo, TopoFull, TopoReadings
from _truth import batch_sharpness
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

BATCHES = 8
"""Mini-batches that a reading of batch sharpness is the mean of."""

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
