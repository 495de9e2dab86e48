"""The displacement's Jacobian as an operator on flat vectors, in one of three forms.

held: w^1/2 H w^1/2 + w c + s at the preconditioner held (symmetric; `rules`). full: diag(phi'(g)) H + decay for a
coordinate-wise rule (`coordinatewise`). black box: finite differences of the optimizer's own step in the weights,
gradient included (`blackbox`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.engines import Engine
from topoopt.curvature.rates import Moment
from topoopt.curvature.rules import spec_of

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """Where each parameter, or this rank's part of it, lies in a flat vector."""

    parameters: list[Tensor]
    owners: list[dict] = field(repr=False)
    """The parameter group of each."""

    def flatten(self, tensors: Sequence[Tensor | float]) -> Tensor:
        """One flat vector, in the precision of the products: at least float32."""
        parts = []
        for p, t in zip(self.parameters, tensors):
            full = t if isinstance(t, Tensor) else torch.full_like(p, t, dtype=self.dtype)
            parts.append(sharding.part(full.detach().to(self.dtype).expand(p.shape), p).reshape(-1))
        return torch.cat([part.to(parts[0].device) for part in parts])

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector, in each parameter's shape, type and place."""
        own = [sharding.part(p.detach(), p) for p in self.parameters]
        pieces = flat.split([p.numel() for p in own])
        parts = [piece.view(p.shape).to(p.device, p.dtype) for piece, p in zip(pieces, own)]
        return [sharding.whole(piece, p) for piece, p in zip(parts, self.parameters)]

    @cached_property
    def dot(self) -> sharding.Dot:
        """The inner product of flat vectors, over all ranks' parts."""
        return sharding.dot_over(self.parameters)

    @property
    def size(self) -> int:
        """Number of weights, all ranks' parts counted."""
        return sum(p.numel() for p in self.parameters)

    @property
    def dtype(self) -> torch.dtype:
        """float64 where all parameters are, else float32."""
        return torch.float64 if all(p.dtype is torch.float64 for p in self.parameters) else torch.float32


def layout_of(optimizer: Optimizer) -> Layout:
    """The parameters that can move: those that ask for a gradient, each once."""
    parameters, owners, seen = [], [], set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad and id(p) not in seen and p.numel():
                seen.add(id(p))
                parameters.append(p)
                owners.append(group)
    return Layout(parameters, owners)


@torch.no_grad()
def rates(
    optimizer: Optimizer, layout: Layout, gradient: Sequence[Tensor | None], *, upcoming: bool
) -> tuple[Tensor, Tensor]:
    """Flat w, and flat w c + s, of a recognised rule. Parameters without a gradient do not move: 0."""
    spec = spec_of(optimizer)
    assert spec is not None
    weights: list[Tensor | float] = []
    shifts: list[Tensor | float] = []
    for p, group, grad in zip(layout.parameters, layout.owners, gradient):
        if grad is None:
            weights.append(0.0)
            shifts.append(0.0)
            continue
        dense = -grad if group.get("maximize") else grad
        coupled = spec.coupled(group)
        dense = dense.add(p, alpha=coupled) if coupled else dense
        moment = Moment.of(p, optimizer.state.get(p, {}), group, dense, upcoming)
        rate = spec.rate(moment)
        weights.append(rate)
        shifts.append(rate * coupled + spec.decoupled(moment))
    return layout.flatten(weights), layout.flatten(shifts)


def signs(layout: Layout) -> Tensor | float:
    """-1 where the loss is maximised: one number if all groups agree, else a flat vector, and no symmetric operator."""
    each = [-1.0 if group.get("maximize") else 1.0 for group in layout.owners]
    return each[0] if len(set(each)) == 1 else layout.flatten(each)


def symmetric(engine: Engine, layout: Layout, weight: Tensor, shift: Tensor, sign: Tensor | float = 1.0) -> Product:
    """V -> (+-w^1/2 H w^1/2 + shift) v, whose spectrum is that of +-w H + shift; `sign` as in `signs`, w >= 0."""
    root = weight.sqrt()
    signed = sign * root

    def product(v: Tensor) -> Tensor:
        h = layout.flatten(engine.product(layout.unflatten(root * v)))
        return h.mul_(signed).addcmul_(shift, v)

    return product


def restricted(product: Product, mask: Tensor | None) -> Product:
    """The operator seen by a block of coordinates alone."""
    if mask is None:
        return product
    return lambda v: mask * product(mask * v)
