"""What the step of an unknown rule is like, told by trying it: a copy takes it with other gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.copying import displacement

ENOUGH = 8
"""Fewest changed entries that can show that all have one length."""
SAME = 1e-6
"""Moves that differ by less, relative to the largest, are the same."""


class Behaviour(StrEnum):
    """How a step depends on the gradient."""

    SIGNS = "signs"
    """Through signs alone: it has no Lipschitz constant in it."""
    COORDINATE_WISE = "coordinate-wise"
    """Each weight's move depends on its own gradient alone."""
    ANY = "any"
    """In any way."""
    UNKNOWN = "unknown"
    """The step is not finite, which tells nothing."""


def behaviour(optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Behaviour:
    """Try the next step with this gradient, with another one, and with a mixture of the two.

    In the other one every entry is larger, by its own factor, and half of them are turned over. Decay cancels; what is left
    of a step by signs is 0 or one length, the same all over a tensor (so is Adam's very first step). A coordinate-wise
    step moves each weight by the mixture as by the gradient that its entry came from.
    """
    pairs = [(p, g) for p, g in zip(parameters, gradients) if g is not None]
    parameters, gradient = [p for p, _ in pairs], [g for _, g in pairs]
    generator = torch.Generator().manual_seed(0)
    other, chosen = [], []
    for g in gradient:
        sizes = 10 ** (2 * torch.rand(g.shape, generator=generator))  # enough to turn an average over
        flips = torch.randint(0, 2, g.shape, generator=generator) * 2 - 1
        other.append(g * _as(g, (sizes * flips).to(g.dtype)))
        chosen.append(_as(g, torch.rand(g.shape, generator=generator) < 0.5))
    mixed = [torch.where(c, o, g) for c, o, g in zip(chosen, other, gradient)]
    here, there, between = (displacement(optimizer, parameters, grads) for grads in (gradient, other, mixed))
    if not math.isfinite(sharding.total_norm(here)):
        return Behaviour.UNKNOWN
    if _one_length([a - b for a, b in zip(here, there)]):
        return Behaviour.SIGNS
    expected = [torch.where(c, b, a) for c, a, b in zip(chosen, here, there)]
    return Behaviour.COORDINATE_WISE if all(map(_near, between, expected)) else Behaviour.ANY


def _as(gradient: Tensor, values: Tensor) -> Tensor:
    """The values where the gradient is, and sharded as it is."""
    return sharding.whole(sharding.part(values.to(gradient.device), gradient), gradient)


def _one_length(changes: Sequence[Tensor]) -> bool:
    sizes = [sharding.full(change.detach()).abs().flatten() for change in changes]
    sizes = [size[size > 1e-3 * size.max()] for size in sizes if size.numel()]
    lengths = torch.cat([(size / size.median()).double() for size in sizes if len(size) > 1] or [torch.ones(0)])
    return len(lengths) >= ENOUGH and float(((lengths - 1).abs() < 0.01).double().mean()) > 0.95


def _near(move: Tensor, expected: Tensor) -> bool:
    difference, size = (sharding.full(t.detach()).abs() for t in (move - expected, expected))
    return not difference.numel() or bool(difference.max() <= SAME * size.max())
