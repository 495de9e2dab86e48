"""A rule that moves each weight by its own gradient alone: its step's full derivative, by trying the step itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt.curvature.copying import displacement
from topoopt.curvature.engines import Engine, moved
from topoopt.curvature.operator import Layout

ROUNDING = 1e-6
"""A derivative below 0 by less than this, relative to the largest, is 0."""


class CoordinateWise:
    """V -> -dD/dx v = w H v + s v for D_i = phi_i(g_i, x_i): w = -dphi/dg and s = -dphi/dx, at this gradient.

    Both are differences of the optimizer's own step, one extra step of a copy each; H v is the engine's. A rule that goes
    down every gradient, the faster the larger it is, has w >= 0 and the symmetric form w^1/2 H w^1/2 + s.
    """

    def __init__(self, engine: Engine, layout: Layout, optimizer: Optimizer, gradient: Sequence[Tensor | None]) -> None:
        self._engine, self._layout, self._optimizer, self._gradient = engine, layout, optimizer, gradient
        self.weight, self._shift = self._derivatives(1.0)

    @property
    def is_descent(self) -> bool:
        """Whether w >= 0 on all ranks: the products are then those of the symmetric form."""
        below = self.weight.clamp_max(0.0)
        return float(self._layout.dot(below, below)) == 0

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        root = self.weight.sqrt()
        return (root, root) if self.is_descent else (self.weight, torch.ones_like(self.weight))

    def __call__(self, v: Tensor) -> Tensor:
        """The product."""
        left, right = self._sides
        return left * self._hessian(right * v) + self._shift * v

    def doubt(self, v: Tensor) -> float:
        """Share of the product along v that changes with twice the differences: 0 for a smooth rule, 1 for rounding."""
        v = self._sides[1] * v  # back from the symmetric form
        h = self._hessian(v)
        one, two = (w * h + s * v for w, s in ((self.weight, self._shift), self._derivatives(2.0)))
        dot = self._layout.dot
        return math.sqrt(float(dot(one - two, one - two)) / max(float(dot(one, one)), float(dot(two, two)), 1e-300))

    def _hessian(self, v: Tensor) -> Tensor:
        return self._layout.flatten(self._engine.product(self._layout.unflatten(v)))

    def _derivatives(self, scale: float) -> tuple[Tensor, Tensor]:
        layout = self._layout
        base = self._move(self._gradient)
        flat = layout.flatten([0.0 if g is None else g for g in self._gradient])
        step = scale * _small(flat)
        ahead = [None if g is None else a for a, g in zip(layout.unflatten(flat + step), self._gradient)]
        weight = (base - self._move(ahead)) / step
        step = scale * _small(layout.flatten(layout.parameters))
        with moved(layout.parameters, layout.unflatten(step), 1.0):
            shift = (base - self._move(self._gradient)) / step
        nothing = (weight < 0) & (weight > -ROUNDING * weight.abs().max())
        return weight.masked_fill(nothing, 0.0), shift

    def _move(self, gradient: Sequence[Tensor | None]) -> Tensor:
        return self._layout.flatten(displacement(self._optimizer, self._layout.parameters, gradient))


def _small(values: Tensor) -> Tensor:
    """A step for differences, each coordinate's own."""
    return (1e-3 if values.dtype is torch.float32 else 1e-6) * (values.abs() + values.abs().mean() + 1e-12)
