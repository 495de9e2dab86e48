"""Hold: training without a learning rate of one's own: the rate is given in units of eta*."""

from __future__ import annotations

from dataclasses import dataclass

from topoopt.control.policy import Reading, State
from topoopt.control.tracking import curvatures, require, watch_loss
from topoopt.measurement import Decision

MEMORY = 3
"""Readings whose largest curvature counts: down at once, up only when three readings agree."""
GROWTH = 1.3
"""Largest growth of the rate from one reading to the next."""
START = 0.1
"""The first factor, as a share of the wanted one: the first curvature is of random weights and one batch."""
BRAKE = 0.5
"""What a guard does to the rate."""

TARGETS = {"adam": 0.5, "momentum": 0.25, "sgd": 1.0}
"""Default target by family of update rule, in units of its edge e, the first that the rule's name contains; any other rule:
`DEFAULT_TARGET`. Found on `benchmarks/hold_suite.py`: momentum dies at half its edge on a deep ReLU network, Adam does not;
plain SGD's best rates lie past the edge of one mini-batch, where no measurement of that batch can follow."""
DEFAULT_TARGET = 0.5


@dataclass(frozen=True)
class Hold:
    """Keep r at `target` times the edge e, times the shape of the user's schedule.

    The user's optimizer may be given any rate: only the *shape* lr / peak of its schedule (cosine, warm-up, ...) is
    used. Schedulers leave the peak in `initial_lr`; without a scheduler the first rate is the peak and the shape is 1.

    Args:
        target: in units of e; None: the default of the recognised update rule (`TARGETS`).
        guard: a loss above this times its running median halves the rate.
        floor: smallest rate, as a multiple of the first one chosen.
        interval: steps between readings of r while it moves fast.
    """

    target: float | None = None
    guard: float = 2.0
    floor: float = 1e-6
    interval: int = 10
    name = "hold"
    steers = True

    def __post_init__(self) -> None:
        wanted = "a positive multiple of the edge e, or None"
        require(self.target is None or self.target > 0, "Hold", "target", self.target, wanted)
        require(self.guard > 1, "Hold", "guard", self.guard, "a factor above 1 on the running median of the loss")
        require(self.interval >= 1, "Hold", "interval", self.interval, "a whole number of steps >= 1")

    def start(self) -> State:
        """Nothing seen yet."""
        return {"curvatures": [], "losses": [], "first_loss": None, "peak": None, "first_peak": None}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Factor such that r = target e (lr / peak), within growth, guard and floor."""
        trouble, losses = watch_loss(reading, state, self.guard)
        seen = curvatures(reading, state, MEMORY)
        after: State = {**losses, "curvatures": seen, "peak": state["peak"], "first_peak": state["first_peak"]}
        if not seen or reading.base_lr <= 0:
            return Decision(1.0, self.name, "none", f"r is not known yet ({reading.reason or 'no rate'})"), after
        peak, rule = self._peak(reading, seen, state["peak"], trouble)
        first = state["first_peak"] if isinstance(state["first_peak"], float) else peak
        note = trouble
        if peak < self.floor * first:
            peak, rule = self.floor * first, "floor"
            note = "the rate sits on its floor: sharpness can go on rising while the rate falls"
        after |= {"peak": peak, "first_peak": first}
        events = (f"guard: {trouble}",) if trouble else ()
        return Decision(peak / reading.base_lr, self.name, rule, note, events), after

    def _peak(self, reading: Reading, seen: list[float], last: object, trouble: str) -> tuple[float, str]:
        """Return the rate at the schedule's peak, and what limited it."""
        wanted = self._target(reading.rule) * reading.edge / max(seen)
        if not isinstance(last, float):
            return START * wanted, "start"
        if not reading.fresh:
            return last, "target"
        if trouble:
            return min(wanted, BRAKE * last), "guard"
        return (wanted, "target") if wanted <= GROWTH * last else (GROWTH * last, "growth")

    def _target(self, rule: str) -> float:
        if self.target is not None:
            return self.target
        return next((target for family, target in TARGETS.items() if family in rule.lower()), DEFAULT_TARGET)
