"""What the steering policies share: the curvature per unit of rate, factors within bounds, a watch over the loss."""

from __future__ import annotations

import math
from statistics import median

from topoopt.control.policy import Reading, State

LOSSES = 21
"""Length of the loss history whose median a loss is held against."""
SLACK = 0.2
"""A loss is also allowed this share of the run's first one: a small loss may double without any harm."""
FLAT = 1e-30
"""A curvature per unit of rate below this is no curvature at all: nothing to divide by."""
PATIENCE = 3
"""Losses that must have been seen before one can be called a spike."""
SMALLEST, LARGEST = 1e-12, 1e6
"""A factor lies between them, or is refused."""
GRADIENT_DESCENT = 2.0
"""The edge e of gradient descent, which stands in for the edge of a rule that is not known."""


def curvature(reading: Reading) -> float:
    """K = r / lr: r is proportional to the learning rate at fixed curvature, so K stays when a scheduler moves the rate.

    NaN when r is unknown or there is nothing to divide by.
    """
    value = reading.r / reading.lr if reading.lr > 0 else math.nan
    return value if FLAT < value < math.inf else math.nan


def curvatures(reading: Reading, state: State, memory: int) -> list[float]:
    """K of the last `memory` readings in which r was known and of the run itself, the newest last."""
    known, now = list(floats(state.get("curvatures"))), curvature(reading)
    if reading.fresh and not reading.warming and not math.isnan(now):
        known.append(now)
    return known[-memory:]


def edge_of(reading: Reading) -> tuple[float, str]:
    """The rule's edge e, and what must be said where it is not known."""
    if reading.edge is not None:
        return reading.edge, ""
    rule = reading.rule or "this rule"
    return GRADIENT_DESCENT, f"the edge of {rule} is not known: gradient descent's, {GRADIENT_DESCENT:g}, stands in"


def unknown(reading: Reading) -> str:
    """Why the user's own rate is in force when r has not been read yet."""
    return f"r is not known: {reading.reason or 'it has not been read yet'}; the user's own rate is in force"


def bounded(scale: float) -> float:
    """The factor within the bounds beyond which it would be refused."""
    return min(max(scale, SMALLEST), 0.999 * LARGEST)


def said(*notes: str) -> str:
    """The notes that are not empty, as one."""
    return "; ".join(note for note in notes if note)


def watch_loss(reading: Reading, state: State, guard: float) -> tuple[str, State]:
    """Hold the reading's loss against its own history; returns what is wrong ("" for nothing) and the new history.

    A loss is a spike above `guard` times the running median plus a fifth of the first loss; it joins the history all the
    same, so that a new level is got used to. Getting used to it ends a fifth above the run's first loss.
    """
    losses = list(floats(state.get("losses")))
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


def floats(value: object) -> tuple[float, ...]:
    """A list out of a policy's memory, as floats; empty for anything else."""
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else ()
