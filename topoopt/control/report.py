"""Report: measure and leave the learning rate alone."""

from __future__ import annotations

from dataclasses import dataclass

from topoopt.control.policy import Reading, State
from topoopt.measurement import Decision


@dataclass(frozen=True)
class Report:
    """Measure and report; the learning rate is never touched."""

    name = "report"
    steers = False

    def start(self) -> State:
        """No memory."""
        return {}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Always the user's own rate."""
        return Decision(1.0, self.name, "none"), state
