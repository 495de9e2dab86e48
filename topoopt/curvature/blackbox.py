"""An optimizer of which nothing is known but its step: products with that step's Jacobian."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt.curvature.copying import displacement
from topoopt.curvature.engines import STEP, FiniteDifferences, moved
from topoopt.curvature.operator import Layout


class BlackBox:
    """V -> -[D(x + h v) - D(x)] / h, with D the displacement of the optimizer's own next step."""

    def __init__(self, engine: FiniteDifferences, layout: Layout, optimizer: Optimizer) -> None:
        self._engine, self._layout, self._optimizer = engine, layout, optimizer
        self._base = self._move(engine.step_gradient)

    def __call__(self, v: Tensor, scale: float = 1.0) -> Tensor:
        """The product, by a difference over `scale` times the usual step."""
        norm = math.sqrt(float(self._layout.dot(v, v)))
        if norm == 0:
            return torch.zeros_like(v)
        step = scale * STEP.get(self._layout.dtype, 1e-3) / norm
        self._engine.products += 1
        with moved(self._layout.parameters, self._layout.unflatten(v), step):
            _, gradient = self._engine.at()
            ahead = self._move(self._engine.as_in_a_step(gradient))
        return (self._base - ahead) / step

    def _move(self, gradient: Sequence[Tensor | None]) -> Tensor:
        return self._layout.flatten(displacement(self._optimizer, self._layout.parameters, gradient))

    def doubt(self, v: Tensor) -> float:
        """Share by which the product's length along v changes with twice the step: 0 for a smooth rule, 0.5 for rounding."""
        lengths = [math.sqrt(float(self._layout.dot(w, w))) for w in (self(v), self(v, 2.0))]
        return abs(lengths[0] - lengths[1]) / max(*lengths, 1e-300)
