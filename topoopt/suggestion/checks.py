"""What no rate can be suggested for, said before any step is taken."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.rules import has_no_lipschitz_constant
from topoopt.errors import ConfigError, NotDefinedError, SteeringError

FEWEST = 60
"""Steps below which the short runs would be too short to tell rates apart."""
PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
WRAPPERS = {"AcceleratedOptimizer": "optimizer", "LightningOptimizer": "_optimizer"}
ADAPT = ("Prodigy", "DAdapt", "ScheduleFree")
FOLLOW = ("sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta", "sparse adam")
"""Recognised rules, by the first words of their names, whose step is proportional to the rate; others are tried out."""
PEAKS = ("max_lr", "initial_lr", "lr")
"""Where schedulers leave the peak of a group's rate, else the rate of now."""


def check_arguments(model: Any, optimizer: Any, steps: Any, max_norm: Any) -> None:
    """Refuse what is of the wrong kind.

    Raises:
        ConfigError: with the value and what to give.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}: give the torch module that is trained")
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}: give a torch optimizer")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < FEWEST:
        raise ConfigError(f"steps={steps!r}: give a whole number of at least {FEWEST}; fewer tell no rates apart")
    if max_norm is not None and not (isinstance(max_norm, (int, float)) and max_norm > 0):
        raise ConfigError(f"max_norm={max_norm!r}: give the positive norm that gradients are clipped to, or None")


def bare(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside accelerate's or Lightning's wrapper."""
    while type(optimizer).__name__ in WRAPPERS:
        optimizer = getattr(optimizer, WRAPPERS[type(optimizer).__name__])
    return optimizer


def check_pair(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse a model and an optimizer that cannot be rehearsed together.

    Raises:
        ConfigError: for parallel wrappers, shards, a `TopoOptimizer`, or an optimizer that trains nothing of the model.
    """
    parallel = [kind.__name__ for kind in type(model).__mro__ if kind.__name__ in PARALLEL]
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if parallel or any(sharding.is_sharded(p) for p in parameters):
        raise ConfigError(
            f"{parallel[0] if parallel else 'a sharded model'} spans processes: ask on one of them, with the bare module "
            "and an optimizer of its own, and hand the rate on"
        )
    if any(kind.__name__ == "TopoOptimizer" for kind in type(optimizer).__mro__):
        raise ConfigError("the optimizer is wrapped by TopoOptimizer: ask before wrapping, or after detach()")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for p in parameters):
        raise ConfigError(
            "the optimizer trains no weight of the model that asks for a gradient: give the pair that is trained"
        )


def peaks_of(optimizer: Optimizer) -> tuple[float, ...]:
    """Each group's rate at the peak of its schedule; 0 for a group without one.

    Raises:
        SteeringError: for a rule whose step does not follow its rate.
        NotDefinedError: for one that moves by signs, which has no r.
        ConfigError: when every rate is 0, so that no factor means anything.
    """
    name = type(optimizer).__name__
    if has_no_lipschitz_constant(optimizer):
        raise NotDefinedError(f"{name} moves by signs: r is not defined for it, so nothing is suggested")
    reason = _refusal(optimizer)
    if reason:
        raise SteeringError(f"no rate is suggested for {name}: {reason}")
    found = [next((group[key] for key in PEAKS if group.get(key) is not None), 0.0) for group in optimizer.param_groups]
    peaks = tuple(float(peak) for peak in found)
    if not any(peak > 0 for peak in peaks):
        raise ConfigError(f"the optimizer's rates are {list(peaks)}: give any positive ones; their ratios are kept")
    return peaks


def _refusal(optimizer: Optimizer) -> str:
    name = type(optimizer).__name__
    if any(part in name for part in ADAPT):
        return "it finds its own scale, or averages its iterates, so that its step does not follow the rate"
    if any(group.get("line_search_fn") for group in optimizer.param_groups):
        return "its line search chooses the step's length, whatever the rate"
    if any(group.get("relative_step") for group in optimizer.param_groups):
        return "relative_step=True makes it ignore its rate"
    if all(group.get("lr") is None for group in optimizer.param_groups):
        return "none of its parameter groups has a learning rate"
    return ""
