"""Schedule: one policy after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from topoopt.control.checks import is_number, require, require_policy
from topoopt.control.policy import Policy, Reading, State
from topoopt.control.tracking import said
from topoopt.measurement import Decision


@dataclass(frozen=True)
class Schedule:
    """Large then small, in phases: `Schedule({0: Simplify(), 0.3: Preserve()})`.

    Args:
        phases: start -> policy. A whole number is a step; a fraction in (0, 1) is a share of the run. Where the run's
            length is not known (`optimizer.total_steps`; Trainer sets it), phases that start at a fraction do not begin,
            and the record says so. One phase starts at 0; of two that fall on one step that with the larger key counts.
    """

    phases: Mapping[float, Policy]
    name = "schedule"

    def __post_init__(self) -> None:
        wanted = "a mapping from starts to policies, with a phase that starts at 0"
        require(isinstance(self.phases, Mapping) and 0 in self.phases, "Schedule", "phases", self.phases, wanted)
        for start, policy in self.phases.items():
            step = is_number(start) and start >= 0 and (start < 1 or float(start).is_integer())
            require(step, "Schedule", "phases", start, "whole numbers of steps, or fractions in (0, 1), as keys")
            require_policy("Schedule", f"phases[{start!r}]", policy)

    @property
    def steers(self) -> bool:
        """Whether any phase does."""
        return any(policy.steers for policy in self.phases.values())

    @property
    def interval(self) -> int:
        """The shortest of the phases'."""
        return min(getattr(policy, "interval", 100) for policy in self.phases.values())

    @property
    def needs(self) -> int:
        """The most that any of the phases needs."""
        return max(getattr(policy, "needs", 1) for policy in self.phases.values())

    def start(self) -> State:
        """No phase entered yet."""
        return {"phase": None, "inner": {}}

    def stale(self, step: int, total_steps: int | None, state: State) -> bool:
        """Whether another phase begins at this step, or the phase of now wants a reading."""
        key = self._active(step, total_steps)
        return state["phase"] != key or wish(self.phases[key], "stale", step, total_steps, state["inner"])

    def rests(self, step: int, state: State) -> bool:
        """What the phase that was last entered says."""
        return self._ask("rests", step, state)

    def looks(self, step: int, state: State) -> bool:
        """What the phase that was last entered says; before the first, what the first will say."""
        return self._ask("looks", step, state)

    def watches(self, step: int, state: State) -> bool:
        """What the phase that was last entered says."""
        return self._ask("watches", step, state)

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """What the phase of now says; a phase that begins starts without memory."""
        key = self._active(reading.step, reading.total_steps)
        policy, first, entered = self.phases[key], state["phase"] is None, state["phase"] != key
        inner = policy.start() if entered else state["inner"]
        assert isinstance(inner, dict)
        decision, inner = policy.decide(reading, inner)
        missing = self._unreachable(reading.total_steps)
        events = (missing,) if first and missing else (f"hand-over to {policy.name}",) if entered and not first else ()
        decision = replace(decision, note=said(decision.note, missing), events=(*events, *decision.events))
        return decision, {"phase": key, "inner": inner}

    def _active(self, step: int, total_steps: int | None) -> float:
        """Key of the phase that `step` lies in."""
        begins = [(int(key), key) for key in self.phases if key >= 1 or key == 0]
        if total_steps is not None:
            begins += [(round(key * total_steps), key) for key in self.phases if 0 < key < 1]
        return max(begin for begin in begins if begin[0] <= step)[1]

    def _ask(self, name: str, step: int, state: State) -> bool:
        key, inner = state["phase"], state["inner"]
        policy = self.phases[0] if key is None else self.phases[key]  # type: ignore[index]
        return wish(policy, name, step, policy.start() if key is None else inner)

    def _unreachable(self, total_steps: int | None) -> str:
        waiting = [f"{start:g}" for start in sorted(self.phases) if 0 < start < 1]
        if total_steps is not None or not waiting:
            return ""
        return (
            f"the phases that start at {', '.join(waiting)} of the run cannot begin: its length is not known; set "
            "optimizer.total_steps, or give steps"
        )


def wish(policy: Policy, name: str, *args: object) -> bool:
    """What a policy answers to one of its optional questions; False where it has not got it."""
    question = getattr(policy, name, None)
    return bool(question(*args)) if question is not None else False
