"""From a reading to the factor on the coming step's learning rate; a fault gives the user's own rate back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from topoopt.control import Policy, Reading, State
from topoopt.errors import TopoError
from topoopt.measurement import Decision, Measurement, SpectralReading

JUMP = 1.5
"""A user's rate that grows by more than this from one step to the next makes the last reading stale."""
CALM = 0.05
"""A curvature that moved by less than this (relative) since the last reading lets the next one wait twice as long."""


@dataclass(frozen=True)
class _Seen:
    """What a policy may know of the last measurement; plain numbers, so that it survives a checkpoint."""

    gain: float = math.nan
    gain_per_rate: float = math.nan
    vanishing: int = 0
    twins: int = 0
    total_persistence: float = math.nan


class Steering:
    """Holds a policy's memory, the decision in force, and when to look again.

    Readings come at every step at first, then ever more rarely: each doubles the wait up to the policy's `interval`,
    and beyond it up to `every` as long as the curvature stays calm and the factor is where the policy wants it.
    """

    def __init__(self, policy: Policy, every: int, declared: str = "") -> None:
        self.policy, self.declared = policy, declared
        self.state: State = policy.start()
        self.decision = Decision(1.0, policy.name, "none")
        self.readings = 0
        self._reading: Reading | None = None
        self._seen = _Seen()
        self._every = every
        self._interval = min(every, int(getattr(policy, "interval", every)))
        self._wait = 1
        self._next = 0
        self._last_rates: tuple[float, ...] | None = None

    # -- when to look ------------------------------------------------------------------------------------------------

    def due(self, step: int, rates: tuple[float, ...] | None, total_steps: int | None) -> bool:
        """Whether r must be read before this step: the last reading is old, or something has made it stale."""
        last, self._last_rates = self._last_rates, rates
        if rates is not None and (
            last is None or len(last) != len(rates) or any(now > JUMP * then for now, then in zip(rates, last))
        ):
            self._next, self._wait = step, 1
        stale = getattr(self.policy, "stale", None)
        return step >= self._next or (stale is not None and stale(step, total_steps, self.state))

    def _look_again(self, step: int, before: Reading | None) -> None:
        now = self._reading
        calm = False
        if before is not None and now is not None and before.r > 0 and now.r > 0 and before.lr > 0 and now.lr > 0:
            drift = abs(math.log(now.r / now.lr * before.lr / before.r))
            calm = drift < CALM and self.decision.rule not in ("growth", "start", "guard")
        if calm:
            self._wait = min(2 * self._wait, self._every)
        elif self._wait < self._interval:
            self._wait = min(2 * self._wait, self._interval)
        else:
            self._wait = max(self._wait // 2, self._interval)
        self._next = step + self._wait

    # -- what to do --------------------------------------------------------------------------------------------------

    def decide(self, seen: SpectralReading, step: int, lr: float, base_lr: float, total_steps: int | None) -> Decision:
        """Let the policy see a fresh reading; its memory and its factor are kept until the next one."""
        before, self._reading = self._reading, self._read(seen, step, lr, base_lr, total_steps)
        self.readings += 1
        self.decision, self.state = self.policy.decide(self._reading, self.state)
        _check(self.decision)
        self._look_again(step, before)
        return self.decision

    def _read(self, seen: SpectralReading, step: int, lr: float, base_lr: float, total_steps: int | None) -> Reading:
        # Without a spectral end the last measured step's gain stands in, per unit of rate: a lower bound on r.
        r = seen.r if not math.isnan(seen.r) else self._seen.gain_per_rate * lr
        return Reading(
            step=step,
            r=r,
            edge=2.0 if seen.edge is None else seen.edge,
            lr=lr,
            base_lr=base_lr,
            scale=self.decision.scale,
            loss=seen.loss,
            total_steps=total_steps,
            gain=self._seen.gain,
            vanishing=self._seen.vanishing,
            twins=self._seen.twins,
            total_persistence=self._seen.total_persistence,
            finite=not math.isinf(seen.loss) and "not finite" not in seen.reason,
            rule=seen.rule,
            reason=seen.reason,
        )

    def between(self, step: int, lr: float | None) -> float:
        """Return the factor for a step without a reading, whose rate may have moved since the last one.

        r is proportional to the rate at fixed curvature, so the policy is asked what it would do at r * lr / lr_then;
        it is a pure function, so asking leaves its memory alone.
        """
        last = self._reading
        if lr is None or last is None or lr == last.lr or not last.lr > 0 or math.isnan(last.r):
            return self.decision.scale
        moved = replace(last, step=step, r=last.r * lr / last.lr, lr=lr, loss=math.nan, fresh=False)
        decision, _ = self.policy.decide(moved, self.state)
        _check(decision)
        return decision.scale

    def remember(self, last: Measurement) -> None:
        """Keep of a measurement what the policy may know at its next reading."""
        rate = max(last.lr, default=0.0) * last.lr_scale
        groups = last.groups.values()
        persistence = [sum(group.total_persistence[1:]) for group in groups if len(group.total_persistence) > 1]
        self._seen = _Seen(
            gain=last.r_pair,
            gain_per_rate=last.r_pair / rate if rate > 0 else math.nan,
            vanishing=sum(group.vanishing for group in groups),
            twins=sum(group.twins for group in groups),
            total_persistence=sum(persistence) if persistence else math.nan,
        )

    def release(self, reason: str) -> Decision:
        """Fall back to the user's own rate after a fault, and say so."""
        self.decision = Decision(1.0, self.policy.name, "fault", f"the user's own rate is in force: {reason}")
        self._reading = None
        return self.decision

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: a resumed run steers on as the unbroken one."""
        return {
            "policy": self.policy.name,
            "state": self.state,
            "decision": {**asdict(self.decision), "events": list(self.decision.events)},
            "reading": None if self._reading is None else asdict(self._reading),
            "seen": asdict(self._seen),
            "readings": self.readings,
            "wait": self._wait,
            "next": self._next,
            "last_rates": None if self._last_rates is None else list(self._last_rates),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved memory; one written by another policy is of no use, and the next step is read afresh."""
        self._seen = _Seen(**state["seen"])
        if state["policy"] != self.policy.name:
            return
        self.state = state["state"]
        self.decision = Decision(**{**state["decision"], "events": tuple(state["decision"]["events"])})
        self._reading = None if state["reading"] is None else Reading(**state["reading"])
        self.readings, self._wait, self._next = int(state["readings"]), int(state["wait"]), int(state["next"])
        self._last_rates = None if state["last_rates"] is None else tuple(state["last_rates"])


def _check(decision: Decision) -> None:
    if not (math.isfinite(decision.scale) and decision.scale >= 0):
        raise TopoError(
            f"policy {decision.policy!r} returned the factor {decision.scale}: a factor must be finite and not negative"
        )
