"""The form in which a step's Jacobian is taken, and the operator that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature import operator as jacobian
from topoopt.curvature.behaviour import Behaviour, behaviour
from topoopt.curvature.blackbox import BlackBox
from topoopt.curvature.coordinatewise import CoordinateWise
from topoopt.curvature.engines import Engine, FiniteDifferences, ThroughGrad
from topoopt.curvature.rounding import drowned
from topoopt.curvature.rules import spec_of
from topoopt.errors import ConfigError, NotDefinedError

FORMS = ("auto", "held", "full", "black box")
SIGNS = "{} moves by signs: such a displacement has no Lipschitz constant, so r is not defined"
FULL = "the full derivative of the coordinate-wise rule, not the preconditioner held"
BLACK_BOX = (
    "black box: finite differences of the optimizer's own step, tried in float64 where it allows that and without its casts "
    "to 16 bits; spectral radius by Arnoldi"
)
KINKS = "products by finite differences, which see the kinks of ReLU networks that autograd does not"
DROWNED = "{} weights are left out of the finite differences: their gradients are rounding that the rule would amplify"


def form_of(
    optimizer: Optimizer, layout: jacobian.Layout, asked: str, gradient: Callable[[], Sequence[Tensor | None]]
) -> str:
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
    layout: jacobian.Layout,
    gradient: Sequence[Tensor | None],
    *,
    upcoming: bool,
) -> tuple[jacobian.Product, bool, list[str]]:
    """The operator, whether it is symmetric, and what is to be said of it."""
    if form == "held":
        sign = jacobian.signs(layout)
        weight, shift = jacobian.rates(optimizer, layout, gradient, upcoming=upcoming)
        weight, said = _without_rounding(engine, layout, gradient, weight)
        return jacobian.symmetric(engine, layout, weight, shift, sign), isinstance(sign, float), said
    if form == "full":
        product = CoordinateWise(engine, layout, optimizer, gradient)
        product.weight, said = _without_rounding(engine, layout, gradient, product.weight)
        return product, product.is_descent, [FULL, *said]
    assert isinstance(engine, FiniteDifferences)
    return BlackBox(engine, layout, optimizer), False, [BLACK_BOX]


def _without_rounding(
    engine: Engine, layout: jacobian.Layout, gradient: Sequence[Tensor | None], weight: Tensor
) -> tuple[Tensor, list[str]]:
    """The rates without those of weights that finite differences cannot see, and what is to be said of them."""
    if not isinstance(engine, FiniteDifferences):
        return weight, []
    lost, count = drowned(engine, layout, gradient, weight)
    return weight.masked_fill(lost, 0.0), [KINKS, *([DROWNED.format(count)] if count else [])]


def engine_for(asked: str, layout: jacobian.Layout, form: str) -> str:
    """The engine to open: shards have no graph to differentiate twice, and a black box is moved in the weights."""
    if any(sharding.is_sharded(p) for p in layout.parameters):
        if asked not in ("auto", ThroughGrad.name):
            raise ConfigError(f"engine={asked!r} does not see sharded weights: give auto, or {ThroughGrad.name!r}")
        return ThroughGrad.name
    if form == "black box" and asked != ThroughGrad.name:
        return FiniteDifferences.name
    return asked


def own_gradient(layout: jacobian.Layout, grads: str) -> list[Tensor | None] | None:
    """The gradient in `.grad`, or None where there is none, or another one was asked for."""
    own = [p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad for p in layout.parameters]
    return own if grads == "auto" and any(grad is not None for grad in own) else None
