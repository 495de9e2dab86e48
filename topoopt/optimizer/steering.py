"""From a reading to the factor on the coming step's learning rate; a fault gives the user's own rate back.

What the run does before a step, with what costs it can afford:

    if steering.looks(step) and affordable:       measure the neurons, wait for homology, steering.remember(measurement)
    if steering.due(step, rates, total) and affordable:   factor = steering.decide(reading of r, ...)
    elif steering.watches(step):                  factor = steering.decide(reading with the loss alone, ...)
    else:                                         factor = steering.between(step, rate)

`due`, `looks` and `watches` say what is *wanted*. What the budget refuses is simply not done: `between` gives the factor, and
what was wanted is wanted again at the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from topoopt.control import Policy, Reading, State, wish
from topoopt.errors import TopoError
from topoopt.measurement import Decision, Measurement, SpectralReading
from topoopt.optimizer.seen import Seen, what_was_seen

JUMP = 1.5
"""A user's rate that grows by more than this from one step to the next makes the last reading stale."""
CALM = 0.05
"""A curvature that moved by less than this (relative) since the last reading lets the next one wait twice as long."""
MOVING = ("growth", "start", "guard", "warming")
"""Rules of a decision whose factor is still on its way."""
TOLD = 0.02
"""A factor that moves with the user's rate between readings is reported anew when it has moved by this share."""
FAULTS = 3
"""Faults after which a policy is switched off."""
PAUSE = 16
"""Steps that pass after a fault before the policy is asked again; four times as many after each further one."""
LARGEST = 1e6
"""A factor lies in (0, LARGEST)."""

OnChange = Callable[[int, Decision], None]


@dataclass
class _Breaker:
    """How often the policy has failed, and from which step on it may be asked again."""

    faults: int = 0
    until: float = -1
    reason: str = ""

    def trip(self, step: int, reason: str) -> None:
        self.faults += 1
        self.until = math.inf if self.faults >= FAULTS else step + PAUSE * 4 ** (self.faults - 1)
        self.reason = reason


class Steering:
    """Holds a policy's memory, the decision in force, and when to look again.

    Readings come at every step at first, then ever more rarely: each doubles the wait up to the policy's `interval`,
    and beyond it up to `every` as long as the curvature stays calm and the factor is where the policy wants it.

    Args:
        policy: what decides.
        every: longest wait between readings, in steps.
        declared: what must be said of steering this optimizer, if anything.
        snapshot: whether the run can remember its weights and go back to them.
        losses: whether the run can show the loss of a step without reading r; if not, a step whose loss is wanted is `due`.
        on_change: called with the step and the decision whenever the factor, its rule or its policy changes, and for every
            decision that has events or asks for weights: between two calls the factor in force moved by less than 2 %.
    """

    def __init__(
        self,
        policy: Policy,
        every: int,
        declared: str = "",
        *,
        snapshot: bool = False,
        losses: bool = False,
        on_change: OnChange | None = None,
    ) -> None:
        self.policy, self.declared = policy, declared
        self.snapshot, self.losses, self.on_change = snapshot, losses, on_change
        self.state: State = policy.start()
        self.decision = Decision(1.0, policy.name, "none")
        self.readings = 0
        self._told = self.decision
        self._breaker = _Breaker()
        self._reading: Reading | None = None
        self._seen = Seen()
        self._every = every
        self._interval = min(every, int(getattr(policy, "interval", every)))
        self._wait = 1
        self._next = 0
        self._step = 0
        self._peak = 0.0
        self._last_rates: tuple[float, ...] | None = None

    # -- what is wanted ----------------------------------------------------------------------------------------------

    def due(self, step: int, rates: tuple[float, ...] | None, total_steps: int | None) -> bool:
        """Whether r is to be read before this step: the last reading is old, or something has made it stale.

        Call it at every step: it also sees how the user's rates move.
        """
        self._step = step
        last, self._last_rates = self._last_rates, rates
        if rates is not None:
            self._peak = max(self._peak, *rates, 0.0)
            if (
                last is None
                or len(last) != len(rates)
                or any(now > JUMP * then for now, then in zip(rates, last, strict=True))
            ):
                self._next, self._wait = step, 1
        if step < self._breaker.until:
            return False
        if wish(self.policy, "stale", step, total_steps, self.state):
            return True
        if not self.losses and self.watches(step):
            return True
        return step >= self._next and not wish(self.policy, "rests", step, self.state)

    def looks(self, step: int) -> bool:
        """Whether the neurons are to be measured, with homology waited for, before this step."""
        return step >= self._breaker.until and wish(self.policy, "looks", step, self.state)

    def watches(self, step: int) -> bool:
        """Whether the loss of this step is wanted, be r read or not."""
        return step >= self._breaker.until and wish(self.policy, "watches", step, self.state)

    def _look_again(self, step: int, before: Reading | None) -> None:
        now = self._reading
        calm = False
        if before is not None and now is not None and before.r > 0 and now.r > 0 and before.lr > 0 and now.lr > 0:
            drift = abs(math.log(now.r / now.lr * before.lr / before.r))
            calm = drift < CALM and self.decision.rule not in MOVING
        if calm:
            self._wait = min(2 * self._wait, self._every)
        elif self._wait < self._interval:
            self._wait = min(2 * self._wait, self._interval)
        else:
            self._wait = max(self._wait // 2, self._interval)
        self._next = step + self._wait

    # -- what to do --------------------------------------------------------------------------------------------------

    def decide(self, seen: SpectralReading, step: int, lr: float, base_lr: float, total_steps: int | None) -> Decision:
        """Let the policy see a fresh reading; its memory and its factor are kept until the next one.

        A reading of the loss alone has r = NaN and its loss; a loss that was seen and is NaN is given as inf (NaN: not seen),
        or the reading's reason says "not finite". Without r there is no steering: r_pair is a lower bound on r,
        and a policy that knows nothing else leaves the user's rate alone and says what is missing.

        Raises:
            TopoError: for a factor that is no number in (0, 1e6), or a decision that is none.
        """
        if step < self._breaker.until:
            return self.decision
        before, self._reading = self._reading, self._read(seen, step, lr, base_lr, total_steps)
        decision, state = _checked(self.policy, self.policy.decide(self._reading, self.state))
        if decision.policy != self.decision.policy:  # another policy has taken over, and knows nothing yet
            self._wait = 1
        self.decision, self.state = decision, state
        if not math.isnan(seen.r) or not self.losses:
            self.readings += not math.isnan(seen.r)
            self._look_again(step, before)
        else:  # a loss alone moves no curvature: what was read of it last stands
            self._reading = before if before is not None else self._reading
        self._tell(step, decision)
        return decision

    def _read(self, seen: SpectralReading, step: int, lr: float, base_lr: float, total_steps: int | None) -> Reading:
        """The reading at the user's rate of now: it may be of a step that was taken with a factor, at another rate."""
        then, neurons = max(seen.lr, default=0.0), self._seen
        if neurons.silent < 0 and not math.isnan(seen.silent):  # a reading sees them as a share of all units
            neurons = replace(neurons, silent=round(seen.silent * neurons.neurons))
        r = seen.r / seen.scale * (lr / then if then > 0 else 1.0)
        return Reading(
            step=step,
            r=r,
            edge=seen.edge,
            lr=lr,
            base_lr=max(base_lr, self._peak),
            scale=self.decision.scale,
            loss=seen.loss,
            total_steps=total_steps,
            finite=not math.isinf(seen.loss) and "not finite" not in seen.reason,
            rule=seen.rule,
            reason=seen.reason,
            warming=seen.warming,
            snapshot=self.snapshot,
            **asdict(neurons),
        )

    def between(self, step: int, lr: float | None) -> float:
        """Return the factor for a step without a reading, whose rate may have moved since the last one.

        r is proportional to the rate at fixed curvature, so the policy is asked what it would do at r * lr / lr_then;
        it is a pure function, so asking leaves its memory alone.

        Raises:
            TopoError: for a factor that is no number in (0, 1e6), or a decision that is none.
        """
        last = self._reading
        if lr is None or last is None or lr == last.lr or not last.lr > 0 or step < self._breaker.until:
            return self.decision.scale
        peak = max(last.base_lr, self._peak, lr)
        moved = replace(last, step=step, r=last.r * lr / last.lr, lr=lr, base_lr=peak, loss=math.nan, fresh=False)
        decision, _ = _checked(self.policy, self.policy.decide(moved, self.state))
        if abs(math.log(decision.scale / self._told.scale)) > TOLD:
            self._tell(step, replace(decision, events=(), weights=""))
        return decision.scale

    def remember(self, last: Measurement) -> None:
        """Keep of a measurement what the policy may know at its next reading."""
        self._seen = what_was_seen(last)

    def release(self, reason: str) -> Decision:
        """Fall back to the user's own rate after a fault, and say so; after three faults, for good.

        The policy is asked again 16 and 64 steps later: a fault is not paid for at every step.
        """
        self._breaker.trip(self._step, reason)
        off = self._breaker.faults >= FAULTS
        note = f"the user's own rate is in force: {reason}"
        if off:
            note = f"{self.policy.name} is switched off after {self._breaker.faults} faults; {note}"
        self.decision = Decision(1.0, self.policy.name, "off" if off else "fault", note, (note,))
        self._reading = None
        self._tell(self._step, self.decision)
        return self.decision

    def _tell(self, step: int, decision: Decision) -> None:
        """Report a decision that differs from the last one reported."""
        same = (decision.scale, decision.rule, decision.policy) == (
            self._told.scale,
            self._told.rule,
            self._told.policy,
        )
        if same and not decision.events and not decision.weights:
            return
        self._told = decision
        if self.on_change is not None:
            self.on_change(step, decision)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: a resumed run steers on as the unbroken one."""
        return {
            "policy": self.policy.name,
            "state": self.state,
            "decision": {**asdict(self.decision), "events": list(self.decision.events)},
            "reading": None if self._reading is None else asdict(self._reading),
            "seen": asdict(self._seen),
            "breaker": asdict(self._breaker),
            "peak": self._peak,
            "readings": self.readings,
            "wait": self._wait,
            "next": self._next,
            "last_rates": None if self._last_rates is None else list(self._last_rates),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved memory; one written by another policy is of no use, and the next step is read afresh."""
        self._seen = Seen(**state["seen"])
        self._peak = float(state["peak"])
        if state["policy"] != self.policy.name:
            return
        self.state = state["state"]
        self.decision = Decision(**{**state["decision"], "events": tuple(state["decision"]["events"])})
        self._told = self.decision
        self._breaker = _Breaker(**state["breaker"])
        self._reading = None if state["reading"] is None else Reading(**state["reading"])
        self.readings, self._wait, self._next = int(state["readings"]), int(state["wait"]), int(state["next"])
        self._last_rates = None if state["last_rates"] is None else tuple(state["last_rates"])


def _checked(policy: Policy, answer: object) -> tuple[Decision, State]:
    """Refuse what is no decision with a usable factor, before it reaches an optimizer."""
    fits = (
        isinstance(answer, tuple)
        and len(answer) == 2
        and isinstance(answer[0], Decision)
        and isinstance(answer[1], dict)
    )
    if not fits:
        raise TopoError(f"policy {policy.name!r} decided {answer!r}: it must return (Decision, its memory as a dict)")
    decision, state = answer  # type: ignore[misc]
    scale = decision.scale
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not (number and 0 < scale < LARGEST):
        raise TopoError(
            f"policy {decision.policy!r} returned the factor {scale!r}: a factor must be a number in (0, {LARGEST:g})"
        )
    return replace(decision, scale=float(scale)), state
