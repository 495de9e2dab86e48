"""Update rules: how a step's displacement depends on the gradient, at the optimizer's state held fixed.

Every recognised rule moves a weight by D = -w (g + c x) - s x, where g is the gradient, x the weight, w > 0 the rate after
preconditioning, c the coupled and s the decoupled weight decay. So dD/dx = -(w H + w c + s), whose spectrum is that of the
symmetric w^1/2 H w^1/2 + w c + s. The preconditioner is held at what it is *in* the step (Cohen et al. 2022); `upcoming`
says that the step has not been taken yet, so that its gradient still has to enter the averages.

Edges are where x' = x + D oscillates without decay on a quadratic: 2 for gradient descent, 2 (1 + b) for heavy ball and
for averaged gradients, 2 (1 + b)^2 / (1 + 2 b) for Nesterov's form, whose w contains a factor 1 + b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
Rate = Callable[["Moment"], Tensor | float]


@dataclass(frozen=True)
class Moment:
    """What a rule may see of one parameter: its state, its group's settings, and the gradient of the step."""

    state: dict[str, Any]
    group: Group
    grad: Tensor
    """Gradient with coupled weight decay and the sign of `maximize`."""
    upcoming: bool

    def steps(self) -> float:
        """t of the step, counted from 1."""
        t = self.state.get("step", 0)
        return max(1.0, float(t) + (1.0 if self.upcoming else 0.0))

    def average(self, key: str, new: Tensor, beta: float) -> Tensor:
        """An exponential average as it stands in the step."""
        old = self.state.get(key)
        if not self.upcoming and isinstance(old, Tensor):
            return old
        return beta * old + (1 - beta) * new if isinstance(old, Tensor) else (1 - beta) * new

    @property
    def lr(self) -> float:
        """The group's learning rate."""
        return float(self.group["lr"])


@dataclass(frozen=True)
class RuleSpec:
    """A recognised family: its name, its rate after preconditioning, its edge, and how weight decay enters."""

    name: Callable[[Group], str]
    rate: Rate
    edge: Callable[[Group], float]
    decoupled: Callable[[Group], bool]
    decay: str = "weight_decay"


def heavy_ball(beta: float) -> float:
    """Edge of heavy ball and of averaged gradients."""
    return 2.0 * (1.0 + beta)


def nesterov(beta: float) -> float:
    """Edge of Nesterov's form in units of r: the root -1 of z^2 - (1 + b)(1 - s) z + b (1 - s) at r = (1 + b) s."""
    return 2.0 * (1.0 + beta) ** 2 / (1.0 + 2.0 * beta)


# -- rates -------------------------------------------------------------------------------------------------------------


def _sgd(m: Moment) -> float:
    fresh = m.state.get("momentum_buffer") is None
    beta, dampening = m.group.get("momentum", 0.0), m.group.get("dampening", 0.0)
    entering = 1.0 if fresh or beta == 0 else 1.0 - dampening
    return m.lr * (1.0 + beta * entering if m.group.get("nesterov") else entering)


def _root(m: Moment, key: str = "exp_avg_sq") -> Tensor:
    """sqrt(v_hat) of the Adam family, with AMSGrad's maximum."""
    beta2 = float(m.group["betas"][1])
    v = m.average(key, m.grad * m.grad, beta2)
    if m.group.get("amsgrad"):
        peak = m.state.get("max_exp_avg_sq")
        v = torch.maximum(peak, v) if isinstance(peak, Tensor) else v
    return (v / (1 - beta2 ** m.steps())).sqrt()


def _averaging(m: Moment) -> float:
    beta1 = float(m.group["betas"][0])
    return (1 - beta1) / (1 - beta1 ** m.steps())


def _adam(m: Moment) -> Tensor:
    return m.lr * _averaging(m) / (_root(m) + m.group["eps"])


def _nadam(m: Moment) -> Tensor:
    beta1, psi, t = float(m.group["betas"][0]), m.group["momentum_decay"], m.steps()
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (s * psi)) for s in (t, t + 1))
    product = float(m.state.get("mu_product", 1.0)) * (mu if m.upcoming or "mu_product" not in m.state else 1.0)
    share = (1 - mu) / (1 - product) + following * (1 - beta1) / (1 - product * following)
    return m.lr * share / (_root(m) + m.group["eps"])


def _radam(m: Moment) -> Tensor | float:
    beta2, t = float(m.group["betas"][1]), m.steps()
    longest = 2 / (1 - beta2) - 1
    rho = longest - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return m.lr * _averaging(m)
    rectify = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
    v = m.average("exp_avg_sq", m.grad * m.grad, beta2)
    return m.lr * _averaging(m) * rectify * math.sqrt(1 - beta2**t) / (v.sqrt() + m.group["eps"])


def _adamax(m: Moment) -> Tensor:
    beta2, size = float(m.group["betas"][1]), m.grad.abs() + m.group["eps"]
    norm = m.state.get("exp_inf")
    if m.upcoming or not isinstance(norm, Tensor):
        norm = torch.maximum(beta2 * norm, size) if isinstance(norm, Tensor) else size
    return m.lr * _averaging(m) / norm


def _rmsprop(m: Moment) -> Tensor:
    alpha = float(m.group["alpha"])
    v = m.average("square_avg", m.grad * m.grad, alpha)
    if m.group.get("centered"):
        v = v - m.average("grad_avg", m.grad, alpha).square()
    return m.lr / (v.clamp_min(0).sqrt() + m.group["eps"])


def _adagrad(m: Moment) -> Tensor:
    total = m.state.get("sum")
    if m.upcoming or not isinstance(total, Tensor):
        total = (
            total if isinstance(total, Tensor) else m.group.get("initial_accumulator_value", 0.0)
        ) + m.grad * m.grad
    return m.lr / (1 + (m.steps() - 1) * m.group["lr_decay"]) / (total.sqrt() + m.group["eps"])


def _adadelta(m: Moment) -> Tensor:
    v = m.average("square_avg", m.grad * m.grad, float(m.group["rho"]))
    moved = m.state.get("acc_delta")
    moved = moved if isinstance(moved, Tensor) else torch.zeros_like(m.grad)
    return m.lr * (moved + m.group["eps"]).sqrt() / (v + m.group["eps"]).sqrt()


def _asgd(m: Moment) -> float:
    eta = m.state.get("eta")
    return float(eta) if eta is not None else m.lr


# -- the table -------------------------------------------------------------------------------------------------------------


def _sgd_name(group: Group) -> str:
    if not group.get("momentum"):
        return "sgd"
    return "sgd nesterov momentum" if group.get("nesterov") else "sgd momentum"


def _sgd_edge(group: Group) -> float:
    beta = float(group.get("momentum", 0.0))
    return nesterov(beta) if group.get("nesterov") else heavy_ball(beta)


def _beta1(group: Group) -> float:
    return float(group["betas"][0])


def _family(name: str, rate: Rate, edge: Callable[[Group], float], decoupled: bool | None = False) -> RuleSpec:
    def is_decoupled(group: Group) -> bool:
        return bool(group.get("decoupled_weight_decay", False)) if decoupled is None else decoupled

    return RuleSpec(lambda _: name, rate, edge, is_decoupled)


RULES: dict[str, RuleSpec] = {
    "SGD": RuleSpec(_sgd_name, _sgd, _sgd_edge, lambda _: False),
    "Adam": _family("adam", _adam, lambda g: heavy_ball(_beta1(g)), None),
    "AdamW": _family("adamw", _adam, lambda g: heavy_ball(_beta1(g)), True),
    "SparseAdam": _family("sparse adam", _adam, lambda g: heavy_ball(_beta1(g))),
    "NAdam": _family("nadam", _nadam, lambda g: nesterov(_beta1(g)), None),
    "RAdam": _family("radam", _radam, lambda g: heavy_ball(_beta1(g)), None),
    "Adamax": _family("adamax", _adamax, lambda g: heavy_ball(_beta1(g))),
    "RMSprop": _family("rmsprop", _rmsprop, lambda g: heavy_ball(float(g.get("momentum", 0.0)))),
    "Adagrad": _family("adagrad", _adagrad, lambda g: 2.0),
    "Adadelta": _family("adadelta", _adadelta, lambda g: 2.0),
    "ASGD": _family("asgd", _asgd, lambda g: 2.0),
}
"""Recognised rules by the name of torch's class; subclasses that change `step` are not recognised by it."""

SIGNS = {"Lion", "SignSGD", "Signum", "Tiger", "Rprop"}
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
