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

from topoopt.curvature import rates
from topoopt.curvature.rates import Group, Moment

Rate = Callable[[Moment], Tensor | float]


@dataclass(frozen=True)
class RuleSpec:
    """A recognised family: its name, its rate after preconditioning, its edge, and how weight decay enters."""

    name: Callable[[Group], str]
    rate: Rate
    edge: Callable[[Group], float]
    is_decoupled: Callable[[Group], bool]
    shrinks: Rate | None = None
    """Decay of its own besides `weight_decay`, per step."""

    def coupled(self, group: Group) -> float:
        """c: the part of the weight that is added to the gradient."""
        return 0.0 if self.is_decoupled(group) else _decay(group)

    def decoupled(self, moment: Moment) -> Tensor | float:
        """s: the part of the weight that a step takes off, whatever the gradient."""
        own = self.shrinks(moment) if self.shrinks else 0.0
        return own + (moment.lr * _decay(moment.group) if self.is_decoupled(moment.group) else 0.0)


def _decay(group: Group) -> float:
    return float(group.get("weight_decay") or 0.0)


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


def _family(
    name: str, rate: Rate, edge: Callable[[Group], float], decoupled: bool | None = False, shrinks: Rate | None = None
) -> RuleSpec:
    def is_decoupled(group: Group) -> bool:
        return bool(group.get("decoupled_weight_decay", False)) if decoupled is None else decoupled

    return RuleSpec(lambda _: name, rate, edge, is_decoupled, shrinks)


RULES: dict[str, RuleSpec] = {
    "SGD": RuleSpec(_sgd_name, rates.sgd, _sgd_edge, lambda _: False),
    "Adam": _family("adam", rates.adam, lambda g: heavy_ball(_beta1(g)), None),
    "AdamW": _family("adamw", rates.adam, lambda g: heavy_ball(_beta1(g)), True),
    "SparseAdam": _family("sparse adam", rates.sparse_adam, lambda g: heavy_ball(_beta1(g))),
    "NAdam": _family("nadam", rates.nadam, lambda g: nesterov(_beta1(g)), None),
    "RAdam": _family("radam", rates.radam, lambda g: heavy_ball(_beta1(g)), None),
    "Adamax": _family("adamax", rates.adamax, lambda g: heavy_ball(_beta1(g))),
    "RMSprop": _family("rmsprop", rates.rmsprop, lambda g: heavy_ball(float(g.get("momentum", 0.0)))),
    "Adagrad": _family("adagrad", rates.adagrad, lambda g: 2.0),
    "Adadelta": _family("adadelta", rates.adadelta, lambda g: 2.0),
    "ASGD": _family("asgd", rates.asgd, lambda g: 2.0, shrinks=rates.asgd_shrinks),
}
"""Recognised rules by the name of torch's class; subclasses that change `step` are not recognised by it."""

SIGNS = {
    "Lion", "Lion8bit", "Lion32bit", "PagedLion", "PagedLion8bit", "PagedLion32bit", "FusedLion",
    "SignSGD", "Signum", "Tiger", "Rprop",
}  # fmt: skip
"""Rules that take the sign of something: their displacement has no Lipschitz constant."""


def spec_of(optimizer: Optimizer) -> RuleSpec | None:
    """The recognised rule of an optimizer, or None: torch's own class, or a subclass that keeps its step."""
    kind = type(optimizer)
    for base in kind.__mro__:
        spec = RULES.get(base.__name__)
        if spec is not None and base.__module__.startswith("torch.optim"):
            return spec if _same_step(kind, base) else None
    return None


def _same_step(kind: type, base: type) -> bool:
    def original(owner: type) -> Any:
        step = owner.step  # type: ignore[attr-defined]
        return getattr(step, "__wrapped__", step)

    return kind is base or original(kind) is original(base)


def has_no_lipschitz_constant(optimizer: Optimizer) -> bool:
    """Whether the rule is known to take signs."""
    return any(kind.__name__ in SIGNS for kind in type(optimizer).__mro__)


def recognise(optimizer: Optimizer) -> tuple[str, float]:
    """Name of the update rule and its edge e in units of r; ("black box", 2.0) for a rule that is not recognised.

    Where parameter groups differ the smallest edge counts.
    """
    spec = spec_of(optimizer)
    groups = [group for group in optimizer.param_groups if group["params"]]
    if spec is None or not groups:
        return "black box", 2.0
    return spec.name(groups[0]), min(spec.edge(group) for group in groups)
