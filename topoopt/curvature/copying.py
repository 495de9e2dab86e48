"""A copy of an optimizer that can be stepped without the original noticing."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def displacement(optimizer: Optimizer, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """What the optimizer's own next step would move `parameters` by, given these gradients; nothing is changed.

    The step is taken by a copy, on copies of the weights and of the state. Parameters without an entry in `parameters`
    have no gradient in it, so the copy leaves them alone.
    """
    replica, replaced = _replica(optimizer)
    for parameter, grad in zip(parameters, grads):
        replaced[id(parameter)].grad = grad.detach().clone().to(parameter.dtype)
    type(optimizer).step(replica)  # type: ignore[call-arg]
    return [(replaced[id(p)] - p).detach() for p in parameters]


@torch.no_grad()
def _replica(optimizer: Optimizer) -> tuple[Any, dict[int, Tensor]]:
    """An object of the same class with the same settings, on copies of all tensors, and without hooks."""
    replica = object.__new__(type(optimizer))
    skipped = {"param_groups", "state", "step", "_topoopt_hooks", *HOOKS}  # `step`: patched by schedulers
    replica.__dict__.update({k: v for k, v in vars(optimizer).items() if k not in skipped})
    for name in HOOKS:
        replica.__dict__[name] = OrderedDict()
    replaced: dict[int, Tensor] = {}
    groups = []
    for group in optimizer.param_groups:
        clones = [
            replaced.setdefault(id(p), p.detach().clone().requires_grad_(p.requires_grad)) for p in group["params"]
        ]
        rest = {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
        groups.append({**rest, "params": clones})
    replica.param_groups = groups
    state: defaultdict[Any, Any] = defaultdict(dict)
    for key, value in optimizer.state.items():
        state[replaced[id(key)] if isinstance(key, Tensor) and id(key) in replaced else key] = copy.deepcopy(value)
    replica.state = state
    return replica, replaced
