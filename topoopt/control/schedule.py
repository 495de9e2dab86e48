"""Schedule: one policy after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from topoopt.control.policy import Policy, Reading, State
from topoopt.control.tracking import require
from topoopt.errors import ConfigError
from topoopt.measurement import Decision


@dataclass(frozen=True)
class Schedule:
    """Large then small, in phases: `Schedule({0: Simplify(), 0.3: Preserve()})`.

    Args:
        phases: start -> policy. A whole number is a step; a fraction in (0, 1) is a share of the run, whose length must
            then be known (`optimizer.total_steps`; Trainer sets it). One phase starts at 0.
    """

    phases: Mapping[float, Policy]
    name = "schedule"

    def __post_init__(self) -> None:
        require(
            bool(self.phases) and 0 in self.phases, "Schedule", "phases", dict(self.phases), "a phase that starts at 0"
        )
        for start in self.phases:
            number = isinstance(start, int | float) and not isinstance(start, bool) and start >= 0
            require(number, "Schedule", "phases", start, "steps (whole numbers) or fractions in (0, 1) as keys")
            fraction = isinstance(start, int) or start < 1 or float(start).is_integer()
            require(fraction, "Schedule", "phases", start, "a whole number of steps, or a fraction in (0, 1)")

    @property
    def steers(self) -> bool:
        """Whether any phase does."""
        return any(policy.steers for policy in self.phases.values())

    @property
    def interval(self) -> int:
        """The shortest of the phases'."""
        return min(getattr(policy, "interval", 100) for policy in self.phases.values())

    def start(self) -> State:
        """No phase entered yet."""
        return {"phase": None, "inner": {}}

    def stale(self, step: int, total_steps: int | None, state: State) -> bool:
        """Whether another phase begins at this step."""
        return state["phase"] != self._active(step, total_steps)[0]

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """What the phase of now says; a phase that begins starts without memory.

        Raises:
            ConfigError: when a start is a fraction and the run's length is unknown.
        """
        begin, policy = self._active(reading.step, reading.total_steps)
        entered = state["phase"] != begin
        inner = policy.start() if entered else state["inner"]
        assert isinstance(inner, dict)
        decision, inner = policy.decide(reading, inner)
        if entered and state["phase"] is not None:
            decision = replace(decision, events=(f"hand-over to {policy.name}", *decision.events))
        return decision, {"phase": begin, "inner": inner}

    def _active(self, step: int, total_steps: int | None) -> tuple[int, Policy]:
        started = {self._step(start, total_steps): policy for start, policy in self.phases.items()}
        begin = max(start for start in started if start <= step)
        return begin, started[begin]

    @staticmethod
    def _step(start: float, total: int | None) -> int:
        if start >= 1 or start == 0:
            return int(start)
        if total is None:
            raise ConfigError(
                f"Schedule has a phase that starts at the fraction {start} of a run of unknown length: "
                "set optimizer.total_steps, or give steps"
            )
        return round(start * total)
