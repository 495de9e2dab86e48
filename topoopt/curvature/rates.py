"""The rate w of each recognised rule: the weight of one gradient in the step that takes it in, coordinate by coordinate.

A step moves by D = -w g + (what the state adds), with the second moments held at what they are *in* that step. The
formulas are those of torch's own steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """What a rule may see of one parameter: itself, its state, its group's settings, and the gradient of the step."""

    parameter: Tensor
    state: dict[str, Any]
    group: Group
    grad: Tensor
    """Gradient with coupled weight decay and the sign of `maximize`."""
    upcoming: bool

    @classmethod
    def of(cls, parameter: Tensor, state: dict[str, Any], group: Group, grad: Tensor, upcoming: bool) -> Moment:
        """As given; a parameter that has not been stepped yet can only be asked for its next step."""
        first = not state or ("step" in state and float(state["step"]) == 0)
        return cls(parameter, state, group, grad, upcoming or first)

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


def sgd(m: Moment) -> float:
    """SGD, with momentum, dampening and Nesterov's form."""
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


def adam(m: Moment) -> Tensor:
    """Adam, AdamW and AMSGrad."""
    return m.lr * _averaging(m) / (_root(m) + m.group["eps"])


def sparse_adam(m: Moment) -> Tensor:
    """SparseAdam, whose eps is not divided by the bias correction."""
    beta2 = float(m.group["betas"][1])
    v = m.average("exp_avg_sq", m.grad * m.grad, beta2)
    return m.lr * _averaging(m) * math.sqrt(1 - beta2 ** m.steps()) / (v.sqrt() + m.group["eps"])


def nadam(m: Moment) -> Tensor:
    """NAdam: the gradient's own share, and its share in the average."""
    beta1, psi, t = float(m.group["betas"][0]), m.group["momentum_decay"], m.steps()
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (s * psi)) for s in (t, t + 1))
    product = float(m.state.get("mu_product", 1.0)) * (mu if m.upcoming or "mu_product" not in m.state else 1.0)
    share = (1 - mu) / (1 - product) + following * (1 - beta1) / (1 - product * following)
    return m.lr * share / (_root(m) + m.group["eps"])


def radam(m: Moment) -> Tensor | float:
    """RAdam: momentum without a denominator while the variance is not tractable."""
    beta2, t = float(m.group["betas"][1]), m.steps()
    longest = 2 / (1 - beta2) - 1
    rho = longest - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return m.lr * _averaging(m)
    rectify = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
    return rectify * sparse_adam(m)


def adamax(m: Moment) -> Tensor:
    """Adamax: the largest decayed gradient as denominator."""
    beta2, size = float(m.group["betas"][1]), m.grad.abs() + m.group["eps"]
    norm = m.state.get("exp_inf")
    if m.upcoming or not isinstance(norm, Tensor):
        norm = torch.maximum(beta2 * norm, size) if isinstance(norm, Tensor) else size
    return m.lr * _averaging(m) / norm


def rmsprop(m: Moment) -> Tensor:
    """RMSprop, centered or not."""
    alpha = float(m.group["alpha"])
    v = m.average("square_avg", m.grad * m.grad, alpha)
    if m.group.get("centered"):
        v = v - m.average("grad_avg", m.grad, alpha).square()
    return m.lr / (v.clamp_min(0).sqrt() + m.group["eps"])


def adagrad(m: Moment) -> Tensor:
    """Adagrad with its decay of the rate."""
    total = m.state.get("sum")
    if m.upcoming or not isinstance(total, Tensor):
        total = (
            total if isinstance(total, Tensor) else m.group.get("initial_accumulator_value", 0.0)
        ) + m.grad * m.grad
    return m.lr / (1 + (m.steps() - 1) * m.group["lr_decay"]) / (total.sqrt() + m.group["eps"])


def adadelta(m: Moment) -> Tensor:
    """Adadelta, with the average of past moves as it was when the step used it."""
    rho, eps = float(m.group["rho"]), m.group["eps"]
    v = m.average("square_avg", m.grad * m.grad, rho)
    moved = m.state.get("acc_delta")
    moved = moved if isinstance(moved, Tensor) else torch.zeros_like(m.grad)
    if not m.upcoming:  # the step has averaged its own move in: moved = rho old + (1 - rho) (old + eps) share
        share = m.grad * m.grad / (v + eps)
        moved = ((moved - (1 - rho) * eps * share) / (rho + (1 - rho) * share)).clamp_min(0)
    return m.lr * ((moved + eps) / (v + eps)).sqrt()


def asgd(m: Moment) -> float:
    """ASGD, whose rate is prepared one step ahead."""
    if m.upcoming:
        return float(m.state.get("eta", m.lr))
    return m.lr / (1 + m.group["lambd"] * m.lr * (m.steps() - 1)) ** m.group["alpha"]


def asgd_shrinks(m: Moment) -> float:
    """ASGD's own decay of the weights, per step."""
    return m.group["lambd"] * asgd(m)
