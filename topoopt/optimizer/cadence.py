"""When to read r and when to measure the neurons too, and the account of the time that all of it takes.

One budget covers everything: readings, measurements, steering, sinks, hooks. With a length of the run that is known it is spread
over the run, more at its beginning: after a share t of the steps a share sqrt(t) of it may be spent, so that the n-th of N equal
costs falls due at (n / N)^2. Otherwise what was spent may be a share `budget` of the time that has passed, the cost itself
counted as time. The first measurement, the first reading and one soon after are taken on credit, and one more
where those were of a step that was still warming up: nothing can have paid for them yet. A policy that steers may need more before
it can act (`Policy.needs`), and gets no more than that. Readings that failed are counted too, and credit is paid back before
anything else is affordable.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from statistics import median

AFTERMATH = 0.1
"""What a reading costs beside its own time, as a share of it: the steps after it find caches cold and memory given back."""
HOOKS = 1.5e-6
"""Seconds that the hooks of an ordinary step take, torch's own way to them included."""
CLOSEST = 5
"""Readings lie at least `every` / CLOSEST steps apart."""
PER_MEASUREMENT = 4
"""Readings before each measurement of the neurons, where the budget decides; more where neurons cost more than so many."""
FIRST_STEPS = 10
"""Steps after which a preconditioner is warm, and after which the second reading comes."""
RETRIES = 3
"""Readings in a row that may fail before the next one waits its usual time."""
CREDIT = 2
"""Readings after the first that are taken on credit at most: one soon after it, another where none was of a warm step yet."""
AGAIN = 64
"""What was refused is asked for again once a 64th more steps have passed: asking costs as much as twenty ordinary steps' hooks."""
TAPES = 9
"""Steps whose median time counts in what writing a step down costs."""


class Due(StrEnum):
    """What is done at a step."""

    NOTHING = ""
    READING = "reading"
    MEASUREMENT = "measurement"


class Cadence:
    """Decides, at the end of each step, what is done at the next one.

    Args:
        every: steps between measurements; with `budget=None` exactly so many.
        budget: largest share of wall time, or None: no limit, and reproducible.
        clock: seconds.
        needs: readings that a policy is given on credit, known or not; None: as many as a run that is only watched.
    """

    def __init__(
        self,
        every: int,
        budget: float | None,
        clock: Callable[[], float] = time.perf_counter,
        needs: int | None = None,
    ) -> None:
        self.every, self.budget, self.needs = every, budget, needs
        self.total_steps: int | None = None
        self.spent = 0.0
        self.setup = 0.0
        self.stretched = self.readings = self.measurements = 0
        self._clock = clock
        self._start: float | None = None
        self._first_step = self._step = 0
        self._reading_cost = self._neurons_cost = 0.0
        self._next_reading = self._next_measurement = 0
        self._since = self._failed = self._settled = self._tried = self._next_credit = self._ask = 0
        self._plain, self._watched = deque[float](maxlen=TAPES), deque[float](maxlen=TAPES)

    def start(self, step: int) -> None:
        """Start the wall clock, before the first step; later calls do nothing."""
        if self._start is None:
            self._start, self._first_step = self._clock(), step

    @property
    def wall(self) -> float:
        """Seconds since the first step, set-up not counted."""
        return 0.0 if self._start is None else self._clock() - self._start - self.setup

    @property
    def share(self) -> float:
        """Share of the wall time that measuring took so far, in [0, 1], hooks included; NaN before a step has passed."""
        return self.share_with(0.0)

    def share_with(self, seconds: float) -> float:
        """The share once these seconds are booked too. What stands before the run's first step is no share of anything."""
        spent, wall = self._used + seconds, self.wall
        if self._step == self._first_step:
            return math.nan if spent > 0 else 0.0
        return min(1.0, spent / wall) if wall > 0 else 0.0

    @property
    def _used(self) -> float:
        """Seconds booked, and those of the hooks of ordinary steps."""
        return self.spent + HOOKS * (self._step - self._first_step)

    @property
    def step_seconds(self) -> float:
        """Seconds of one of the user's own steps, on average; NaN before one has passed."""
        steps = self._step - self._first_step
        return max(0.0, self.wall - self.spent) / steps if steps > 0 else math.nan

    # -- what is due -------------------------------------------------------------------------------------------------

    def due(self, step: int, *, readable: bool = True) -> Due:
        """What is wanted and affordable at this step; `readable`: whether r can be read at all."""
        self._step = step
        if step >= self._next_measurement:
            if self._may_measure(readable):
                return Due.MEASUREMENT
            if readable and self.saves:
                return Due.NOTHING
        if readable and step >= self._next_reading and self.affordable(self._reading_cost, credit=True):
            return Due.READING
        return Due.NOTHING

    def candidate(self, step: int) -> bool:
        """Whether anything may be due at this step: cheap, for ordinary steps."""
        self._step = step
        return step >= max(self._ask, min(self._next_reading, self._next_measurement))

    def refused(self, step: int) -> None:
        """Nothing is done at `step` after all, on any rank: what is due need not be asked for at every step from here on."""
        later = step + 1 + (step - self._first_step) // AGAIN
        self._ask = min([later, *(at for at in (self._next_reading, self._next_measurement) if at > step)])

    @property
    def saves(self) -> bool:
        """Whether readings wait for a measurement, which takes one along: dearer than they are it would never have its turn."""
        return self._step >= self._next_measurement and self._since >= self._readings_before

    @property
    def watching_cost(self) -> float:
        """What writing a step down is expected to cost beside the step: a part of every reading, all of a loss alone."""
        both = self._plain and self._watched
        return max(0.0, median(self._watched) - median(self._plain)) if both else 0.0

    @property
    def reading_cost(self) -> float:
        """What a reading is expected to cost."""
        return self._reading_cost + self.watching_cost

    @property
    def looking_cost(self) -> float:
        """What a measurement is expected to cost, its reading included."""
        return self._neurons_cost + self.reading_cost

    def in_credit(self, step: int) -> bool:
        """Whether a reading that a policy wants before this step may be taken on credit: the few there are lie apart."""
        return self._tried < self._lent and step >= self._next_credit

    @property
    def _lent(self) -> int:
        """Readings on credit in all."""
        return CREDIT + (self._settled == 0) if self.needs is None else self.needs

    @property
    def unlimited(self) -> bool:
        """A budget of all the time is none: what a reading costs beside its own time is no reason to leave one out."""
        return self.budget is None or self.budget >= 1

    @property
    def _readings_before(self) -> float:
        """Readings before each measurement where the budget decides: neurons take no more of it than readings do."""
        return max(PER_MEASUREMENT, self._neurons_cost / self._reading_cost if self._reading_cost > 0 else 0.0)

    def _may_measure(self, readable: bool) -> bool:
        if self.unlimited or self.measurements == 0:
            return True
        if readable and self._since < self._readings_before and self._reading_cost > 0:
            return False  # readings first: a measurement takes one along
        return self.affordable(self._neurons_cost + self._reading_cost)

    def affordable(self, cost: float, *, credit: bool = False) -> bool:
        """Whether a cost fits into the budget, itself counted as time too: a budget of 1 never binds."""
        if self.unlimited or (credit and self._tried < self._lent):
            return True
        assert self.budget is not None
        wall = self.wall
        allowed = self.budget * (wall + cost)
        passed, total = self._step - self._first_step, (self.total_steps or 0) - self._first_step
        if 0 < passed < total:
            whole = wall + (total - passed) * (wall - self.spent) / passed
            allowed = max(allowed, self.budget * whole * math.sqrt(passed / total))
        return self._used + cost <= allowed

    # -- what was done -----------------------------------------------------------------------------------------------

    def book(self, seconds: float) -> None:
        """Time that belongs to no reading: a watch over a step, a sink, a policy."""
        self.spent += seconds

    def passed(self, seconds: float, *, watched: bool) -> None:
        """Learn from what lay between two steps what writing it down costs, which happens inside the user's own code, and book it.

        Medians of both kinds of steps: a batch that came late is no cost of ours. The run's first step is no measure.
        """
        if self._step > self._first_step:
            (self._watched if watched else self._plain).append(seconds)
        if watched:
            self.spent += self.watching_cost

    def read(self, step: int, seconds: float, *, warming: bool, known: bool) -> None:
        """Book a reading taken at `step`; while the rule warms up the next one waits for its end."""
        cost = seconds * (1 + AFTERMATH)
        self.spent += cost
        self._tried += 1
        self._next_credit = step + min(FIRST_STEPS, max(1, self.every // CLOSEST))
        if not known:
            self._failed += 1
            again = self._failed <= RETRIES
            self._next_reading = step + (1 if again else max(1, self.every // CLOSEST))
            return
        cold = self.readings <= 1  # the first is dearer than any that goes on from it
        self._reading_cost = cost if cold else 0.5 * (cost + self._reading_cost)
        self.readings += 1
        self._settled += not warming
        self._since += 1
        apart = max(1, self.every // CLOSEST)
        self._next_reading = step + (min(apart, FIRST_STEPS) if self.readings <= 1 or warming else apart)

    def resumed(self, step: int) -> None:
        """The run goes on at `step`: what was due is due there."""
        self._next_reading = self._next_measurement = self._step = self._ask = step
        self._first_step = step if self._start is None else self._first_step

    def measured(self, step: int, seconds: float) -> None:
        """Book what the neurons of a measurement at `step` took beside its reading."""
        self._neurons_cost = seconds * (1 + AFTERMATH)
        self.spent += self._neurons_cost
        self.measurements += 1
        self._since = 0
        self._next_measurement = step + self.every

    def postpone(self, step: int) -> None:
        """What was due could not be done at `step`, which was no step: the next one."""
        self.stretched += 1
        self._next_measurement = max(self._next_measurement, step + 1)
        self._next_reading = max(self._next_reading, step + 1)

    def shortfall(self) -> str:
        """What this budget leaves a policy that steers without, in words: fewer readings than it needs before it can act, or
        rarer ones than `every`. "" where it does not, or where that is not known yet.
        """
        seconds, credit = self.step_seconds, self._lent
        if self.unlimited or self._tried < 2 or not (self.reading_cost > 0 and seconds > 0):
            return ""
        assert self.budget is not None
        steps = self.reading_cost / seconds
        apart, total = steps / self.budget, self.total_steps
        enough = steps / self.every if total is None else steps * max(1 / self.every, credit / total)
        if enough <= self.budget:
            return ""
        pays = f"one about every {apart:.0f} steps" + (
            "" if total is None else f", {total / apart:.1f} in this run's {total}"
        )
        return (
            f"a reading takes {steps:.2g} steps: a budget of {self.budget:.2g} pays for {pays}. The first {credit} are taken on "
            f"credit, the others wait, and the factor goes by the last one. For what the policy asks give "
            f"budget={min(1.0, _rounded_up(enough)):g}, or None"
        )

    def plan(self, groups: int) -> str:
        """What to expect, in words; "" while costs or the length are not known."""
        seconds = self.step_seconds
        if not (self._reading_cost > 0 and seconds > 0):
            return ""
        steps = self._reading_cost / seconds
        said = f"{groups} groups; a reading takes {steps:.2g} steps"
        if self.total_steps is None or self.budget is None:
            return f"{said}; one about every {max(self.every / CLOSEST, steps / (self.budget or math.inf)):.0f} steps"
        pot = self.budget * self.total_steps * seconds
        before = self._readings_before
        each = self._reading_cost + (self._neurons_cost + self._reading_cost) / before
        most = self.total_steps * CLOSEST / self.every
        measurements = min(pot / each / before, self.total_steps / self.every)
        return (
            f"{said}; about {min(pot / each, most):.0f} readings and {max(1.0, measurements):.0f} measurements planned"
        )


def _rounded_up(share: float) -> float:
    """To the next hundredth."""
    return math.ceil(100 * share - 1e-9) / 100
