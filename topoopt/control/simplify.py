"""Simplify: the rate is raised in small steps from the edge on, until the neurons are as simple as asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from topoopt.control import memory, ramp, repair
from topoopt.control.checks import require, require_number, require_policy, require_whole
from topoopt.control.ends import ENDS
from topoopt.control.policy import Policy, Reading, State
from topoopt.control.preserve import Preserve
from topoopt.control.schedule import wish
from topoopt.control.tracking import bounded, curvature, curvatures, edge_of, said, unknown
from topoopt.measurement import Decision

DEFAULT_ENDS = {"largest_loop": 0.01, "effective_rank": 0.5, "silent": 1 / 3}
"""The ends of `Simplify()`, but for those that the neurons meet at the start."""
TARGETS, DEFAULT_TARGET = {"adam": 0.7}, 1.03
"""Rate to begin at by family of update rule, in units of e/K: the first family that the rule's name contains."""
GUARDS, DEFAULT_GUARD = {"adam": 100.0}, 1e4
"""Loss, in units of the start's, above which a run is being lost. Excursions of gradient descent gather the neurons and end
by themselves, at up to 1,000 times the start; those of Adam scatter them, and must be ended early."""
SQUARES = ("adam", "rmsprop", "adagrad")
"""Families of rules that divide by averages of squares: what a lost run left in them stays, and e/K with it is another."""
FIRST = 3
"""Readings whose median curvature gives the rate to begin at: one mini-batch is not enough."""


def _repair() -> Policy:
    return Preserve(keep=0.0)  # what is left of a shape is not what is to stay


@dataclass(frozen=True)
class Simplify:
    """Raise the rate from the edge of stability on, a bit at a time, until the topology is as simple as asked for.

    Holding r at the edge simplifies nothing: each reading cuts the rate just when the excursion begins that would. A
    *rate* that starts at `target` times e/K is left alone for `dwell` steps and is then raised by `up` takes loops away
    as a dose its response, while curvature gives way and r returns to e by itself. After each dwell the neurons are
    looked at. While the loss is calm, the weights are remembered where the run can do that, and the rate is raised;
    while it is not, nothing is done; when the run is being lost, it goes back to the last calm weights at two thirds of
    their rate. At the end `then` takes over, at the rate reached, in the shape of the user's schedule from there on: the
    loss is repaired, and what was simplified stays so. The user's own rate plays no part until then.

    An end is any of the measures below; the first one reached counts. A whole number is a count of neurons, a fraction a
    share of them. Without any: a largest loop of 0.01, half the effective rank, or a third of the units silent. An end
    that cannot be reached is given up with an event that says why.

    Args:
        target: rate to begin at, in units of e/K; None: 1.03, and 0.7 for Adam's family.
        ceiling: largest rate, in units of e/K at the start.
        guard: a run whose loss exceeds this times its start's is being lost; None: 1e4, and 100 for
            Adam's family.
        up: factor on the rate after a calm dwell.
        dwell: steps for which a rate is left alone.
        calm: a loss up to this times the start's is calm.
        steps: hand over after this many steps; None: no limit (but a run of known length keeps its last tenth for `then`).
        persistence: end at this share of the start's total persistence of degree >= 1.
        largest_loop: end when the largest lifetime in degree 1 is this share of its cloud's diameter.
        log_persistence: end at this share of the start's sum of log(death/birth).
        effective_rank: end at this share of the start's.
        distinct: end at so few clusters of neurons.
        twins: end at so many twins.
        silent: end at so many silent units.
        vanishing: end at so many vanishing neurons.
        then: the policy that takes over at the end.
        interval: steps between readings of r while it moves fast, before and after the ramp.
    """

    target: float | None = None
    ceiling: float = 200.0
    guard: float | None = None
    up: float = 1.3
    dwell: int = 50
    calm: float = 2.0
    steps: int | None = None
    persistence: float | None = None
    largest_loop: float | None = None
    log_persistence: float | None = None
    effective_rank: float | None = None
    distinct: float | None = None
    twins: float | None = None
    silent: float | None = None
    vanishing: float | None = None
    then: Policy = field(default_factory=_repair)
    interval: int = 10
    name = "simplify"
    steers = True
    needs = 1 + FIRST

    def __post_init__(self) -> None:
        if self.target is not None:
            require_number("Simplify", "target", self.target, "a positive multiple of e/K, or None", 0)
        lowest = DEFAULT_TARGET if self.target is None else self.target
        require_number("Simplify", "ceiling", self.ceiling, "a multiple of e/K above the target", lowest)
        require_number("Simplify", "up", self.up, "a factor above 1 on the rate", 1)
        require_number("Simplify", "calm", self.calm, "a multiple of the starting loss, at least 1", 0.999)
        if self.guard is not None:
            require_number("Simplify", "guard", self.guard, "a multiple of the starting loss above `calm`", self.calm)
        require_whole("Simplify", "dwell", self.dwell, 2)
        require_whole("Simplify", "interval", self.interval)
        require_policy("Simplify", "then", self.then)
        if self.steps is not None:
            require_whole("Simplify", "steps", self.steps)
        for name, end in ENDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if end.relative or name == "largest_loop":
                require_number("Simplify", name, value, "a share in (0, 1), or None", 0, 1 - 1e-9)
            else:
                wanted = "a whole number of neurons, or a share of them in (0, 1), or None"
                require_number("Simplify", name, value, wanted, 0)
                require(value < 1 or float(value).is_integer(), "Simplify", name, value, wanted)

    @property
    def ends(self) -> dict[str, float]:
        """The measures that were asked for; empty when none was."""
        return {name: value for name in ENDS if (value := getattr(self, name)) is not None}

    # -- what it wants to see ----------------------------------------------------------------------------------------

    def start(self) -> State:
        """Nothing seen yet, the rate not chosen."""
        nothing = {key: None for key in ("rate", "unit", "first_loss", "began", "origin", "resumed")}  # noqa: C420
        return {"phase": "start", "curvatures": [], "losses": [], "ends": self.ends or dict(DEFAULT_ENDS), **nothing}

    def stale(self, step: int, total_steps: int | None, state: State) -> bool:
        """Whether a dwell is over, or `then` wants a reading."""
        if state["phase"] == "then":
            return self._checks(step, state) or wish(self.then, "stale", step, total_steps, state["inner"])
        return state["phase"] == "ramp" and step >= memory.number(state, "ask")

    def rests(self, step: int, state: State) -> bool:
        """On the ramp the rate is left alone."""
        if state["phase"] == "then":
            return wish(self.then, "rests", step, state["inner"])
        return state["phase"] == "ramp"

    def looks(self, step: int, state: State) -> bool:
        """Whether the start's neurons have not been seen, a dwell is over, or what was simplified is to be checked."""
        if state["phase"] == "then":
            return self._checks(step, state) or wish(self.then, "looks", step, state["inner"])
        return state["origin"] is None if state["phase"] == "start" else step >= memory.number(state, "ask")

    def watches(self, step: int, state: State) -> bool:
        """Ten losses a dwell: their median says whether it was calm."""
        if state["phase"] == "then":
            return wish(self.then, "watches", step, state["inner"])
        return state["phase"] == "ramp" and step >= memory.number(state, "watched") + max(1, self.dwell // 10)

    def _checks(self, step: int, state: State) -> bool:
        return state["check"] is not None and step >= memory.number(state, "check")

    # -- what it does ------------------------------------------------------------------------------------------------

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """The rate of the ramp over the user's; after the end, what `then` says."""
        if state["phase"] == "then":
            return repair.decide(self, reading, state)
        if reading.lr <= 0:
            return Decision(1.0, self.name, "none", "the user's rate is 0: there is nothing to scale"), state
        if not reading.fresh:
            rate = state["rate"]
            scale = bounded(rate / reading.lr) if isinstance(rate, float) else 1.0
            return Decision(scale, self.name, "dwell" if isinstance(rate, float) else "none"), state
        state = memory.note_loss(reading, state)
        return self._begin(reading, state) if state["phase"] == "start" else ramp.decide(self, reading, state)

    def _begin(self, reading: Reading, state: State) -> tuple[Decision, State]:
        """To the edge: the median of the first readings that count says where it is."""
        edge, caveat = edge_of(reading)
        state = memory.note_origin(reading, state, chosen=bool(self.ends))
        if reading.warming and not math.isnan(curvature(reading)):  # r reads high: its edge is a rate that is safe
            scale = min(1.0, self.begin_at(reading.rule) * edge / reading.r)
            return Decision(bounded(scale), self.name, "warming", reading.warming), state
        seen = curvatures(reading, state, FIRST)
        if not seen:
            return Decision(1.0, self.name, "none", unknown(reading)), state
        unit = edge / median(seen)
        rate = self.begin_at(reading.rule) * unit
        first = state["rate"] is None
        state = {**state, "curvatures": seen, "unit": unit, "rate": rate, "calm_rate": rate}
        if len(seen) == FIRST:
            squares = float(any(family in reading.rule.lower() for family in SQUARES))
            state = {
                **state,
                "squares": squares,
                "guard": self.guard or _by_family(GUARDS, DEFAULT_GUARD, reading.rule),
            }
            state = memory.begin(reading, state, self.dwell)
        decision = Decision(
            bounded(rate / reading.lr),
            self.name,
            "start",
            said(caveat, f"the edge is at a rate of {unit:.3g}"),
            weights="keep" if first and reading.snapshot else "",
        )
        return decision, state

    def begin_at(self, rule: str) -> float:
        """`target`, or the default for this update rule."""
        return _by_family(TARGETS, DEFAULT_TARGET, rule) if self.target is None else self.target


def _by_family(values: dict[str, float], default: float, rule: str) -> float:
    return next((value for family, value in values.items() if family in rule.lower()), default)
