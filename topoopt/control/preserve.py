"""Preserve: never past the topological critical learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from topoopt.control.policy import Reading, State
from topoopt.control.tracking import curvatures, require
from topoopt.measurement import Decision

MEMORY = 3
"""Readings whose largest curvature counts: one lucky mini-batch does not raise the rate."""


@dataclass(frozen=True)
class Preserve:
    """Keep r <= `target`, so that the step stays bi-Lipschitz on the neurons; never raises the user's rate.

    Below its edge a network's sharpness no longer stabilises itself: it may keep rising while the rate keeps falling
    (Roulet et al. 2024). So the factor has a floor, and the record says when it sits there.

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
        require(self.target > 0, "Preserve", "target", self.target, "a positive r, below 1 to keep the guarantee")
        require(0 <= self.floor <= 1, "Preserve", "floor", self.floor, "a factor in [0, 1]")
        require(self.interval >= 1, "Preserve", "interval", self.interval, "a whole number of steps >= 1")

    def start(self) -> State:
        """Nothing seen yet."""
        return {"curvatures": []}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Factor = min(1, target / r), with r from the largest of the last curvatures at the rate of now."""
        seen = curvatures(reading, state, MEMORY)
        after: State = {"curvatures": seen}
        if not seen or reading.lr == 0:
            return Decision(1.0, self.name, "none", f"r is not known yet ({reading.reason or 'no rate'})"), after
        wanted = self.target / (max(seen) * reading.lr)
        if wanted >= 1.0:
            return Decision(1.0, self.name, "none"), after
        if wanted < self.floor:
            note = (
                f"the factor sits on its floor: r <= {self.target:g} would need {wanted:.2g}; sharpness can go on "
                "rising while the rate falls"
            )
            return Decision(self.floor, self.name, "floor", note), after
        return Decision(wanted, self.name, "target"), after
