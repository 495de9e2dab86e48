"""How right a monitor is: what it says beside a converged oracle of the quantity that it is to give."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from _monitors import LR, Monitor
from _watched import Plan, Task
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def top(task: Task, step: int, scale: list[Tensor] | None = None) -> float:
    """|Top eigenvalue| of the Hessian of the loss of a step's batch, scaled on both sides, converged.

    The error of the value is of the order of the square of the tolerance, which is that of the vector.
    """
    linalg: Any = importlib.import_module("scipy.sparse.linalg")

    parameters = [p for p in task.model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(task.loss(step), parameters, create_graph=True, allow_unused=True)
    known = [i for i, g in enumerate(gradient) if g is not None]
    kept, g = [parameters[i] for i in known], [x for x in gradient if x is not None]
    sides = [torch.ones_like(p) for p in kept] if scale is None else [scale[i] for i in known]
    sizes = [p.numel() for p in kept]

    def product(v: Any) -> Any:
        given = torch.from_numpy(np.asarray(v, dtype=np.float32).reshape(-1)).split(sizes)
        along = [part.view_as(p) * s for part, p, s in zip(given, kept, sides)]
        out = torch.autograd.grad(g, kept, along, retain_graph=True, allow_unused=True)
        done = [torch.zeros_like(p) if o is None else o * s for o, p, s in zip(out, kept, sides)]
        return torch.cat([x.flatten() for x in done]).numpy()

    operator = linalg.LinearOperator((sum(sizes), sum(sizes)), matvec=product, dtype=np.float32)
    return abs(float(linalg.eigsh(operator, k=1, which="LM", tol=5e-3, return_eigenvectors=False)[0]))


def batch_sharpness(task: Task, steps: range) -> float:
    """Mean over mini-batches of g' H g / g' g, H and g of the same batch (Andreyev and Beneventano, arXiv 2412.20553)."""
    parameters, found = [p for p in task.model.parameters() if p.requires_grad], []
    for step in steps:
        with sdpa_kernel(SDPBackend.MATH):
            g = torch.autograd.grad(task.loss(step), parameters, create_graph=True, allow_unused=True)
            pairs = [(p, d) for p, d in zip(parameters, g) if d is not None]
            along = [d.detach() for _, d in pairs]
            product = torch.autograd.grad([d for _, d in pairs], [p for p, _ in pairs], along, allow_unused=True)
        top = sum(float((a * h).sum()) for a, h in zip(along, product) if h is not None)
        found.append(top / sum(float(a.square().sum()) for a in along))
    return sum(found) / len(found)


def _metric(optimizer: Any) -> list[Tensor]:
    """Square roots of Adam's own factors: lr c / (sqrt(v_hat) + eps), with v and t as they stand after the step."""
    group, factors = optimizer.param_groups[0], []
    beta1, beta2 = group["betas"]
    for p in group["params"]:
        state = optimizer.state.get(p, {})
        if not state:
            factors.append(torch.zeros_like(p))
            continue
        t = int(state["step"])
        p_hat = state["exp_avg_sq"].sqrt() / (1 - beta2**t) ** 0.5 + group["eps"]
        factors.append((LR * (1 - beta1) / (1 - beta1**t) / p_hat).sqrt())
    return factors


def errors(plan: Plan, kind: type[Monitor]) -> list[float]:
    """Relative errors of what a monitor says."""
    torch.manual_seed(0)
    task = plan.build()
    torch.manual_seed(0)
    twin = plan.build()  # the oracle's own, so that nothing of the monitored model is touched
    monitor = kind(task, plan.every)
    monitor.begin()
    found: list[float] = []
    for step in range(plan.warm + plan.every * (plan.compared + 1)):
        before = [p.detach().clone() for p in task.model.parameters()]
        monitor.train(step)
        if step < plan.warm or not monitor.happened(step):
            continue
        weights = [p.detach() for p in task.model.parameters()] if kind.afterwards else before
        with torch.no_grad():
            for p, w in zip(twin.model.parameters(), weights):
                p.copy_(w)
        found.append(monitor.found / _truth(monitor, twin, step) - 1)
        if len(found) == plan.compared:
            break
    monitor.end()
    return found


def _truth(monitor: Monitor, twin: Task, step: int) -> float:
    if monitor.quantity == "batch sharpness":
        return batch_sharpness(twin, range(10_000, 10_064))
    return top(twin, step, _metric(monitor.optimizer) if monitor.quantity == "r" else None)
