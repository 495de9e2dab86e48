"""The displacement's Jacobian as an operator on flat vectors, in one of three forms.

held: w^1/2 H w^1/2 + w c + s at the preconditioner held (symmetric; `rules`). full: diag(phi'(g)) H + decay for a
coordinate-wise rule. black box: finite differences of the optimizer's own step in the weights, gradient included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.hessian import STEP, Engine, FiniteDifferences, ThroughGrad
from topoopt.curvature.passage import Passage
from topoopt.curvature.rates import Moment
from topoopt.curvature.rules import spec_of
from topoopt.curvature.space import Layout
from topoopt.curvature.trial import Behaviour, behaviour, displacement
from topoopt.device import brought_over
from topoopt.errors import ConfigError, NotDefinedError

Product = Callable[[Tensor], Tensor]
FORMS = ("auto", "held", "full", "black box")
SIGNS = "{} moves by signs: such a displacement has no Lipschitz constant, so r is not defined"
FULL = "the full derivative of the coordinate-wise rule, not the preconditioner held"
BLACK_BOX = (
    "black box: finite differences of the optimizer's own step, tried in float64 where it allows that and without its casts "
    "to 16 bits; spectral radius by Arnoldi"
)
KINKS = "products by finite differences, which see the kinks of ReLU networks that autograd does not"
DROWNED = "{} weights are left out of the finite differences: their gradients are rounding that the rule would amplify"
ROUNDING = 1e-6
"""A derivative below 0 by less than this, relative to the largest, is 0."""
SUSPECT = 1000
"""Gradients of less than so many units of rounding, beside the root mean square of all, are looked at."""
AMPLIFIED = 100
"""So many times the rate that acts on the gradient on average."""
NOISE = 10
"""Gradients of less than so many times their tensor's rounding are rounding."""


@torch.no_grad()
def rates(
    optimizer: Optimizer, layout: Layout, gradient: Sequence[Tensor | None], *, upcoming: bool
) -> tuple[Tensor, Tensor]:
    """Flat w, and flat w c + s, of a recognised rule. Parameters without a gradient do not move: 0."""
    spec = spec_of(optimizer)
    assert spec is not None
    weights: list[Tensor | float] = []
    shifts: list[Tensor | float] = []
    for p, (state, group), grad in zip(layout.parameters, layout.settings(optimizer), gradient):
        if grad is None:
            weights.append(0.0)
            shifts.append(0.0)
            continue
        dense = -grad if group.get("maximize") else grad
        coupled = spec.coupled(group)
        dense = dense.add(p, alpha=coupled) if coupled else dense
        moment = Moment.of(p, state, group, dense, upcoming)
        rate = spec.rate(moment)
        weights.append(rate)
        shifts.append(rate * coupled + spec.decoupled(moment))
    return layout.flatten(weights), layout.flatten(shifts)


def signs(layout: Layout) -> Tensor | float:
    """-1 where the loss is maximised: one number if all groups agree, else a flat vector, and no symmetric operator."""
    each = [-1.0 if group.get("maximize") else 1.0 for group in layout.owners]
    return each[0] if len(set(each)) == 1 else layout.flatten(each)


def symmetric(
    engine: Engine, layout: Layout, weight: Tensor, shift: Tensor, sign: Tensor | float, passage: Passage
) -> Product:
    """V -> (+-w^1/2 H w^1/2 + shift) v, whose spectrum is that of +-w H + shift; `sign` as in `signs`, w >= 0.

    What stands between backward and step enters w as a factor, and H by a projection on both sides: exact where w is one
    number (P H P has the spectrum of P H), symmetrised elsewhere.
    """
    root = passage.scaled(weight).sqrt()
    signed = sign * root

    def product(v: Tensor) -> Tensor:
        along = passage.projected(root * v)
        h = passage.projected(layout.flatten(engine.product(layout.unflatten(along))))
        return h.mul_(signed).addcmul_(shift, v)

    product.root = root  # type: ignore[attr-defined]  # of a start that leans to the gradient
    return product


def restricted(product: Product, mask: Tensor | None) -> Product:
    """The operator seen by a block of coordinates alone."""
    if mask is None:
        return product
    return lambda v: mask * product(mask * v)


class CoordinateWise:
    """V -> -dD/dx v = w H v + s v for D_i = phi_i(g_i, x_i): w = -dphi/dg and s = -dphi/dx, at this gradient.

    Both are differences of the optimizer's own step, one extra step of a copy each; H v is the engine's. A rule that goes
    down every gradient, the faster the larger it is, has w >= 0 and the symmetric form w^1/2 H w^1/2 + s.
    """

    def __init__(
        self, engine: Engine, layout: Layout, optimizer: Optimizer, gradient: Sequence[Tensor | None], passage: Passage
    ) -> None:
        self._engine, self._layout, self._optimizer, self._gradient = engine, layout, optimizer, gradient
        self._passage = passage
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
        along = self._passage.projected(v)
        return self._passage.projected(self._layout.flatten(self._engine.product(self._layout.unflatten(along))))

    def _derivatives(self, scale: float) -> tuple[Tensor, Tensor]:
        layout = self._layout
        base = self._move(self._gradient)
        flat = layout.flatten([0.0 if g is None else g for g in self._gradient])
        step = scale * _small(flat)
        ahead = [None if g is None else a for a, g in zip(layout.unflatten(flat + step), self._gradient)]
        weight = self._passage.scaled((base - self._move(ahead)) / step)
        step = scale * _small(layout.flatten(layout.parameters))
        point = [p.detach() + d for p, d in zip(layout.parameters, layout.unflatten(step))]
        shift = (base - self._move(self._gradient, point)) / step
        nothing = (weight < 0) & (weight > -ROUNDING * weight.abs().max())
        return weight.masked_fill(nothing, 0.0), shift

    def _move(self, gradient: Sequence[Tensor | None], point: Sequence[Tensor] | None = None) -> Tensor:
        return self._layout.flatten(displacement(self._optimizer, self._layout.parameters, gradient, at=point))


def _small(values: Tensor) -> Tensor:
    """A step for differences, each coordinate's own."""
    return (1e-3 if values.dtype is torch.float32 else 1e-6) * (values.abs() + values.abs().mean() + 1e-12)


class BlackBox:
    """V -> -[D(x + h v) - D(x)] / h, with D the displacement of the optimizer's own next step."""

    def __init__(self, engine: FiniteDifferences, layout: Layout, optimizer: Optimizer, passage: Passage) -> None:
        self._engine, self._layout, self._optimizer, self._passage = engine, layout, optimizer, passage
        self._base = self._move(passage.apply(engine.step_gradient))

    def __call__(self, v: Tensor, scale: float = 1.0) -> Tensor:
        """The product, by a difference over `scale` times the usual step."""
        norm = math.sqrt(float(self._layout.dot(v, v)))
        if norm == 0:
            return torch.zeros_like(v)
        step = scale * STEP.get(self._layout.dtype, 1e-3) / norm
        self._engine.products += 1
        point = self._engine.moved(self._layout.unflatten(v), step)
        _, gradient = self._engine.at(point)
        ahead = self._move(self._passage.apply(self._engine.as_in_a_step(gradient)), point)
        return (self._base - ahead) / step

    def _move(self, gradient: Sequence[Tensor | None], point: Sequence[Tensor] | None = None) -> Tensor:
        return self._layout.flatten(displacement(self._optimizer, self._layout.parameters, gradient, at=point))

    def doubt(self, v: Tensor) -> float:
        """Share by which the product's length along v changes with twice the step: 0 for a smooth rule, 0.5 for rounding."""
        lengths = [math.sqrt(float(self._layout.dot(w, w))) for w in (self(v), self(v, 2.0))]
        return abs(lengths[0] - lengths[1]) / max(*lengths, 1e-300)


def form_of(optimizer: Optimizer, layout: Layout, asked: str, gradient: Callable[[], Sequence[Tensor | None]]) -> str:
    """The form to take: held for a recognised rule, the full derivative for a coordinate-wise one, else the black box."""
    name, known = type(optimizer).__name__, spec_of(optimizer) is not None
    if asked == "held" and not known:
        raise ConfigError(f'form="held" needs a recognised rule; {name} is none: use "auto"')
    if known and asked != "full":
        return "held" if asked == "auto" else asked
    seen = behaviour(optimizer, layout.parameters, gradient())
    if seen is Behaviour.SIGNS:
        raise NotDefinedError(SIGNS.format(f"{name}, tried out,"))
    if asked == "full" and seen is Behaviour.ANY:
        raise ConfigError(f'form="full" needs a coordinate-wise rule; {name}, tried out, is none: use "auto"')
    coordinate_wise = seen is Behaviour.COORDINATE_WISE
    return asked if asked != "auto" else "full" if coordinate_wise else "black box"


def operator_of(
    form: str,
    optimizer: Optimizer,
    engine: Engine,
    layout: Layout,
    gradient: Sequence[Tensor | None],
    *,
    upcoming: bool,
    passage: Passage,
) -> tuple[Product, bool, list[str]]:
    """The operator, whether it is symmetric, and what is to be said of it."""
    if form == "held":
        sign = signs(layout)
        weight, shift = rates(optimizer, layout, gradient, upcoming=upcoming)
        weight, said = _without_rounding(engine, layout, gradient, weight)
        return symmetric(engine, layout, weight, shift, sign, passage), isinstance(sign, float), said
    if form == "full":
        product = CoordinateWise(engine, layout, optimizer, gradient, passage)
        product.weight, said = _without_rounding(engine, layout, gradient, product.weight)
        return product, product.is_descent, [FULL, *said]
    assert isinstance(engine, FiniteDifferences)
    return BlackBox(engine, layout, optimizer, passage), False, [BLACK_BOX]


def _without_rounding(
    engine: Engine, layout: Layout, gradient: Sequence[Tensor | None], weight: Tensor
) -> tuple[Tensor, list[str]]:
    """The rates without those of weights that finite differences cannot see, and what is to be said of them."""
    if not isinstance(engine, FiniteDifferences):
        return weight, []
    lost, count = drowned(engine, layout, gradient, weight)
    engine.lost = _by_parameter(layout, lost) if count else None
    return weight.masked_fill(lost, 0.0), [*([DROWNED.format(count if count > 0 else "some")] if count else [])]


def _by_parameter(layout: Layout, mask: Tensor) -> dict[int, Tensor]:
    """Places that a flat mask marks in each parameter, or this rank's part of it: two host reads."""
    sizes = [sharding.part(p.detach(), p).numel() * (2 if p.is_complex() else 1) for p in layout.parameters]
    ends = torch.tensor(sizes, device="cpu").cumsum(0)
    places = mask.nonzero().flatten()
    cuts = torch.searchsorted(places, ends.to(places.device, non_blocking=True)).tolist()
    found = zip([0, *cuts], cuts, [0, *ends.tolist()])
    return {i: places[a:b] - start for i, (a, b, start) in enumerate(found) if b > a}


def engine_for(asked: str, layout: Layout, form: str) -> str:
    """The engine to open: shards have no graph to differentiate twice, and a black box is moved in the weights."""
    if any(sharding.is_sharded(p) for p in layout.parameters):
        if asked not in ("auto", ThroughGrad.name):
            raise ConfigError(f"engine={asked!r} does not see sharded weights: give auto, or {ThroughGrad.name!r}")
        return ThroughGrad.name
    if form == "black box" and asked != ThroughGrad.name:
        return FiniteDifferences.name
    return asked


def own_gradient(layout: Layout, grads: str) -> list[Tensor | None] | None:
    """The gradient in `.grad`, or None where there is none, or another one was asked for."""
    own = [p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad for p in layout.parameters]
    return own if grads == "auto" and any(grad is not None for grad in own) else None


def drowned(
    engine: FiniteDifferences, layout: Layout, gradient: Sequence[Tensor | None], weight: Tensor
) -> tuple[Tensor, int]:
    """Which entries to leave out, as a flat bool mask, and how many of them are not 0 anyway (-1: not counted).

    A bias before BatchNorm, or a key's bias in attention, has no gradient; what is computed is rounding. Divided by its root
    mean square, as Adam does, it gets the largest rate of all, and a finite difference of it reads nothing else. Rounding is
    measured where it may matter, not guessed from the size: true gradients can be as small. One more evaluation of the
    gradient, with every weight moved to one of its next numbers, tells it, tensor by tensor; the engine keeps what it told.
    """
    g = layout.flatten([0.0 if grad is None else grad for grad in gradient])
    energy = layout.dot(g, g)
    acting = layout.dot(g * weight, g) / energy  # NaN without a gradient: nothing is suspect
    floor = SUSPECT * torch.finfo(torch.float32).eps * (energy / layout.size).sqrt()
    suspect = (g.abs() <= floor) & (weight.abs() > AMPLIFIED * acting)
    measured = engine.known_rounding is None or len(engine.known_rounding) != len(layout.parameters)
    if measured:
        some, engine.known_loss = brought_over([_how_many(layout, suspect), engine.loss])
        if not some:
            return suspect, 0
        noise = engine.rounding()
        engine.known_rounding = torch.stack([(sharding.full(n.square().sum()) / n.numel()).sqrt().to(g) for n in noise])
    assert engine.known_rounding is not None
    sizes = engine.known_rounding.to(g)
    rounding = layout.flatten([sizes[i].to(p.device).expand(p.shape) for i, p in enumerate(layout.parameters)])
    lost = suspect & (g.abs() <= NOISE * rounding)
    return lost, round(float(_how_many(layout, lost & (g != 0)))) if measured else -1


def _how_many(layout: Layout, mask: Tensor) -> Tensor:
    ones = mask.to(layout.dtype)
    return layout.dot(ones, ones)
