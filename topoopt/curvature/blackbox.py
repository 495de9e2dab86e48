"""An optimizer of which nothing is known but its step: products with its Jacobian, and what its step is like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.copying import displacement
from topoopt.curvature.engines import STEP, FiniteDifferences, moved
from topoopt.curvature.operator import Layout

ENOUGH = 8
"""Fewest changed entries that can show that all have one length."""


class BlackBox:
    """V -> -[D(x + h v) - D(x)] / h, with D the displacement of the optimizer's own next step."""

    def __init__(self, engine: FiniteDifferences, layout: Layout, optimizer: Optimizer) -> None:
        self._engine, self._layout, self._optimizer = engine, layout, optimizer
        self._base = self._move(engine.gradient)

    def __call__(self, v: Tensor, scale: float = 1.0) -> Tensor:
        """The product, by a difference over `scale` times the usual step."""
        norm = math.sqrt(float(self._layout.dot(v, v)))
        if norm == 0:
            return torch.zeros_like(v)
        step = scale * STEP.get(self._layout.dtype, 1e-3) / norm
        self._engine.products += 1
        with moved(self._layout.parameters, self._layout.unflatten(v), step):
            _, gradient = self._engine.at()
            ahead = self._move(gradient)
        return (self._base - ahead) / step

    def _move(self, gradient: Sequence[Tensor]) -> Tensor:
        return self._layout.flatten(displacement(self._optimizer, self._layout.parameters, gradient))

    def doubt(self, v: Tensor) -> float:
        """Share by which the product's length along v changes with twice the step: 0 for a smooth rule, 0.5 for rounding."""
        lengths = [math.sqrt(float(self._layout.dot(w, w))) for w in (self(v), self(v, 2.0))]
        return abs(lengths[0] - lengths[1]) / max(*lengths, 1e-300)


def moves_by_signs(optimizer: Optimizer, parameters: Sequence[Tensor], gradient: Sequence[Tensor]) -> bool:
    """Whether the next step depends on the gradient through signs alone, and so has no Lipschitz constant in it.

    The step is taken with another gradient: every entry larger, by its own factor, half of them turned over. Decay cancels;
    what is left of a step by signs is 0 or one length, the same all over a tensor. So is Adam's very first step.
    """
    generator = torch.Generator().manual_seed(0)
    other = []
    for g in gradient:
        sizes = 10 ** (2 * torch.rand(g.shape, generator=generator))  # enough to turn an average over
        flips = torch.randint(0, 2, g.shape, generator=generator) * 2 - 1
        other.append(g * sharding.whole(sharding.part((sizes * flips).to(g.device, g.dtype), g), g))
    one, two = (displacement(optimizer, parameters, grads) for grads in (gradient, other))
    changes = [sharding.full((a - b).detach()).abs().flatten() for a, b in zip(one, two)]
    changes = [change[change > 1e-3 * change.max()] for change in changes if change.numel()]
    lengths = torch.cat(
        [(change / change.median()).double() for change in changes if len(change) > 1] or [torch.ones(0)]
    )
    return len(lengths) >= ENOUGH and float(((lengths - 1).abs() < 0.01).double().mean()) > 0.95
