"""The step's operator in little memory: products with directions that are held rounded, piece by piece.

The operator is that of `jacobian.symmetric`, A = +-w^1/2 P H P w^1/2 + shift. What an estimate holds in copies of the weights is
what it costs in memory, and on a large model the passes over them cost as much as a product. At the height of a replay there are
here, beside what the user's own step holds, the shifted weights, half of the weights for the rates of a rule that has one for
each, and 0.28 of them for each direction that was tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from topoopt.curvature.hessian import STEP, Reduce
from topoopt.curvature.lean.drowned import Rounding
from topoopt.curvature.lean.pieces import Piece, Rounded, cut, dot, flat, total
from topoopt.curvature.passage import Passage
from topoopt.curvature.rates import Moment
from topoopt.curvature.replaying.shadow import Shadow
from topoopt.curvature.rules import spec_of
from topoopt.curvature.space import Layout

Masks = dict[int, Tensor]
"""Places in some of the parameters: bool, in each parameter's shape."""
Rates = tuple[Tensor | float, Tensor | float]
"""The rate that acts on a gradient, and the shift."""
Vectors = list[Tensor]
"""A flat tensor for each parameter."""
SMALL = 1 << 20
"""Weights up to which rates are kept as they are; of more in 16 bits, the same on both sides of the Hessian."""


def possible(optimizer: Optimizer, passage: Passage, layout: Layout) -> bool:
    """Whether the operator is the symmetric one, of plain weights and a passage that is a factor and a projection."""
    signs = {bool(group.get("maximize")) for group in layout.owners}
    plain = all(
        p.dtype in (torch.float32, torch.float64) and not (p.grad is not None and p.grad.is_sparse)
        for p in layout.parameters
    )
    return (
        spec_of(optimizer) is not None
        and passage.uniform is not None
        and not passage.centred
        and len(signs) == 1
        and plain
    )


@dataclass(frozen=True)
class Factors:
    """What acts on a piece on its way through A: w^1/2, 0 where a gradient is rounding, and the shift."""

    root: Tensor | float
    shift: Tensor | float


class Operator:
    """Products with A on rounded directions, of all weights or of a block of them.

    Args:
        optimizer: a recognised rule; `.grad` holds the step's gradient.
        shadow: the taped step.
        layout: of the weights.
        passage: from backward's gradient to `.grad`: a factor, and a projection where the gradient is clipped.
        reduce: averages over ranks in place.
    """

    def __init__(
        self, optimizer: Optimizer, shadow: Shadow, layout: Layout, passage: Passage, reduce: Reduce | None
    ) -> None:
        assert passage.uniform is not None
        spec = spec_of(optimizer)
        assert spec is not None
        self._spec, self._shadow, self._reduce = spec, shadow, reduce
        self.parameters, self.dtype = layout.parameters, layout.dtype
        self.pieces = cut(self.parameters)
        self._settings = list(layout.settings(optimizer))
        self._grads = [None if p.grad is None else flat(p.grad) for p in self.parameters]
        self.factor, self._clipped = passage.uniform, passage.clipped or passage.direction is not None
        self._sign = -1.0 if layout.owners[0].get("maximize") else 1.0
        self._narrow = layout.size > SMALL
        self._kept: dict[int, Factors] = {}
        self._whole: tuple[int, Rates] | None = None
        """Of the last parameter whose rates are not made entry by entry."""
        self._rounding: Rounding | None = None
        self.block: Masks | None = None
        """The weights of a block; None for all."""
        self.products = 0

    # -- the rule's part -----------------------------------------------------------------------------------------------

    @property
    def rounding(self) -> Rounding | None:
        """What tells weights whose gradient is rounding, which are left out; None: none are."""
        return self._rounding

    @rounding.setter
    def rounding(self, rounding: Rounding | None) -> None:
        self._rounding = rounding
        self._kept.clear()

    def grad(self, k: int) -> Tensor | None:
        """A piece of the step's gradient."""
        grad = self._grads[self.pieces[k].parameter]
        return None if grad is None else self.pieces[k].of(grad)

    def rates(self, k: int) -> Rates:
        """The rate w that acts on the gradient of a piece, and its shift; 0 without a gradient."""
        piece = self.pieces[k]
        if self._grads[piece.parameter] is None:
            return 0.0, 0.0
        if self._spec.elementwise:
            return self._rates_of(piece.parameter, piece)
        if self._whole is None or self._whole[0] != piece.parameter:
            self._whole = piece.parameter, self._rates_of(piece.parameter)
        rate, shift = (piece.of(flat(f)) if isinstance(f, Tensor) and f.dim() else f for f in self._whole[1])
        return rate, shift

    def _rates_of(self, i: int, piece: Piece | None = None) -> Rates:
        """By the rule's formula: of a whole parameter, or of a piece of it where the formula goes entry by entry."""
        p, (state, group) = self.parameters[i], self._settings[i]
        grad = p.grad
        assert grad is not None
        if piece is not None:
            own = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape and k != "step"}
            state = {**state, **{key: piece.of(flat(value)) for key, value in own.items()}}
            p, grad = piece.of(flat(p)), piece.of(flat(grad))
        grad = -grad if group.get("maximize") else grad
        coupled = self._spec.coupled(group)
        moment = Moment.of(p, state, group, grad.add(p, alpha=coupled) if coupled else grad, True)
        rate = self._spec.rate(moment)
        return rate, rate * coupled + self._spec.decoupled(moment)

    def factors(self, k: int) -> Factors:
        """What acts on a piece; made once."""
        if k not in self._kept:
            rate, shift = self.rates(k)
            root: Tensor | float
            if isinstance(rate, Tensor):
                grad = self.grad(k)
                assert grad is not None
                root = rate.mul(self.factor).sqrt_()
                if self._rounding is not None:
                    root.masked_fill_(self._rounding.drowns(self.pieces[k].parameter, grad, rate), 0.0)
                root = root.bfloat16() if self._narrow else root
            else:
                root = math.sqrt(rate * self.factor)
            self._kept[k] = Factors(root, shift.bfloat16() if isinstance(shift, Tensor) and self._narrow else shift)
        return self._kept[k]

    def within(self, k: int, vector: Tensor) -> Tensor:
        """A piece of a vector, in place; 0 outside of the block."""
        if self.block is None:
            return vector
        mask = self.block.get(self.pieces[k].parameter)
        return vector.zero_() if mask is None else vector.mul_(self.pieces[k].of(mask.reshape(-1)))

    def pulled(self, k: int) -> Tensor:
        """A piece of the step's gradient in the operator's coordinates: a tensor of its own."""
        grad, piece = self.grad(k), self.pieces[k]
        if grad is None:
            p = self.parameters[piece.parameter]
            return torch.zeros(piece.stop - piece.start, dtype=self.dtype, device=p.device)
        return self.within(k, grad.to(self.dtype, copy=True).mul_(self.factors(k).root))

    # -- products ------------------------------------------------------------------------------------------------------

    def __call__(self, direction: Rounded, before: tuple[Rounded, Tensor] | None = None) -> tuple[Vectors, Tensor]:
        """A times a direction, less some times the one `before` it; and its inner product with the direction."""
        self.products += 1
        ahead, step = self._gradient_along(direction)
        for k, piece in enumerate(self.pieces):
            grad = self.grad(k)
            if grad is not None:
                piece.of(ahead[piece.parameter]).sub_(grad, alpha=1 / self.factor)
        self._project(ahead)
        inner = []
        for k, piece in enumerate(self.pieces):
            h, v = piece.of(ahead[piece.parameter]), self.within(k, direction.piece(k))
            by = self.factors(k)
            self.within(k, h.mul_(by.root).mul_((self._sign / step).to(h)))
            if isinstance(by.shift, Tensor):
                h.addcmul_(by.shift.to(h), v)
            elif by.shift:
                h.add_(v, alpha=by.shift)
            if before is not None:
                h.addcmul_(before[0].piece(k), before[1].to(h), value=-1)
            inner.append(dot(h, v))
        return ahead, total(inner)

    def _gradient_along(self, direction: Rounded) -> tuple[Vectors, Tensor]:
        """The gradient at the weights shifted along w^1/2 of a direction, and the size of the shift."""
        point = [torch.empty(p.numel(), dtype=p.dtype, device=p.device) for p in self.parameters]
        for k, piece in enumerate(self.pieces):
            v = self.within(k, direction.piece(k).mul_(self.factors(k).root))
            piece.of(point[piece.parameter]).copy_(v)
        self._project(point)
        step = STEP.get(self.dtype, 1e-3) / get_total_norm(point).clamp_min(1e-30)
        for vector, p in zip(point, self.parameters):
            vector.mul_(step.to(vector)).add_(flat(p))
        return self.gradient(point), step

    def gradient(self, point: Vectors) -> Vectors:
        """Backward's gradient at other weights, averaged over ranks."""
        _, found = self._shadow.gradient([_as(v, p) for v, p in zip(point, self.parameters)])
        dense = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found)]
        if self._reduce is not None:
            self._reduce(dense)
        return [flat(g.contiguous()) for g in dense]

    def _project(self, vectors: Vectors) -> None:
        """Take out the part along the gradient, where it is clipped by the global norm."""
        if not self._clipped:
            return
        pairs = [(v, g) for v, g in zip(vectors, self._grads) if g is not None]
        inner = total([dot(v, g) for v, g in pairs])
        square = get_total_norm([g for _, g in pairs]).square().clamp_min(1e-38)
        for v, g in pairs:
            v.addcmul_(g, (inner / square).to(v), value=-1)

    def without(self, vectors: Vectors, direction: Rounded, share: Tensor) -> Tensor:
        """Take a share of a direction from vectors, in place; the length of what is left."""
        for k, piece in enumerate(self.pieces):
            v = piece.of(vectors[piece.parameter])
            v.addcmul_(self.within(k, direction.piece(k)), share.to(v), value=-1)
        return get_total_norm(vectors)


def _as(vector: Tensor, parameter: Tensor) -> Tensor:
    """A flat vector in a parameter's shape and memory format, which its operations may round by."""
    shaped = vector.view(parameter.shape)
    return shaped if parameter.is_contiguous() else torch.empty_like(parameter).copy_(shaped)
