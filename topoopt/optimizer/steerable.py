"""Whose step follows its learning rate: the rules that a factor does not scale, by name, with the reason."""

from __future__ import annotations

from torch.optim import Optimizer

from topoopt.errors import SteeringError

REFUSED = {
    "Rprop": "its step sizes adapt by the sign of the gradient; the rate has no effect after the first step",
}
"""A factor on the rate does nothing."""

DECLARED = {
    "ASGD": "its rate enters one step late: the factor of this step acts in the next one",
    "Adafactor": "its rate is capped at 1 / sqrt(step): a factor acts only below that cap",
    "AdamWScheduleFree": "the averaged iterate follows the rate only in part (a factor of 0.5 gives 0.75 of the step)",
    "SGDScheduleFree": "the averaged iterate follows the rate only in part (a factor of 0.5 gives 0.75 of the step)",
    "RAdamScheduleFree": "the averaged iterate follows the rate only in part (a factor of 0.5 gives 0.75 of the step)",
    "Prodigy": "its own estimate of the distance multiplies the rate and answers to what the factor does",
    "DAdaptAdam": "its own estimate of the distance multiplies the rate and answers to what the factor does",
    "DAdaptSGD": "its own estimate of the distance multiplies the rate and answers to what the factor does",
}
"""A factor on the rate acts, but not in proportion or not at once."""


def check_steerable(optimizer: Optimizer) -> str:
    """Return what must be declared about steering `optimizer`, "" when its step is proportional to its rate.

    Raises:
        SteeringError: when the rate does not scale the step at all, with what to do.
    """
    reason = _refusal(optimizer)
    name = type(optimizer).__name__
    if reason:
        raise SteeringError(f'{name} cannot be steered: {reason}. Use mode="report", or another optimizer')
    declared = next((DECLARED[kind.__name__] for kind in type(optimizer).__mro__ if kind.__name__ in DECLARED), "")
    return f"steering {name}: {declared}" if declared else ""


def _refusal(optimizer: Optimizer) -> str:
    for kind in type(optimizer).__mro__:
        if kind.__name__ in REFUSED:
            return REFUSED[kind.__name__]
    if any(group.get("line_search_fn") for group in optimizer.param_groups):
        return "its line search chooses the step's length, whatever the rate"
    if any(group.get("relative_step") for group in optimizer.param_groups):
        return "relative_step=True makes it ignore its learning rate"
    if all(group.get("lr") is None for group in optimizer.param_groups):
        return "none of its parameter groups has a learning rate"
    return ""
