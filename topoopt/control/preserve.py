"""Preserve: never past the topological critical learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from topoopt.control.checks import require_number, require_whole
from topoopt.control.policy import Reading, State
from topoopt.control.tracking import SMALLEST, bounded, curvature, curvatures, unknown
from topoopt.measurement import Decision

MEMORY = 3
"""Readings whose largest curvature counts: one lucky mini-batch does not raise the rate."""


@dataclass(frozen=True)
class Preserve:
    """Keep r <= `target`, so that the step stays bi-Lipschitz on the neurons; never raises the user's rate.

    It works on r alone, so it needs no edge. While a preconditioner warms up r is an upper bound, which is kept to and
    not remembered. Below its edge a network's sharpness no longer stabilises itself: it may keep rising while the rate
    keeps falling (Roulet et al. 2024). So the factor has a floor, and the record says when it sits there.

    Args:
        target: largest r; below 1 the guarantee holds.
        floor: smallest factor on the user's rate.
        interval: steps between readings of r while it moves fast; steady readings are taken less and less often.
    """

    target: float = 0.9
    floor: float = 0.01
    interval: int = 10
    name = "preserve"
    steers = True

    def __post_init__(self) -> None:
        require_number("Preserve", "target", self.target, "a positive r, below 1 to keep the guarantee", 0)
        require_number("Preserve", "floor", self.floor, "a factor in [0, 1]", -SMALLEST, 1)
        require_whole("Preserve", "interval", self.interval)

    def start(self) -> State:
        """Nothing seen yet."""
        return {"curvatures": []}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Factor = min(1, target / r), with r from the largest of the last curvatures at the rate of now."""
        seen = curvatures(reading, state, MEMORY)
        after: State = {"curvatures": seen}
        if reading.lr <= 0:
            return Decision(1.0, self.name, "none", "the user's rate is 0: there is nothing to scale"), after
        now = curvature(reading) if reading.warming else math.nan
        known = seen if math.isnan(now) else [*seen, now]
        if not known:
            return Decision(1.0, self.name, "none", unknown(reading)), after
        wanted = self.target / (max(known) * reading.lr)
        if wanted >= 1.0:
            return Decision(1.0, self.name, "none"), after
        if wanted < self.floor:
            note = (
                f"the factor sits on its floor: r <= {self.target:g} would need {wanted:.2g}; sharpness can go on "
                "rising while the rate falls"
            )
            return Decision(bounded(self.floor), self.name, "floor", note), after
        return Decision(bounded(wanted), self.name, "target", reading.warming), after
