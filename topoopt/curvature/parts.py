"""A reading in little memory: the step's operator on directions held parameter by parameter, the basis rounded to 8 bits.

The operator is that of `jacobian.symmetric`, A = +-w^1/2 P H P w^1/2 + shift, and r is read off a model of it as `krylov` does.
What an estimate holds in copies of the weights is what it costs in memory, and on a large model the passes over them cost as
much as a product. At the height of a replay there are here, beside what the user's own step holds, the shifted weights, half of
the weights for the rates of a rule that has one for each, and 0.28 of them for each direction that was tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt.curvature.hessian import STEP, Reduce
from topoopt.curvature.jacobian import AMPLIFIED, NOISE, SUSPECT
from topoopt.curvature.krylov import BREAKDOWN, SEEN
from topoopt.curvature.passage import Passage
from topoopt.curvature.rates import Moment
from topoopt.curvature.remembering import Rounded
from topoopt.curvature.rules import spec_of
from topoopt.curvature.shadow import Shadow
from topoopt.curvature.space import Layout
from topoopt.device import normal, wide

Read = Callable[[Tensor], list[float]]
Masks = dict[int, Tensor]
"""Places in some of the parameters: bool, in each parameter's shape."""


def at_once(numbers: Tensor) -> list[float]:
    """One host read."""
    return numbers.tolist()


LEAN = 0.4
"""Part that the step's own gradient has in the start of a warm reading: batches differ more than weights move."""
SHY = 1e-3
"""Share of random directions in the start of a cold one."""
SMALL = 1 << 20
"""Weights up to which rates are kept as they are; of more in 16 bits, the same on both sides of the Hessian."""


@dataclass(frozen=True)
class Ends:
    """Both ends of the spectrum as far as some products show them, and what the next reading starts from."""

    r: float
    low: float
    high: float
    direction: Rounded
    rise: float
    """Share of r that came with the last product: while this is much, r reads low by about as much."""


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
        self.parameters, self._dtype = layout.parameters, layout.dtype
        self._settings = list(layout.settings(optimizer))
        self._factor, self._clipped = passage.uniform, passage.clipped or passage.direction is not None
        self._sign = -1.0 if layout.owners[0].get("maximize") else 1.0
        self.rounding: Rounding | None = None
        self.block: Masks | None = None
        """The weights of a block; None for all."""
        self._kept: dict[int, tuple[Tensor | float, Tensor | float]] = {}
        self._narrow = layout.size > SMALL
        self.products = 0

    @property
    def count(self) -> int:
        """How many parameters there are."""
        return len(self.parameters)

    def rate(self, i: int) -> tuple[Tensor | float, Tensor | float]:
        """The rate w that acts on one parameter's gradient, and its shift; 0 without a gradient."""
        p, (state, group) = self.parameters[i], self._settings[i]
        if p.grad is None:
            return 0.0, 0.0
        grad = -p.grad if group.get("maximize") else p.grad
        coupled = self._spec.coupled(group)
        moment = Moment.of(p, state, group, grad.add(p, alpha=coupled) if coupled else grad, True)
        rate = self._spec.rate(moment)
        return rate, rate * coupled + self._spec.decoupled(moment)

    def _factors(self, i: int) -> tuple[Tensor | float, Tensor | float]:
        """w^1/2, 0 where a gradient is rounding, and the shift."""
        if i in self._kept:
            return self._kept[i]
        rate, shift = self.rate(i)
        if isinstance(rate, Tensor):
            drowned = None if self.rounding is None else self.rounding.drowns(i, self._grad(i), rate)
            root: Tensor | float = rate.mul(self._factor).sqrt_()
            if drowned is not None:
                root.masked_fill_(drowned, 0.0)
            root = root.bfloat16() if self._narrow else root
        else:
            root = math.sqrt(rate * self._factor)
        if isinstance(shift, Tensor) and self._narrow:
            shift = shift.bfloat16()
        self._kept[i] = root, shift
        return root, shift

    def scaled(self, i: int, part: Tensor) -> Tensor:
        """w^1/2 times a part, in place; 0 where it is left out."""
        return self._within(i, part.mul_(self._factors(i)[0]))

    def pulled(self, i: int) -> Tensor:
        """One part of the step's gradient, in the operator's coordinates."""
        grad = self.parameters[i].grad
        if grad is None:
            return torch.zeros_like(self.parameters[i], dtype=self._dtype)
        return self.scaled(i, grad.detach().to(self._dtype, copy=True))

    def __call__(self, direction: Rounded) -> tuple[list[Tensor], list[Tensor]]:
        """A times a direction, and the direction, part by part: tensors of their own."""
        self.products += 1
        ahead, step = self._gradient_along(direction)
        for i, h in enumerate(ahead):
            grad = self.parameters[i].grad
            if grad is not None:
                h.sub_(grad, alpha=1 / self._factor)
        self._project(ahead)
        along = [self._within(i, direction.part(i)) for i in range(self.count)]
        for i, (h, v) in enumerate(zip(ahead, along)):
            root, shift = self._factors(i)
            self._within(i, h.mul_(root).mul_((self._sign / step).to(h)))
            if isinstance(shift, Tensor):
                h.addcmul_(shift.to(h), v)
            elif shift:
                h.add_(v, alpha=shift)
        return ahead, along

    def _within(self, i: int, part: Tensor) -> Tensor:
        return part if self.block is None else part.mul_(self.block[i]) if i in self.block else part.zero_()

    def _gradient_along(self, direction: Rounded) -> tuple[list[Tensor], Tensor]:
        """The gradient at the weights shifted along w^1/2 of a direction, and the size of the shift."""
        point = [self.scaled(i, direction.part(i)) for i in range(self.count)]
        self._project(point)
        step = STEP.get(self._dtype, 1e-3) / torch.nn.utils.get_total_norm(point).clamp_min(1e-30)
        for p, vector in zip(self.parameters, point):
            vector.mul_(step.to(vector)).add_(p)
        return self._gradient(point), step

    def _gradient(self, point: list[Tensor]) -> list[Tensor]:
        _, found = self._shadow.gradient(point)
        dense = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found)]
        if self._reduce is not None:
            self._reduce(dense)
        return dense

    def _project(self, vectors: list[Tensor]) -> None:
        """Take out the part along the gradient, where it is clipped by the global norm."""
        if not self._clipped:
            return
        pairs = [(v, p.grad) for v, p in zip(vectors, self.parameters) if p.grad is not None]
        inner = _total([_dot(v, g) for v, g in pairs])
        square = torch.nn.utils.get_total_norm([g for _, g in pairs]).square().clamp_min(1e-38)
        for v, g in pairs:
            v.addcmul_(g, (inner / square).to(v), value=-1)

    # -- weights whose gradient is rounding --------------------------------------------------------------------------

    @torch.no_grad()
    def leave_out_rounding(self, known: Rounding | None) -> tuple[Rounding | None, int]:
        """Leave out what finite differences cannot see (`jacobian.drowned` says why), by the rounding that is `known`, or found.

        Returns:
            The rounding, and how many weights are left out that have a gradient. At most two host reads; none where the rule
            has one rate for all, or where the rounding is known.
        """
        if known is not None and known.count == self.count:
            self.rounding = known
            return known, 0
        acting = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not any(isinstance(self.rate(i)[0], Tensor) for i in acting):
            return None, 0
        energy = _total([self._grad(i).square().sum() for i in acting])
        act = _total([(self._grad(i).square() * self.rate(i)[0]).sum() for i in acting]) / energy
        size = sum(p.numel() for p in self.parameters)
        floor = SUSPECT * torch.finfo(torch.float32).eps * (energy / size).sqrt()
        found = Rounding(floor.expand(self.count), AMPLIFIED * act)
        if self._drowned(found, acting):
            found = Rounding(torch.minimum(floor, NOISE * self._rounding().to(floor)), found.rate)
            count = self._drowned(found, acting)
        else:
            found, count = Rounding(torch.zeros_like(found.gradients), found.rate), 0
        self.rounding = found
        return found, count

    def _drowned(self, rounding: Rounding, acting: Sequence[int]) -> int:
        """How many weights that have a gradient are left out: one host read."""
        counts = []
        for i in acting:
            rate, g = self.rate(i)[0], self._grad(i)
            if isinstance(rate, Tensor):
                counts.append((rounding.drowns(i, g, rate) & (g != 0)).sum())
        return int(_total(counts))

    def _grad(self, i: int) -> Tensor:
        grad = self.parameters[i].grad
        assert grad is not None
        return grad

    def _rounding(self) -> Tensor:
        """How each gradient changes when every weight goes to one of its next numbers: by rounding, and hardly by H."""
        eps = torch.finfo(self._dtype).eps
        ahead = self._gradient([p.detach() * (1 + eps) for p in self.parameters])
        for h, p in zip(ahead, self.parameters):
            if p.grad is not None:
                h.sub_(p.grad, alpha=1 / self._factor)
        return torch.stack([h.square().mean().sqrt() for h in ahead])


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

    def drowns(self, i: int, gradient: Tensor, rate: Tensor) -> Tensor:
        """Which entries of a parameter are left out."""
        return (gradient.abs() <= self.gradients[i].to(gradient)) & (rate > self.rate.to(rate))


def _total(numbers: Sequence[Tensor]) -> Tensor:
    """The sum of numbers, wherever they are."""
    return torch.stack([one.to(numbers[0].device) for one in numbers]).sum()


def cold_start(operator: Operator, seed: int) -> Rounded:
    """The step's gradient, in the operator's coordinates, with a little noise, so that no direction is shut out."""
    parts = [operator.pulled(i) for i in range(operator.count)]
    length = torch.nn.utils.get_total_norm(parts).clamp_min(1e-30)
    share = SHY / math.sqrt(sum(part.numel() for part in parts))

    def part(i: int) -> Tensor:
        noise = operator._within(i, normal(parts[i].numel(), seed + i, parts[i].device).view(parts[i].shape))
        return parts[i].div_(length.to(parts[i])).add_(noise, alpha=share)

    return Rounded.of(operator.count, part)


def warm_start(operator: Operator, direction: Rounded, lean: float = LEAN) -> Rounded:
    """What was dominant on the last batch, leaning to what this one pulls at."""
    pulled = [operator.pulled(i) for i in range(operator.count)]
    length = torch.nn.utils.get_total_norm(pulled).clamp_min(1e-30)
    sign = torch.sign(_inner(pulled, direction)).to(length)

    def part(i: int) -> Tensor:
        kept = operator._within(i, direction.part(i)).mul_(1 - lean)
        return kept.add_(pulled[i].mul_((lean * sign / length).to(kept)))

    return Rounded.of(operator.count, part)


@torch.no_grad()
def estimate(operator: Operator, start: Rounded, products: int, read: Read = at_once) -> Ends:
    """Take a few products: Lanczos' recurrence, without reorthogonalisation, which so few do not need.

    Args:
        operator: the step's.
        start: the first direction.
        products: how many.
        read: brings the products' numbers over; what else is wanted from the device can come with them.

    All of it is queued; one host read, at the end.
    """
    basis, own, beyond, squares = [start], list[Tensor](), list[Tensor](), list[Tensor]()
    last: list[Tensor] = []
    for k in range(products):
        last, along = operator(basis[k])
        squares.append(_total([_dot(v, v) for v in along]).clamp_min(1e-30))
        if k:
            _subtract(last, basis[k - 1], beyond[k - 1] * (squares[k] / squares[k - 1]).sqrt())
        own.append(_total([_dot(h, v) for h, v in zip(last, along)]) / squares[k])
        for h, v in zip(last, along):
            h.addcmul_(v, own[k].to(h), value=-1)
        del along
        length = torch.nn.utils.get_total_norm(last).to(own[k])
        beyond.append(length / squares[k].sqrt())
        if k + 1 < products:
            exhausted = beyond[k] <= BREAKDOWN * torch.stack(own).abs().max()
            kept = torch.where(exhausted, torch.zeros_like(length), 1 / length)
            rest, last = last, []
            basis.append(Rounded.of(operator.count, lambda i, rest=rest, kept=kept: rest[i].mul_(kept.to(rest[i]))))
            del rest
    numbers = read(wide(torch.stack([*own, *beyond, *squares])))
    if not all(map(math.isfinite, numbers)):
        return Ends(math.nan, math.nan, math.nan, start, math.nan)
    found, lengths = numbers[: 2 * products], [math.sqrt(square) for square in numbers[2 * products :]]
    return _ends(basis, lengths, last, found[:products], found[products:])


def _ends(
    basis: list[Rounded], lengths: list[float], last: list[Tensor], own: list[float], beyond: list[float]
) -> Ends:
    low, high, values = _model(own, beyond)
    r = max(abs(low), abs(high))
    fewer = _model(own[:-1], beyond[:-1])[:2] if len(own) > 1 else (own[0], own[0])
    rise = 1 - max(map(abs, fewer)) / r if r > 0 else 0.0

    def dominant(i: int) -> Tensor:
        total = basis[0].part(i).mul_(values[0] / lengths[0])
        for value, length, direction in zip(values[1:], lengths[1:], basis[1:]):
            total.add_(direction.part(i), alpha=value / length)
        if len(values) > len(basis):
            total.add_(last[i], alpha=values[-1] / (beyond[-1] * lengths[-1]))
        return total

    return Ends(r, low, high, Rounded.of(basis[0].count, dominant) if r > 0 else basis[0], max(0.0, rise))


def _model(own: Sequence[float], beyond: Sequence[float]) -> tuple[float, float, list[float]]:
    """Both ends of the products' tridiagonal matrix, 0 where nothing was tried (see `krylov`), and its dominant vector."""
    ends = [k for k, b in enumerate(beyond) if b <= BREAKDOWN * max(map(abs, own[: k + 1]))]
    tried = ends[0] + 1 if ends else len(own)  # beyond it all is rounding
    size = tried if ends else tried + 1
    model = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    model[range(tried), range(tried)] = torch.tensor(own[:tried], dtype=torch.float64, device="cpu")
    for i in range(size - 1):
        model[i, i + 1] = model[i + 1, i] = beyond[i]
    values, vectors = torch.linalg.eigh(model)
    seen = values[vectors[:tried].square().sum(0) >= SEEN]
    ritz = torch.linalg.eigvalsh(model[:tried, :tried])
    norm = float(torch.linalg.matrix_norm(model[:, :tried], 2))
    low, high = (float(f(torch.cat([ritz, seen]))) for f in (torch.min, torch.max))
    low, high = (low, max(high, norm)) if high >= -low else (min(low, -norm), high)
    return low, high, vectors[:, values.abs().argmax()].tolist()


def _subtract(vectors: list[Tensor], direction: Rounded, share: Tensor) -> None:
    for i, v in enumerate(vectors):
        v.addcmul_(direction.part(i), share.to(v), value=-1)


def _inner(vectors: list[Tensor], direction: Rounded) -> Tensor:
    return _total([_dot(v, direction.part(i)) for i, v in enumerate(vectors)])


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.dot(one.reshape(-1), other.reshape(-1).to(one.dtype))
