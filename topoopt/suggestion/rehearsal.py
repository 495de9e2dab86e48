"""Rehearsals: steps of a copy of the model by a copy of the optimizer, of which the originals see nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.curvature import SpectralEstimate, SpectralTracker
from topoopt.curvature.trial import bare_step, displacement
from topoopt.errors import MeasurementError
from topoopt.suggestion.copying import copies, runs_through
from topoopt.suggestion.loss import LossFn, loss_of

PRODUCTS = 2
"""Jacobian products of a reading that has an earlier one to start from."""
SAME = 0.02
"""How far twice the rate may be from twice the step."""


@dataclass(frozen=True)
class Script:
    """What is rehearsed: the originals, which stay as they are."""

    model: nn.Module
    """Put into training mode, as a copy, if it is in evaluation mode."""
    optimizer: Optimizer
    rates: tuple[float, ...]
    """The user's rate of each parameter group, which factors multiply."""
    loss_fn: LossFn | None
    max_norm: float | None
    """What the gradient's norm is clipped to before each step."""


class Rehearsal:
    """One run on fresh copies, at rates that are factors on the user's own."""

    def __init__(self, script: Script) -> None:
        self._script, self.steps = script, 0
        self.model, self._optimizer = copies(script.model, script.optimizer)
        if not self.model.training:
            self.model.train()
        self._step = bare_step(self._optimizer)
        self._tracker = SpectralTracker(self._optimizer, PRODUCTS)
        self._parameters: list[Tensor] = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._clipped, self._checked = 1.0, False

    def at(self, factor: float) -> None:
        """Set every group's rate to a factor on the user's own."""
        for group, rate in zip(self._optimizer.param_groups, self._script.rates):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(factor * rate)
            elif group["lr"] is not None:
                group["lr"] = factor * rate

    def backward(self, batch: Any) -> float:
        """The batch's loss; its gradients are left in the copy's `.grad`, clipped.

        Raises:
            MeasurementError: when the loss has no graph, or one that runs through the original model.
        """
        for parameter in self._parameters:
            parameter.grad = None
        loss = loss_of(self.model, batch, self._script.loss_fn)
        self._check(loss)
        loss.backward()
        norm, self._clipped = self._script.max_norm, 1.0
        if norm is not None:
            size = float(nn.utils.clip_grad_norm_(self._parameters, norm))
            self._clipped = min(1.0, norm / (size + 1e-6)) if math.isfinite(size) else 1.0
        return float(loss.detach())

    def step(self) -> None:
        """The optimizer's step with the gradients that are there."""
        with torch.no_grad():
            self._step(self._optimizer)
        self.steps += 1

    def read(self, batch: Any) -> SpectralEstimate:
        """r of the coming step on its own batch, at the rate that is set: of the clipped gradient, if it was clipped."""
        script = self._script
        return self._tracker.estimate(
            lambda: loss_of(self.model, batch, script.loss_fn) * self._clipped, model=self.model
        )

    @torch.no_grad()
    def loss(self, batches: Sequence[Any]) -> float:
        """The mean loss of batches at the weights as they stand, without a step; infinite where it is not finite."""
        losses = [float(loss_of(self.model, batch, self._script.loss_fn)) for batch in batches]
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    def follows_its_rate(self) -> bool:
        """Whether twice the rate would make the coming step twice as long."""
        gradients, moved = [p.grad for p in self._parameters], []
        for factor in (1.0, 2.0):
            self.at(factor)
            moves = displacement(self._optimizer, self._parameters, gradients)
            moved.append(torch.cat([move.flatten().double() for move in moves]))
        return bool((moved[1] - 2 * moved[0]).norm() <= SAME * (2 * moved[0]).norm())

    def _check(self, loss: Tensor) -> None:
        """Once a run. A forward that is bound to the original model would leave gradients there."""
        if self._checked:
            return
        if not loss.requires_grad:
            raise MeasurementError("the loss has no graph to the weights: compute it without torch.no_grad()")
        originals = {id(p) for group in self._script.optimizer.param_groups for p in group["params"]}
        if runs_through(loss, originals):
            raise MeasurementError(
                "the loss of the copy runs through the original model: compute it with the model that loss_fn is given, "
                "and give a model whose forward is its class's own"
            )
        self._checked = True
