"""What the steering policies share: the curvature per unit of rate, and a watch over the loss. Pure functions."""

from __future__ import annotations

import math
from statistics import median

from topoopt.control.policy import Reading, State
from topoopt.errors import ConfigError

LOSSES = 21
"""Length of the loss history whose median a loss is held against."""
SLACK = 0.2
"""A loss is also allowed this share of the run's first one: a small loss may double without any harm."""
FLAT = 1e-30
"""A curvature per unit of rate below this is no curvature at all: nothing to divide by."""
PATIENCE = 3
"""Losses that must have been seen before one can be called a spike."""


def curvatures(reading: Reading, state: State, memory: int) -> list[float]:
    """K = r / lr of the last `memory` readings in which r was known, the newest last.

    r is proportional to the learning rate at fixed curvature, so K is what stays when a scheduler moves the rate.
    """
    known = list(_floats(state.get("curvatures")))
    curvature = reading.r / reading.lr if reading.lr > 0 else math.nan
    if reading.fresh and FLAT < curvature < math.inf:
        known.append(curvature)
    return known[-memory:]


def watch_loss(reading: Reading, state: State, guard: float) -> tuple[str, State]:
    """Hold the reading's loss against its own history; returns what is wrong ("" for nothing) and the new history.

    A loss is a spike above `guard` times the running median plus a fifth of the first loss; it joins the history all the
    same, so that a new level is got used to. Getting used to it ends a fifth above the run's first loss.
    """
    losses = list(_floats(state.get("losses")))
    first = state.get("first_loss")
    if not reading.finite or math.isinf(reading.loss):
        return "a loss, gradient or weight is not finite", {"losses": losses, "first_loss": first}
    if math.isnan(reading.loss):
        return "", {"losses": losses, "first_loss": first}
    first = reading.loss if not isinstance(first, float) else first
    trouble = ""
    if len(losses) >= PATIENCE:
        limit = guard * median(losses) + SLACK * abs(first)
        if reading.loss > first + SLACK * abs(first):
            trouble = f"the loss {reading.loss:.4g} is above where the run began ({first:.4g})"
        elif reading.loss > limit:
            trouble = (
                f"the loss {reading.loss:.4g} is above {limit:.4g} ({guard:g} times its running median, and slack)"
            )
    return trouble, {"losses": [*losses, reading.loss][-LOSSES:], "first_loss": first}


def require(ok: bool, policy: str, name: str, value: object, wanted: str) -> None:
    """Refuse a policy's setting.

    Raises:
        ConfigError: unless `ok`.
    """
    if not ok:
        raise ConfigError(f"{policy}({name}={value!r}) is not usable: give {wanted}")


def _floats(value: object) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else ()
