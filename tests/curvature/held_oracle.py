"""Dense oracles of the displacement's Jacobian, from nothing but the optimizer's own `step` and autograd, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Loss = Callable[[nn.Module], Tensor]
OLD = {
    # how a step makes a second moment of the old one and the gradient, solved for the old one
    "exp_avg_sq": lambda new, g, group: (new - (1 - float(group["betas"][1])) * g * g) / float(group["betas"][1]),
    "exp_inf": lambda new, g, group: new / float(group["betas"][1]),
    "sum": lambda new, g, group: new - g * g,
    "square_avg": lambda new, g, group: (new - (1 - _decay(group)) * g * g) / _decay(group),
    "grad_avg": lambda new, g, group: (new - (1 - _decay(group)) * g) / _decay(group),
}


def _decay(group: dict) -> float:
    return float(group["alpha"] if "alpha" in group else group["rho"])


def radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def gradients(model: nn.Module, loss: Loss) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss(model), list(model.parameters()), allow_unused=True))


def dense_hessian(model: nn.Module, loss: Loss) -> Tensor:
    """(P, P), row by row, by autograd."""
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss(model), parameters, create_graph=True, allow_unused=True)
    joined = torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters, grads)])
    rows = []
    for entry in joined:
        row = (
            torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True) if entry.requires_grad else ()
        )
        rows.append(flat([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, row or [None] * 99)]))
    return torch.stack(rows)


def held_jacobian(model: nn.Module, optimizer: Optimizer, loss: Loss, h: float = 1e-4) -> Tensor:
    """-dD/dx of the next step of a coordinate-wise rule, with its second moments held at what the step leaves them at.

    For each change of gradient or weight the old moments are set so that the optimizer's own step ends at the same new
    ones. A maximum can only be held so while the gradient shrinks, and D is linear there: so the gradient is shrunk.
    """
    grads = gradients(model, loss)
    _, seen, stay = _step(model, optimizer, grads, 0.0, None)
    base, _, _ = _step(model, optimizer, grads, 0.0, stay)
    signs = [-g.sign() * (-1 if group.get("maximize") else 1) for g, group in zip(seen, _owners(model, optimizer))]
    fewer = [None if g is None else g + h * s for g, s in zip(grads, signs)]
    in_grad = (_step(model, optimizer, fewer, 0.0, stay)[0] - base) / (h * flat(signs))
    toward = [0.0 if g is None else h * s for g, s in zip(grads, [-g.sign() for g in seen])]
    in_weight = (_step(model, optimizer, grads, toward, stay)[0] - base) / (h * -flat(seen).sign())
    missing = flat([torch.full_like(p, float(g is None)) for p, g in zip(model.parameters(), grads)]).bool()
    in_grad, in_weight = (torch.where(missing, 0.0, d) for d in (in_grad, in_weight))
    return -(torch.diag(in_grad) @ dense_hessian(model, loss) + torch.diag(in_weight))


def full_jacobian(model: nn.Module, optimizer: Optimizer, loss: Loss, h: float = 1e-6) -> Tensor:
    """-dD/dx of the next step with everything that depends on the gradient, column by column."""
    sizes = [p.numel() for p in model.parameters()]
    columns = []
    for e in torch.eye(sum(sizes), dtype=torch.float64) * h:
        pair = []
        for shift in (e, -e):
            twin, twins = copy.deepcopy((model, optimizer))
            pieces = [s.view_as(p) for p, s in zip(model.parameters(), shift.split(sizes))]
            with torch.no_grad():
                for p, s in zip(twin.parameters(), pieces):
                    p.add_(s)
            pair.append(_step(twin, twins, gradients(twin, loss), 0.0, None)[0])
        columns.append((pair[1] - pair[0]) / (2 * h))
    return torch.stack(columns, 1)


def _owners(model: nn.Module, optimizer: Optimizer) -> list[dict]:
    owner = {p: group for group in optimizer.param_groups for p in group["params"]}
    return [owner.get(p, {}) for p in model.parameters()]


def _step(model: nn.Module, optimizer: Optimizer, grads, shift, stay: dict | None):
    """(displacement, gradients that the averages saw, second moments after) of a copy's step from x + shift."""
    model, optimizer = copy.deepcopy((model, optimizer))
    parameters, owners = list(model.parameters()), _owners(model, optimizer)
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.add_(shift if isinstance(shift, float) else shift[i])
    for p, grad, group in zip(parameters, grads, owners):
        p.grad = grad if group else None
    seen = [
        torch.zeros_like(p) if p.grad is None else _seen(optimizer, group, p) for p, group in zip(parameters, owners)
    ]
    if stay:
        _start_empty_states(optimizer)
    for (i, key), value in (stay or {}).items():
        optimizer.state[parameters[i]][key] = OLD[key](value, seen[i], owners[i])
    before = flat(parameters)
    optimizer.step()
    moments = {(i, key): optimizer.state[p].get(key) for i, p in enumerate(parameters) for key in OLD}
    return flat(parameters) - before, seen, {k: v.clone() for k, v in moments.items() if v is not None}


def _seen(optimizer: Optimizer, group: dict, p: Tensor) -> Tensor:
    assert p.grad is not None
    grad = -p.grad if group.get("maximize") else p.grad
    coupled = not group.get("decoupled_weight_decay") and type(optimizer).__name__ != "AdamW"
    return grad + (group.get("weight_decay") or 0.0) * p.detach() if coupled else grad


def _start_empty_states(optimizer: Optimizer) -> None:
    """What torch makes of an empty state in the first step, before it is used."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None or optimizer.state[p]:
                continue
            twin = p.detach().clone().requires_grad_()
            twin.grad = p.grad.clone()
            dry = type(optimizer)([{**{k: v for k, v in group.items() if k != "params"}, "params": [twin]}])
            dry.step()
            for key, value in dry.state[twin].items():
                if isinstance(value, Tensor) and (key != "momentum_buffer" or "alpha" in group):
                    start = {"mu_product": 1.0, "mu": 1.0, "eta": float(group["lr"])}.get(key, 0.0)
                    optimizer.state[p][key] = torch.full_like(value, start)
