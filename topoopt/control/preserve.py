"""Preserve: never past the topological critical learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from topoopt.control import shape
from topoopt.control.checks import require_number, require_whole
from topoopt.control.policy import Reading, State
from topoopt.control.tracking import SMALLEST, bounded, curvature, curvatures, said, unknown
from topoopt.measurement import Decision

MEMORY = 3
"""Readings whose largest curvature counts: one lucky mini-batch does not raise the rate."""


@dataclass(frozen=True)
class Preserve:
    """Keep r <= `target`, so that the step stays bi-Lipschitz on the neurons; never raises the user's rate.

    r needs no edge. While a preconditioner warms up it is an upper bound, which is kept to and not remembered. Below its
    edge a network's sharpness no longer stabilises itself: it may keep rising while the rate keeps falling (Roulet et
    al. 2024). So the factor has a floor, and the record says when it sits there.

    A bound on each step is none on how far the neurons go in thousands of them: Adam takes a loop away in 25 steps of
    r < 0.9. So where up to 1,024 neurons lie on a shape (a loop of at least 0.15 of the diameter when they are first
    seen; layers without one have about 0.05) they are looked at now and then, at every step while the loop moves, and
    the rate is lowered, below the floor too, as what is left of the loop comes down to `keep`.

    Args:
        target: largest r; below 1 the guarantee holds.
        floor: smallest factor on the user's rate for the sake of r.
        keep: share of the largest loop that is to stay, where the neurons lie on a shape; 0: r alone counts.
        interval: steps between readings of r while it moves fast; steady readings are taken less and less often.
    """

    target: float = 0.9
    floor: float = 0.01
    keep: float = 0.5
    interval: int = 10
    name = "preserve"
    steers = True
    needs = MEMORY

    def __post_init__(self) -> None:
        require_number("Preserve", "target", self.target, "a positive r, below 1 to keep the guarantee", 0)
        require_number("Preserve", "floor", self.floor, "a factor in [0, 1]", -SMALLEST, 1)
        require_number("Preserve", "keep", self.keep, "a share in [0, 1)", -SMALLEST, 1 - 1e-9)
        require_whole("Preserve", "interval", self.interval)

    def start(self) -> State:
        """Nothing seen yet."""
        return {"curvatures": [], "shape": shape.unseen()}

    def looks(self, step: int, state: State) -> bool:
        """Whether a shape is to be looked at."""
        return self.keep > 0 and shape.wanted(step, _shape(state))

    def stale(self, step: int, total_steps: int | None, state: State) -> bool:
        """A look is of no use without a decision."""
        return self.looks(step, state)

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Factor = min(1, target / r), with r from the largest of the last curvatures at the rate of now; times the brake."""
        if self.keep <= 0:
            return self._by_r(reading, state)
        before, seen = _shape(state), shape.note(reading, _shape(state))
        decision, after = self._by_r(reading, state)
        after = {**after, "shape": seen}
        held = shape.brake(self.keep, seen)
        if held >= 1:
            return decision, after
        note = f"{seen['share']:.0%} of the largest loop is left: the rate is lowered so that {self.keep:.0%} stays"
        events = (note,) if shape.brake(self.keep, before) >= 1 else ()
        scale = bounded(held * decision.scale)
        return Decision(scale, self.name, "shape", said(note, decision.note), events), after

    def _by_r(self, reading: Reading, state: State) -> tuple[Decision, State]:
        seen = curvatures(reading, state, MEMORY)
        after: State = {**state, "curvatures": seen}
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


def _shape(state: State) -> State:
    found = state["shape"]
    assert isinstance(found, dict)
    return found
