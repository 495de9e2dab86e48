"""Simplify: to the edge of stability on purpose, with guards, and until an end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from topoopt.control.policy import Policy, Reading, State
from topoopt.control.preserve import Preserve
from topoopt.control.tracking import curvatures, require, watch_loss
from topoopt.measurement import Decision

GROWTH = 1.3
"""Largest growth of the rate from one reading to the next."""
BRAKE = 0.5
"""What a guard does to the rate."""


@dataclass(frozen=True)
class Simplify:
    """Take r to `target` times the edge e and hold it there, where neurons were seen to merge and loops to vanish.

    Args:
        target: in units of e. In the figure-eight experiment 0.975 keeps the loops and 1.025 removes them.
        ceiling: largest learning rate, as a multiple of the peak of the user's own.
        guard: a loss above this times its running median halves the rate.
        steps: hand over after this many steps; None: no limit.
        vanishing: hand over when this many neurons are negligible.
        twins: hand over when this many neurons have a near twin.
        persistence: hand over when total persistence of degree >= 1 has fallen to this share of its first value.
        then: the policy that takes over at the end.
        interval: steps between readings of r while it moves fast.
    """

    target: float = 1.03
    ceiling: float = 10.0
    guard: float = 3.0
    steps: int | None = None
    vanishing: int | None = None
    twins: int | None = None
    persistence: float | None = None
    then: Policy = field(default_factory=Preserve)
    interval: int = 10
    name = "simplify"
    steers = True

    def __post_init__(self) -> None:
        require(self.target > 0, "Simplify", "target", self.target, "a positive multiple of the edge e")
        require(self.ceiling > 0, "Simplify", "ceiling", self.ceiling, "a positive multiple of the user's peak rate")
        require(self.guard > 1, "Simplify", "guard", self.guard, "a factor above 1 on the running median of the loss")
        require(self.interval >= 1, "Simplify", "interval", self.interval, "a whole number of steps >= 1")
        share = self.persistence
        require(share is None or 0 <= share < 1, "Simplify", "persistence", share, "a share in [0, 1), or None")

    def start(self) -> State:
        """Nothing seen yet, the end not reached."""
        return {"curvatures": [], "losses": [], "first_loss": None, "rate": None, "began": None, "persistence": None}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Factor = target e / r within the guards; after the end, what `then` says."""
        if "then" in state:
            return self._hand_over(reading, state)
        began = state["began"] if isinstance(state["began"], int) else reading.step
        first = state["persistence"] if isinstance(state["persistence"], float) else _known(reading.total_persistence)
        end = self._end(reading, began, first)
        if end:
            decision, after = self._hand_over(reading, {"then": self.then.start()})
            return replace(decision, events=(f"simplify ended: {end}", *decision.events)), after
        trouble, losses = watch_loss(reading, state, self.guard)
        seen = curvatures(reading, state, 1)
        scale, rule, note = self._scale(reading, state, seen, trouble)
        rate = scale * reading.lr if reading.lr > 0 else state["rate"]
        after: State = {**losses, "curvatures": seen, "rate": rate, "began": began, "persistence": first}
        return Decision(scale, self.name, rule, note, (f"guard: {trouble}",) if trouble else ()), after

    def _scale(self, reading: Reading, state: State, seen: list[float], trouble: str) -> tuple[float, str, str]:
        """Return the factor, what limited it, and a note."""
        lr, last = reading.lr, state["rate"]
        if lr == 0:
            return 1.0, "none", "the user's rate is 0"
        if not reading.fresh and isinstance(last, float):
            return last / lr, "target", ""
        if trouble:
            return BRAKE * (last if isinstance(last, float) else lr) / lr, "guard", trouble
        if not seen:
            return 1.0, "none", f"r is not known yet ({reading.reason})"
        limits = {"target": self.target * reading.edge / seen[-1], "ceiling": self.ceiling * reading.base_lr}
        if isinstance(last, float):  # the first rate is a measured one: where it leads must not hang on the user's own
            limits["growth"] = GROWTH * last
        rule = min(limits, key=lambda name: limits[name])
        return limits[rule] / lr, rule, ""

    def _end(self, reading: Reading, began: int, first: float | None) -> str:
        """Return why the end is reached, "" while it is not."""
        if self.steps is not None and reading.step - began >= self.steps:
            return f"{self.steps} steps have passed"
        if self.vanishing is not None and reading.vanishing >= self.vanishing:
            return f"{reading.vanishing} neurons are vanishing"
        if self.twins is not None and reading.twins >= self.twins:
            return f"{reading.twins} neurons have a twin"
        now = _known(reading.total_persistence)
        if self.persistence is not None and first and now is not None and now <= self.persistence * first:
            return f"total persistence fell to {now / first:.3g} of its first value"
        return ""

    def _hand_over(self, reading: Reading, state: State) -> tuple[Decision, State]:
        inner = state["then"]
        assert isinstance(inner, dict)
        decision, after = self.then.decide(reading, inner)
        return decision, {"then": after}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
