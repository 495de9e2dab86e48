"""From a reading to the factor on the coming step's learning rate; a fault gives the user's own rate back."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from topoopt.control import Policy, Reading, State
from topoopt.errors import TopoError
from topoopt.measurement import Decision

JUMP = 1.5
"""A user's rate that grows by more than this from one step to the next makes the last measurement stale."""


class Steering:
    """Holds a policy's memory and the decision in force."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: State = policy.start()
        self.decision = Decision(1.0, policy.name, "none")
        self.reading: Reading | None = None
        self.stale = True
        self._last_lr: tuple[float, ...] | None = None

    def decide(self, reading: Reading) -> Decision:
        """Let the policy see a fresh reading; its memory and its factor are kept until the next one."""
        self.decision, self.state = self.policy.decide(reading, self.state)
        _check(self.decision)
        self.reading = reading
        self.stale = False
        return self.decision

    def between(self, step: int, lr: float) -> float:
        """Return the factor for an unmeasured step whose rate has moved since the last reading.

        r is proportional to the rate at fixed curvature, so the policy is asked what it would do at r * lr / lr_then; it
        is a pure function, so asking leaves its memory alone.
        """
        last = self.reading
        if last is None or lr == last.lr or not last.lr > 0 or math.isnan(last.r):
            return self.decision.scale
        moved = replace(last, step=step, r=last.r * lr / last.lr, lr=lr, scale=self.decision.scale)
        decision, _ = self.policy.decide(moved, self.state)
        _check(decision)
        return decision.scale

    def watch(self, rates: tuple[float, ...]) -> bool:
        """Note the user's rates at this step; True when they make the last measurement stale (a jump, a new group)."""
        last, self._last_lr = self._last_lr, rates
        if last is None or len(last) != len(rates) or any(now > JUMP * then for now, then in zip(rates, last)):
            self.stale = True
        return self.stale

    def release(self, reason: str) -> Decision:
        """Fall back to the user's own rate after a fault, and say so."""
        self.decision = Decision(1.0, self.policy.name, "fault", f"the user's own rate is in force: {reason}")
        self.reading = None
        return self.decision

    def state_dict(self) -> dict[str, Any]:
        """Plain values: a resumed run steers on as the unbroken one."""
        return {
            "policy": self.policy.name,
            "state": self.state,
            "decision": {**asdict(self.decision), "events": list(self.decision.events)},
            "reading": None if self.reading is None else asdict(self.reading),
            "stale": self.stale,
            "last_lr": None if self._last_lr is None else list(self._last_lr),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved memory; one written by another policy is of no use and the next step measures afresh."""
        if state["policy"] != self.policy.name:
            self.stale = True
            return
        self.state = state["state"]
        self.decision = Decision(**{**state["decision"], "events": tuple(state["decision"]["events"])})
        self.reading = None if state["reading"] is None else Reading(**state["reading"])
        self.stale = state["stale"]
        self._last_lr = None if state["last_lr"] is None else tuple(state["last_lr"])


def _check(decision: Decision) -> None:
    if not (math.isfinite(decision.scale) and decision.scale >= 0):
        raise TopoError(
            f"policy {decision.policy!r} returned the factor {decision.scale}: a factor must be finite and not negative"
        )
