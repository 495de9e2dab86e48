"""Weights whose gradient is rounding, which a rule that divides by the gradient's own size makes the fastest of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topoopt.curvature.jacobian import AMPLIFIED, NOISE, SUSPECT
from topoopt.curvature.lean.pieces import flat, total

if TYPE_CHECKING:
    from topoopt.curvature.lean.operator import Operator


@dataclass(frozen=True)
class Rounding:
    """What tells a gradient that is rounding. Divided by its own mean square, as Adam does, it has the largest rate of all.

    A weight whose gradient is exactly 0 and that has not moved yet (a row of an embedding, a factor beside one that starts at
    0) has a rate of lr / eps that no step of it has used: it is left out with them.
    """

    gradients: Tensor
    """(parameters,): gradients up to here may be rounding."""
    rate: Tensor
    """Rates above this are amplified."""

    @property
    def count(self) -> int:
        """How many parameters it knows of."""
        return len(self.gradients)

    def drowns(self, parameter: int, gradient: Tensor, rate: Tensor) -> Tensor:
        """Which entries of a piece of a parameter are left out."""
        return (gradient.abs() <= self.gradients[parameter].to(gradient)) & (rate > self.rate.to(rate))


@torch.no_grad()
def rounding_of(operator: Operator) -> tuple[Rounding | None, int]:
    """What finite differences cannot see of a step (`jacobian.drowned` says why).

    Returns:
        The rounding, None where the rule has one rate for all, and how many weights are left out by it that have a gradient. At
        most two host reads, and one replay where gradients are suspected.
    """
    amplified = [k for k in range(len(operator.pieces)) if isinstance(operator.rates(k)[0], Tensor)]
    if not amplified:
        return None, 0
    energies, acts = [], []
    for k in range(len(operator.pieces)):
        grad = operator.grad(k)
        if grad is not None:
            square = grad.square()
            energies.append(square.sum())
            acts.append((square * operator.rates(k)[0]).sum())
    energy, size = total(energies), sum(p.numel() for p in operator.parameters)
    floor = SUSPECT * torch.finfo(torch.float32).eps * (energy / size).sqrt()
    found = Rounding(floor.expand(len(operator.parameters)), AMPLIFIED * total(acts) / energy)
    if not _drowned(found, operator, amplified):
        return Rounding(torch.zeros_like(found.gradients), found.rate), 0
    found = Rounding(torch.minimum(floor, NOISE * _size_of_rounding(operator).to(floor)), found.rate)
    return found, _drowned(found, operator, amplified)


def _drowned(rounding: Rounding, operator: Operator, pieces: list[int]) -> int:
    """How many weights that have a gradient are left out: one host read."""
    counts = []
    for k in pieces:
        rate, g = operator.rates(k)[0], operator.grad(k)
        assert isinstance(rate, Tensor)
        assert g is not None
        counts.append((rounding.drowns(operator.pieces[k].parameter, g, rate) & (g != 0)).sum())
    return int(total(counts))


def _size_of_rounding(operator: Operator) -> Tensor:
    """How each gradient changes when every weight goes to one of its next numbers: by rounding, and hardly by H."""
    eps = torch.finfo(operator.dtype).eps
    ahead = operator.gradient([flat(p) * (1 + eps) for p in operator.parameters])
    for k, piece in enumerate(operator.pieces):
        grad = operator.grad(k)
        if grad is not None:
            piece.of(ahead[piece.parameter]).sub_(grad, alpha=1 / operator.factor)
    return torch.stack([h.square_().mean().sqrt() for h in ahead])
