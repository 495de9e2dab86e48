"""The approach: from a tiny rate to where r stands at its target, by warm readings on the steps' own batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from topoopt.suggestion.rehearsal import Rehearsal
from topoopt.suggestion.result import RateReading

FIRST_RATE = 1e-5
"""The approach's first rate: below what a network that starts from random weights, or is fine-tuned, needs."""
DESCENT = 2.0
"""The edge that stands in for one that is not known: gradient descent's."""
EVERY = 3
"""Steps from one reading to the next."""
GROWTH = 2.5
"""Largest change of the rate from one reading to the next, up or down."""
AFTER = 1.25
"""Largest growth once r has been above its target."""
MEMORY = 5
"""Readings whose median curvature counts: that of single batches is heavy-tailed under Adam."""
LOST = 2.0
"""Two losses in a row above the first by more than this many times the first end the approach: single small batches may have
such a loss, and be far from lost."""
MOVED = 0.02
"""Share of the first loss that must be off for a network to count as learning."""
SHARE_OF_EDGE, POWER = 0.5, 0.43
"""Fitted: in a loop that raises the rate, runs that end lowest have r/e about .5 at momentum .9; the power of (1 - momentum)
is from two tasks under Adam, at .5 and .95. Good for a beginning (the trials choose): `benchmarks/README.md` has the test."""


def target(edge: float, momentum: float) -> float:
    """r that the approach goes to: a share of the edge that falls with the momentum, at most the edge."""
    return min(1.0, SHARE_OF_EDGE * ((1 - momentum) / 0.1) ** POWER) * edge


def momentum_of(groups: Sequence[Mapping[str, Any]]) -> float:
    """The largest momentum of the parameter groups, by whichever name it goes; 0 where there is none."""
    betas = [group["betas"][0] if "betas" in group else group.get("momentum", group.get("beta1")) for group in groups]
    return min(0.999, max((float(beta) for beta in betas if beta is not None), default=0.0))


def approach(
    rehearsal: Rehearsal, batches: Sequence[Any], reference: float, momentum: float
) -> tuple[float, list[RateReading]]:
    """Bring r to its target; `reference` is the user's rate that factors are multiples of.

    The curvature K = r / rate is not what it was once the rate is another: it gives way to larger rates, and in a network's
    first steps under Adam it reads far too high. So the rate is not computed but approached, by at most `GROWTH` a reading,
    and by less once r has been above its target: a network that was lost there reads low again.

    Returns:
        The rate where it ended, and the readings on the way. If the loss was lost, or came back to where it began: the rate
        before r was first above its target.
    """
    course, readings, first, last = _Course(momentum), [], math.inf, -math.inf
    for step, batch in enumerate(batches):
        rehearsal.at(course.rate / reference)
        loss = rehearsal.backward(batch)
        first = loss if step == 0 else first
        last, lower = loss, min(loss, last)
        if not math.isfinite(loss) or lower - first > LOST * abs(first):
            readings.append(RateReading(step, course.rate, math.nan, math.nan, loss))
            return course.safe, readings
        if step % EVERY == EVERY - 1:
            seen = rehearsal.read(batch)
            edge = DESCENT if seen.edge is None else seen.edge
            readings.append(RateReading(step, course.rate, seen.r, edge, loss))
            if course.crossed and loss - first > -MOVED * abs(first):
                return course.safe, readings
            course.take(seen.r, edge)
            rehearsal.at(course.rate / reference)
        rehearsal.step()
    return course.rate, readings


class _Course:
    """The rate, as readings move it."""

    def __init__(self, momentum: float) -> None:
        self.rate, self.crossed = FIRST_RATE, False
        self._momentum, self._below, self._curvatures = momentum, FIRST_RATE, []

    @property
    def safe(self) -> float:
        """The last rate before r was above its target; without such a reading, two readings back."""
        return self._below if self.crossed else self.rate / GROWTH**2

    def take(self, r: float, edge: float) -> None:
        """Move the rate towards where the median curvature puts the target."""
        if not r > 0:  # not known, or nothing that moves
            return
        goal = target(edge, self._momentum)
        self.crossed = self.crossed or r > goal
        if not self.crossed:
            self._below = self.rate
        self._curvatures = [*self._curvatures[1 - MEMORY :], math.log(r / self.rate)]
        wanted = goal / math.exp(statistics.median(self._curvatures))
        growth = 1.0 if r > goal else AFTER if self.crossed else GROWTH  # the median lags where curvature sets in
        self.rate = min(max(wanted, self.rate / GROWTH), self.rate * growth)
