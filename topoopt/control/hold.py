"""Hold: training without a learning rate of one's own: the rate is given in units of eta*."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from topoopt.control.checks import require_number, require_whole
from topoopt.control.policy import Reading, State
from topoopt.control.tracking import (
    GRADIENT_DESCENT,
    bounded,
    curvature,
    curvatures,
    edge_of,
    floats,
    said,
    unknown,
    watch_loss,
)
from topoopt.measurement import Decision

MEMORY = 5
"""Readings whose second largest curvature counts: that of single batches is heavy-tailed, under Adam above all, so the
largest is often a fluke; and a median follows a rising curvature too late for deep networks, which then die."""
GROWTH = 1.3
"""Largest growth of the rate from one reading to the next."""
RISING = 1.1
"""Three curvatures that each rose by more than this while the rate is first looked for: a network leaves its plateau, and the
newest counts. Two of nine tasks that nothing was set on were thrown off there, at rates at which their grids die."""
START = 0.1
"""The first factor, as a share of the wanted one: the first curvature is of random weights and one batch."""
BRAKE, LOWEST = 0.5, 0.25
"""What a guard does to the rate, and the share of what r allows below which it does not: there the rate is not what keeps the loss
high, and a network that was thrown off needs one to climb back. Without the second a loss above its start halved it for ever."""
FADED = 0.005
"""Share of the first loss below which the rate grows no more. Under cross entropy the curvature goes to 0 with the loss, and a
rate that follows it up is lost: three of fourteen runs of `benchmarks/hold_suite.py` ended above their start without this. Of the
seven that it acts on two miss their grid at .05, none at .02."""
SHORT = 60
"""Steps that it takes to find the rate: ten readings or so, after the warm-up of a preconditioner."""

FADING = f"the loss is below {FADED:.1%} of where it began, and curvature goes with it: the rate grows no more"

TARGETS = {"adam": 0.5, "momentum": 0.3, "sgd": 1.5}
"""Default target by family of update rule, in units of its edge e, the first that the rule's name contains; any other rule:
`DEFAULT_TARGET`. Found on `benchmarks/hold_suite.py`: plain SGD's best rates lie past the edge of one mini-batch, where r/e
hardly moves with the rate (1.06 and 1.34 at rates that differ by three); momentum dies at half its edge on deep ReLUs."""
DEFAULT_TARGET = 0.5
POWER = 0.43
"""The targets of Adam's family and of momentum are those at a first beta of .9, and grow with this power of (1 - beta), up to the
edge: the form that `topoopt.suggest` has, fitted there."""
AVERAGING = ("adam", "momentum")


@dataclass(frozen=True)
class Hold:
    """Keep r at `target` times the edge e, times the shape of the user's schedule.

    The user's optimizer may be given any rate: only the *shape* lr / peak of its schedule (cosine, warm-up, ...) is
    used. Schedulers leave the peak in `initial_lr`; where a loop sets the rates by hand, the largest one so far is the
    peak: a rise is taken for a warm-up, in which the rate is held, and what comes after it is followed.
    Once the loss has gone to half a per cent of the first, the rate only falls: there r says little.

    Args:
        target: in units of e; None: the default of the recognised update rule (`TARGETS`).
        guard: a loss above this times its running median halves the rate.
        floor: smallest rate, as a multiple of the first one chosen.
        interval: steps between readings of r while it moves fast.
    """

    target: float | None = None
    guard: float = 2.0
    floor: float = 1e-6
    interval: int = 5
    name = "hold"
    steers = True
    needs = 10
    """From `START` of the wanted rate to all of it, `GROWTH` at a time."""

    def __post_init__(self) -> None:
        if self.target is not None:
            require_number("Hold", "target", self.target, "a positive multiple of the edge e, or None", 0)
        wanted = "a factor above 1 on the running median of the loss"
        require_number("Hold", "guard", self.guard, wanted, 1)
        require_number("Hold", "floor", self.floor, "a factor in (0, 1]", 0, 1)
        require_whole("Hold", "interval", self.interval)

    def start(self) -> State:
        """Nothing seen yet."""
        return {
            "curvatures": [],
            "losses": [],
            "first_loss": None,
            "peak": None,
            "first_peak": None,
            "told": False,
            "found": False,
        }

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """Factor such that r = target e (lr / peak), within growth, guard and floor."""
        if reading.lr <= 0 or reading.base_lr <= 0:
            return Decision(1.0, self.name, "none", "the user's rate is 0: there is nothing to scale"), state
        trouble, losses = watch_loss(reading, state, self.guard)
        seen = curvatures(reading, state, MEMORY)
        after: State = {**state, **losses, "curvatures": seen, "told": True}
        events = () if state["told"] else self._too_short(reading)
        edge, caveat = edge_of(reading)
        wanted = self._target(reading.rule, reading.edge) * edge
        if not seen:
            return self._blind(reading, wanted, caveat, events), after
        faded = _has_faded(after)
        heavy = bool(state["found"]) or "adam" in reading.rule.lower()  # tails, in which three that rise are no trend
        k = _typical(seen) if heavy else _leaving(seen)
        peak, rule = self._peak(reading, wanted / k, state["peak"], trouble, faded)
        first = state["first_peak"] if isinstance(state["first_peak"], float) else peak
        note = said(caveat, trouble, FADING if rule == "faded" else "")
        if peak < self.floor * first:
            peak, rule = self.floor * first, "floor"
            note = said(caveat, "the rate sits on its floor: sharpness can go on rising while the rate falls")
        after |= {"peak": peak, "first_peak": first, "found": bool(state["found"]) or rule == "target"}
        events = (*events, f"guard: {trouble}") if trouble else events
        return Decision(bounded(peak / reading.base_lr), self.name, rule, note, events), after

    def _blind(self, reading: Reading, wanted: float, caveat: str, events: tuple[str, ...]) -> Decision:
        """Before the first reading that counts: the user's rate means nothing here, so what r allows for now."""
        now = curvature(reading) if reading.warming else math.nan
        if math.isnan(now):
            return Decision(1.0, self.name, "none", unknown(reading), events)
        return Decision(
            bounded(wanted / (now * reading.lr)), self.name, "warming", said(caveat, reading.warming), events
        )

    def _peak(self, reading: Reading, wanted: float, last: object, trouble: str, faded: bool) -> tuple[float, str]:
        """Return the rate at the schedule's peak, and what limited it."""
        if not isinstance(last, float):
            return START * wanted, "start"
        if not reading.fresh or math.isnan(reading.r):
            return (BRAKE * last, "guard") if trouble and reading.fresh else (last, "target")
        if trouble:
            return min(wanted, max(BRAKE * last, min(LOWEST * wanted, GROWTH * last))), "guard"
        if faded and wanted > last:
            return last, "faded"
        return (wanted, "target") if wanted <= GROWTH * last else (GROWTH * last, "growth")

    def _target(self, rule: str, edge: float | None) -> float:
        if self.target is not None:
            return self.target
        family = next((family for family in TARGETS if family in rule.lower()), "")
        share = TARGETS.get(family, DEFAULT_TARGET)
        if edge is None or family not in AVERAGING:
            return share
        beta = edge / GRADIENT_DESCENT - 1  # e = 2 (1 + beta)
        return share if beta >= 0.9 else min(1.0, share * ((1 - max(beta, 0.0)) / 0.1) ** POWER)

    def _too_short(self, reading: Reading) -> tuple[str, ...]:
        left = math.inf if reading.total_steps is None else reading.total_steps - reading.step
        if left >= SHORT:
            return ()
        return (
            f"the {left} steps that are left are too few for Hold, which takes about {SHORT} to find its rate: give a rate "
            "of your own, or find one beforehand (topoopt.suggest)",
        )


def _has_faded(state: State) -> bool:
    """Whether the loss has gone to a small share of the first; a first one that is not positive has no share."""
    first, losses = state["first_loss"], floats(state["losses"])
    return isinstance(first, float) and first > 0 and bool(losses) and median(losses) < FADED * first


def _leaving(seen: list[float]) -> float:
    """The newest curvature where the last three rose, one after the other; else the typical one."""
    rises = len(seen) > 2 and all(now > RISING * then for then, now in zip(seen[-3:], seen[-2:]))
    return seen[-1] if rises else _typical(seen)


def _typical(seen: list[float]) -> float:
    """The second largest of the curvatures, the only one where there is one."""
    return sorted(seen)[-2:][0]
