"""Update rules: how a step's displacement depends on the gradient, at the optimizer's state held fixed.

Every recognised rule moves a weight by D = -w (g + c x) - s x, where g is the gradient, x the weight, w > 0 the rate after
preconditioning, c the coupled and s the decoupled weight decay. So dD/dx = -(w H + w c + s), whose spectrum is that of the
symmetric w^1/2 H w^1/2 + w c + s. The preconditioner is held at what it is *in* the step (Cohen et al. 2022); `upcoming`
says that the step has not been taken yet, so that its gradient still has to enter the averages.

Edges are where x' = x + D oscillates without decay on a quadratic: 2 for gradient descent, 2 (1 + b) for heavy ball and
for averaged gradients, 2 (1 + b)^2 / (1 + 2 b) for Nesterov's form, whose w contains a factor 1 + b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from topoopt.curvature import adafactor, rates
from topoopt.curvature.rates import Group, Moment
from topoopt.curvature.trial import own_class

Rate = Callable[[Moment], Tensor | float]


@dataclass(frozen=True)
class RuleSpec:
    """A recognised family: its name, its rate after preconditioning, its edge, and how weight decay enters."""

    name: Callable[[Group], str]
    rate: Rate
    edge: Callable[[Group], float]
    coupled: Callable[[Group], float]
    """c: the part of the weight that is added to the gradient."""
    decoupled: Rate
    """s: the part of the weight that a step takes off, whatever the gradient."""
    elementwise: bool = True
    """Whether a weight's rate depends on its own state and gradient alone."""


def _decay(group: Group) -> float:
    return float(group.get("weight_decay") or 0.0)


def _no_decay(group: Group) -> float:
    return 0.0


def _optional_decay(group: Group) -> float:
    return 0.0 if group.get("decoupled_weight_decay") else _decay(group)


def _shrinks_not(moment: Moment) -> float:
    return 0.0


def _shrinks(moment: Moment) -> float:
    return moment.lr * _decay(moment.group)


def _optionally_shrinks(moment: Moment) -> float:
    return _shrinks(moment) if moment.group.get("decoupled_weight_decay") else 0.0


def heavy_ball(beta: float) -> float:
    """Edge of heavy ball and of averaged gradients."""
    return 2.0 * (1.0 + beta)


def nesterov(beta: float) -> float:
    """Edge of Nesterov's form in units of r: the root -1 of z^2 - (1 + b)(1 - s) z + b (1 - s) at r = (1 + b) s."""
    return 2.0 * (1.0 + beta) ** 2 / (1.0 + 2.0 * beta)


def _sgd_name(group: Group) -> str:
    if not group.get("momentum"):
        return "sgd"
    return "sgd nesterov momentum" if group.get("nesterov") else "sgd momentum"


def _sgd_edge(group: Group) -> float:
    beta = float(group.get("momentum", 0.0))
    return nesterov(beta) if group.get("nesterov") else heavy_ball(beta)


def _beta1(group: Group) -> float:
    return float(group["betas"][0])


def _averaged(group: Group) -> float:
    return heavy_ball(_beta1(group))


def _plain(group: Group) -> float:
    return 2.0


def _rule(
    name: str,
    rate: Rate,
    edge: Callable[[Group], float],
    coupled: Callable[[Group], float] = _decay,
    decoupled: Rate = _shrinks_not,
    *,
    elementwise: bool = True,
) -> RuleSpec:
    return RuleSpec(lambda _: name, rate, edge, coupled, decoupled, elementwise)


RULES: dict[str, dict[str, RuleSpec]] = {
    "torch.optim": {
        "SGD": RuleSpec(_sgd_name, rates.sgd, _sgd_edge, _decay, _shrinks_not),
        "Adam": _rule("adam", rates.adam, _averaged, _optional_decay, _optionally_shrinks),
        "AdamW": _rule("adamw", rates.adam, _averaged, _no_decay, _shrinks),
        "SparseAdam": _rule("sparse adam", rates.sparse_adam, _averaged),
        "NAdam": _rule("nadam", rates.nadam, lambda g: nesterov(_beta1(g)), _optional_decay, _optionally_shrinks),
        "RAdam": _rule("radam", rates.radam, _averaged, _optional_decay, _optionally_shrinks),
        "Adamax": _rule("adamax", rates.adamax, _averaged),
        "RMSprop": _rule("rmsprop", rates.rmsprop, lambda g: heavy_ball(float(g.get("momentum", 0.0)))),
        "Adagrad": _rule("adagrad", rates.adagrad, _plain),
        "Adadelta": _rule("adadelta", rates.adadelta, _plain),
        "ASGD": _rule("asgd", rates.asgd, _plain, decoupled=rates.asgd_shrinks),
        "Adafactor": _rule("adafactor", adafactor.rate, _plain, _no_decay, _shrinks, elementwise=False),
    },
    "transformers.optimization": {
        "Adafactor": _rule(
            "adafactor",
            adafactor.transformers_rate,
            lambda g: heavy_ball(float(g.get("beta1") or 0.0)),
            _no_decay,
            adafactor.transformers_shrinks,
            elementwise=False,
        ),
    },
}
"""Recognised rules by module and class; subclasses that change `step` are not recognised by it."""

SIGNS = {
    "Lion", "Lion8bit", "Lion32bit", "PagedLion", "PagedLion8bit", "PagedLion32bit", "FusedLion",
    "SignSGD", "Signum", "Tiger", "Rprop",
}  # fmt: skip
"""Rules that take the sign of something: their displacement has no Lipschitz constant."""


def spec_of(optimizer: Optimizer) -> RuleSpec | None:
    """The recognised rule of an optimizer, or None: a class of `RULES`, or a subclass that keeps its step."""
    kind = own_class(optimizer)
    for base in kind.__mro__:
        home = ".".join(base.__module__.split(".")[:2])
        spec = RULES.get(home, {}).get(base.__name__)
        if spec is not None:
            return spec if _same_step(kind, base) else None
    return None


def _same_step(kind: type, base: type) -> bool:
    def original(owner: type) -> Any:
        step = owner.step  # type: ignore[attr-defined]
        return getattr(step, "__wrapped__", step)

    return kind is base or original(kind) is original(base)


def has_no_lipschitz_constant(optimizer: Optimizer) -> bool:
    """Whether the rule is known by its name to take signs."""
    return any(kind.__name__ in SIGNS for kind in own_class(optimizer).__mro__)


def recognise(optimizer: Optimizer) -> tuple[str, float | None]:
    """Name of the update rule and its edge e in units of r; ("black box", None) for a rule that is not recognised.

    Where parameter groups differ the smallest edge counts.
    """
    spec = spec_of(optimizer)
    groups = [group for group in optimizer.param_groups if group["params"]]
    if spec is None or not groups:
        return "black box", None
    return spec.name(groups[0]), min(spec.edge(group) for group in groups)
