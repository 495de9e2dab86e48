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
from typing import Annotated, Any

import msgspec

from topoopt.control import Policy, Reading, Seen, State, wish
from topoopt.errors import ConfigError
from topoopt.measurement import Decision, Measurement, SpectralReading
from topoopt.optimizer.answers import checked, plain
from topoopt.optimizer.seen import what_was_seen
from topoopt.optimizer.state import LONG

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
NEEDS, MOST = 3, 10
"""Readings on credit for a policy that does not say how many it needs, and for any."""
PAUSE = 16
"""Steps that pass after a fault before the policy is asked again; four times as many after each further one."""

Count = Annotated[int, msgspec.Meta(ge=0, le=LONG)]
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
        self.state = _begun(policy)
        self.decision = Decision(1.0, policy.name, "none")
        self.readings = 0
        self._told = self.decision
        self._breaker = _Breaker()
        self._fault: Exception | None = None
        """What the policy has raised where nothing may be raised; raised when a factor is next asked for."""
        self._reading: Reading | None = None
        self._seen = Seen()
        self._every = every
        self._interval = _interval(policy, every)
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
        if self._wishes("stale", step, total_steps, self.state):
            return True
        if not self.losses and self.watches(step):
            return True
        due = step >= self._next or self._next > step + self._every  # no wait is longer: a number from a bad checkpoint
        return due and not self._wishes("rests", step, self.state)

    def looks(self, step: int) -> bool:
        """Whether the neurons are to be measured, with homology waited for, before this step."""
        return step >= self._breaker.until and self._wishes("looks", step, self.state)

    def watches(self, step: int) -> bool:
        """Whether the loss of this step is wanted, be r read or not."""
        return step >= self._breaker.until and self._wishes("watches", step, self.state)

    def _wishes(self, what: str, *args: object) -> bool:
        try:
            return wish(self.policy, what, *args)
        except Exception as error:
            self._fault = error
            return False

    def _raise_fault(self) -> None:
        error, self._fault = self._fault, None
        if error is not None:
            raise error

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
            TopoError: for an answer that is none, see `answers.checked`; and whatever the policy has raised when it was asked
                for its wishes.
        """
        self._raise_fault()
        if step < self._breaker.until:
            return self.decision
        before, self._reading = self._reading, self._read(seen, step, lr, base_lr, total_steps)
        decision, state = checked(self.policy, self.policy.decide(self._reading, self.state))
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
            TopoError: for an answer that is none, see `answers.checked`; and whatever the policy has raised when it was asked
                for its wishes.
        """
        self._raise_fault()
        last = self._reading
        if lr is None or last is None or lr == last.lr or not last.lr > 0 or step < self._breaker.until:
            return self.decision.scale
        peak = max(last.base_lr, self._peak, lr)
        moved = replace(last, step=step, r=last.r * lr / last.lr, lr=lr, base_lr=peak, loss=math.nan, fresh=False)
        decision, _ = checked(self.policy, self.policy.decide(moved, self.state))
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

    def say(self, step: int, event: str) -> None:
        """Put what must be known of steering this run into the record, as an event of the decision in force."""
        self._tell(step, replace(self.decision, events=(event,), weights=""))

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
        """Take up a saved memory, whole or not at all; one written by another policy is of no use: the next step is read afresh.

        Raises:
            ValueError: for what is none, with the place (msgspec's ValidationError); for a factor that is none (TopoError).
        """
        saved = msgspec.convert(state, _Saved)
        own = saved.policy == self.policy.name
        decision, memory = checked(self.policy, (saved.decision, saved.state)) if own else (self.decision, self.state)
        self._seen, self._peak = saved.seen, saved.peak
        if own:
            self.decision = self._told = decision
            self.state = {**_begun(self.policy), **memory}  # what an older one did not remember yet
            self._breaker, self._reading = saved.breaker, saved.reading
            self.readings, self._wait, self._next = saved.readings, min(saved.wait, self._every), saved.next
            self._last_rates = saved.last_rates


@dataclass
class _Saved:
    """What `Steering.state_dict` gives."""

    policy: str
    state: dict[str, Any]
    decision: Decision
    reading: Reading | None
    seen: Seen
    breaker: _Breaker
    peak: float
    readings: Count
    wait: Annotated[int, msgspec.Meta(ge=1, le=LONG)]
    next: Count
    last_rates: tuple[float, ...] | None


def _begun(policy: Policy) -> State:
    state = policy.start()
    if not isinstance(state, dict):
        raise ConfigError(f"start() of policy {policy.name!r} returned {state!r}: it must return its memory as a dict")
    return plain(policy, state)


def _interval(policy: Policy, every: int) -> int:
    return min(every, _whole(policy, "interval", every, "steps"))


def needed(policy: Policy) -> int:
    """Readings of r that a policy is given whatever the budget says; `NEEDS` where it does not say."""
    return min(MOST, _whole(policy, "needs", NEEDS, "readings"))


def _whole(policy: Policy, name: str, default: int, of: str) -> int:
    value = getattr(policy, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} of policy {policy.name!r} is {value!r}: give a number of {of}, 1 or more")
    return value
