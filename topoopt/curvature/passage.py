"""What stands between `backward` and the step: how the gradient that the optimizer found comes from the one that backward made.

r is of the step that is taken, so the Jacobian of this passage is a part of it. It is told by comparing the two gradients:

* a multiple (unscaling, averaging over micro-batches): a factor;
* clipping by the global norm, D = -eta c g/|g|, whose Jacobian is -(eta c/|g|)(I - g^ g^T) H: a factor and a projection;
* multiples by tensor or entry (layer-wise clipping, masks), and clipping by value, which is 0 where it clips: factors;
* centralisation (each row's mean taken off): a projection;
* anything else is named, with its size: noise adds nothing to the Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from topoopt.curvature.space import Layout
from topoopt.device import brought_over, wide
from topoopt.errors import MeasurementError
from topoopt.sharding import Dot, is_sharded

SAME = 1e-5
"""Relative difference below which two gradients are the same: rounding of another order of sums."""
LIKE = 1e-3
"""Relative difference below which a kind of passage explains what was found."""
OTHER = 0.3
"""Relative difference above which the two are no gradients of one loss."""
LARGEST_COUNT = 4096
"""A multiple that is one over a whole number up to this, to seven digits, is an average and no clipping."""


@dataclass(frozen=True)
class Direction:
    """The direction of a gradient, laid out flat when it is first asked for."""

    layout: Layout
    gradient: Sequence[Tensor | None]

    @cached_property
    def flat(self) -> Tensor:
        """Of unit length."""
        flat = self.layout.flatten([0.0 if g is None else g for g in self.gradient])
        return flat / self.layout.dot(flat, flat).sqrt()


@dataclass(frozen=True)
class Passage:
    """The Jacobian of the passage, D = factor * P, on flat vectors."""

    factor: Tensor | float = 1.0
    direction: Direction | None = None
    """That of the gradient, which clipping by the global norm takes out."""
    centred: Layout | None = None
    """Set where each row's mean is taken off."""
    length: float | None = None
    """Norm to which the gradient is clipped."""
    notes: tuple[str, ...] = ()
    share: float = 1.0
    """Length of the gradient found over the length of the one that backward made."""
    rest: float = 0.0
    """Share of the gradient that no kind of passage explains."""

    @property
    def clipped(self) -> bool:
        """Whether the gradient is brought to a fixed length."""
        return self.length is not None

    @property
    def uniform(self) -> float | None:
        """The factor, where it is one number."""
        return self.factor if isinstance(self.factor, float) else None

    def scaled(self, weight: Tensor) -> Tensor:
        """A rate's weight of the gradient, times the factor."""
        return weight if self.uniform == 1.0 else weight * self.factor

    def projected(self, v: Tensor) -> Tensor:
        """P v, symmetric."""
        if self.direction is not None:
            unit = self.direction.flat
            v = torch.addcmul(v, unit, self.direction.layout.dot(unit, v), value=-1.0)
        if self.centred is not None:
            v = self.centred.flatten([_centre(t) for t in self.centred.unflatten(v)])
        return v

    def apply(self, gradient: Sequence[Tensor | None]) -> list[Tensor | None]:
        """What becomes of a gradient that backward makes."""
        if isinstance(self.factor, Tensor):
            raise MeasurementError("the gradient is changed entry by entry before the step of a rule that is not known")
        factor = self.factor
        if self.length is not None:
            square = sum(brought_over([wide(g.detach()).square().sum() for g in gradient if g is not None]))
            factor = min(1.0, self.length / math.sqrt(square)) if square > 0 else 1.0
        if factor == 1.0:
            return list(gradient)
        return [None if g is None else g * factor for g in gradient]


def by_lengths(raw: Tensor, found: Tensor, layout: Layout, gradient: Sequence[Tensor | None]) -> Passage | None:
    """The passage as far as the gradients' lengths tell it, tensor by tensor; None where they do not.

    Args:
        raw: (parameters,) norms as backward left them.
        found: (parameters,) norms as the optimizer finds them.
        layout: of the parameters.
        gradient: what the optimizer finds.
    """
    lengths = wide(torch.stack([raw, found])).cpu().double()
    before, after = (float(side.square().sum().sqrt()) for side in lengths)
    if not (before > 0 and after > 0 and math.isfinite(before) and math.isfinite(after)):
        return None
    counted = lengths[0] > 1e-6 * before
    ratios = lengths[1][counted] / lengths[0][counted]
    c = after / before
    if float((ratios / c - 1).abs().max()) > LIKE:
        return None
    return _uniform(c, after, layout, gradient)


def between(
    raw: Sequence[Tensor | None],
    found: Sequence[Tensor | None],
    layout: Layout,
    read: Callable[[list[Tensor]], list[float]] = brought_over,
) -> Passage:
    """Compare the gradient that backward made with the one that the optimizer finds; `read` brings its numbers over.

    Raises:
        MeasurementError: where they are not gradients of one loss.
    """
    before, after, apart, beside = (math.sqrt(max(x, 0.0)) for x in read(_squares(raw, found, layout)))
    if not (before > 0 and after > 0):
        return Passage(share=1.0 if before == 0 else after / before)
    if apart <= SAME * before:
        return Passage()
    c = after / before
    if beside <= LIKE * after:
        return _uniform(c, after, layout, found)
    made, seen = (layout.flatten([0.0 if g is None else g for g in side]) for side in (raw, found))
    return _by_entries(made, seen, before, after, layout)


def _squares(raw: Sequence[Tensor | None], found: Sequence[Tensor | None], layout: Layout) -> list[Tensor]:
    """Squared lengths of what was made, of what is found, of their difference, and of that once they are equally long.

    Parameter by parameter, where all of each is here: two gradients laid out flat would be four copies of the weights.
    """
    if any(is_sharded(p) or (g is not None and g.is_sparse) for p, g in zip(layout.parameters, found)):
        made, seen = (layout.flatten([0.0 if g is None else g for g in side]) for side in (raw, found))
        sides, dot = [(made, seen)], layout.dot
    else:
        pairs = zip(raw, found, layout.parameters)
        sides = [(_or_zero(a, p), _or_zero(b, p)) for a, b, p in pairs if a is not None or b is not None]

        def dot(one: Tensor, other: Tensor, /) -> Tensor:
            return (wide(one.abs()) * wide(other.abs())).sum()

    def total(of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        each = [dot(part, part) for part in (of(made, seen) for made, seen in sides)]
        return torch.stack([one.to(each[0].device) for one in each]).sum() if each else torch.zeros(())

    squares = [total(lambda made, _: made), total(lambda _, seen: seen), total(torch.sub)]
    ratio = (squares[1] / squares[0]).sqrt()
    return [*squares, total(lambda made, seen: torch.sub(made * ratio.to(made.device, seen.dtype), seen))]


def _or_zero(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.detach()


def _by_entries(made: Tensor, seen: Tensor, before: float, after: float, layout: Layout) -> Passage:
    dot, c = layout.dot, after / before
    ratio = torch.where(made != 0, seen / made, torch.ones_like(made))
    by_tensor = layout.flatten([_middle(t) for t in layout.unflatten(ratio)])
    if _apart(by_tensor * made, seen, dot) <= LIKE * after:
        return Passage(by_tensor, notes=("each tensor's gradient is scaled by itself before the step",), share=c)
    limit = seen.abs().max()
    clipped = (seen.abs() >= limit * (1 - 1e-6)) & (made.abs() > limit * (1 + 1e-6))
    masked = (seen == 0) & (made != 0)
    rest = torch.where(clipped | masked, torch.zeros_like(made), made - seen)
    if float(dot(rest, rest)) <= (LIKE * after) ** 2:
        kept = (~(clipped | masked)).to(made)
        what = f"{int(clipped.sum())} gradients are clipped by value" if bool(clipped.any()) else ""
        hidden = f"{int(masked.sum())} gradients are set to 0" if bool(masked.any()) else ""
        return Passage(kept, notes=tuple(f"{w} before the step" for w in (what, hidden) if w), share=c)
    if _apart(layout.flatten([_centre(t) for t in layout.unflatten(made)]), seen, dot) <= LIKE * after:
        return Passage(centred=layout, notes=("gradients are centralised before the step",), share=c)
    difference = _apart(made, seen, dot) / before
    if difference > OTHER and float(dot(made, seen)) < 0.5 * before * after:
        raise MeasurementError(
            f"replayed, the step gives another gradient than the one in .grad (they differ by {difference:.0%}): the model or "
            "the loss keeps state or draws noise where it cannot be followed, or .grad holds something else"
        )
    note = (
        f"something stands between backward and the step that is not recognised (it changes the gradient by {difference:.1%}); "
        "r is of the gradient that backward made"
    )
    return Passage(notes=(note,), share=c, rest=difference)


def _uniform(c: float, after: float, layout: Layout, gradient: Sequence[Tensor | None]) -> Passage:
    if abs(c - 1.0) <= SAME:
        return Passage()
    power = math.log2(c)
    count = round(1 / c) if c < 1 else 0
    if abs(power - round(power)) < 1e-6 or (1 <= count <= LARGEST_COUNT and abs(1 / c - count) < 1e-6 * count) or c > 1:
        return Passage(c, notes=(f"the gradient is multiplied by {c:.4g} before the step",), share=c)
    return Passage(
        c,
        Direction(layout, gradient),
        length=after,
        notes=(f"the gradient is clipped to {c:.4g} of its length (by the global norm)",),
        share=c,
    )


def _apart(a: Tensor, b: Tensor, dot: Dot) -> float:
    return math.sqrt(max(0.0, float(_square(a - b, dot))))


def _square(d: Tensor, dot: Dot) -> Tensor:
    return dot(d, d)


def _middle(ratio: Tensor) -> Tensor:
    return ratio.flatten().median().expand(ratio.shape)


def _centre(tensor: Tensor) -> Tensor:
    return tensor - tensor.mean(dim=tuple(range(1, tensor.ndim)), keepdim=True) if tensor.ndim > 1 else tensor
