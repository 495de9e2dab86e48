"""Weights whose gradients are nothing but rounding, which an adaptive rule would amplify in finite differences.

A bias before BatchNorm, or a key's bias in attention, has no gradient; what is computed is rounding. Divided by its root
mean square, as Adam does, it gets the largest rate of all, and a finite difference of it reads nothing else. Double backward
has the same rates there but products that are 0 to many more digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from topoopt import sharding
from topoopt.curvature.engines import FiniteDifferences
from topoopt.curvature.operator import Layout

SUSPECT = 1000
"""Gradients of less than so many units of rounding, beside the root mean square of all, are looked at."""
AMPLIFIED = 100
"""So many times the rate that acts on the gradient on average."""
NOISE = 10
"""Gradients of less than so many times their tensor's rounding are rounding."""


def drowned(
    engine: FiniteDifferences, layout: Layout, gradient: Sequence[Tensor | None], weight: Tensor
) -> tuple[Tensor, int]:
    """Which entries to leave out, as a flat bool mask, and how many of them are not 0 anyway.

    Rounding is measured where it may matter, not guessed from the size: true gradients can be as small. One more
    evaluation of the gradient, with every weight moved to one of its next numbers, tells it, tensor by tensor.
    """
    g = layout.flatten([0.0 if grad is None else grad for grad in gradient])
    energy = layout.dot(g, g)
    acting = layout.dot(g * weight, g) / energy  # NaN without a gradient: nothing is suspect
    floor = SUSPECT * torch.finfo(torch.float32).eps * (energy / layout.size).sqrt()
    suspect = (g.abs() <= floor) & (weight.abs() > AMPLIFIED * acting)
    if not _count(layout, suspect):
        return suspect, 0
    noise = engine.rounding()
    sizes = [(sharding.full(n.square().sum()) / n.numel()).sqrt() for n in noise]
    rounding = layout.flatten([size.expand(n.shape) for size, n in zip(sizes, noise)])
    lost = suspect & (g.abs() <= NOISE * rounding)
    return lost, _count(layout, lost & ((g != 0) | (layout.flatten(noise) != 0)))


def _count(layout: Layout, mask: Tensor) -> int:
    ones = mask.to(layout.dtype)
    return round(float(layout.dot(ones, ones)))
