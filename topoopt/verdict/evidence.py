"""The evidence of a verdict: a run's readings as a handful of numbers.

Two windows: r is of the readings at the run's full rate, early on, as where the rule was fitted; what became of the run (the
loss, the units) is of all readings, the last of them above all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from topoopt.measurement import SpectralReading

T = TypeVar("T")
FIRST_STEPS = 10
"""Steps of a run that are not counted: r is of the initial weights there, and Adam's step nearly a sign."""
FITTED_STEPS, FITTED_SHARE = 100, 0.25
"""The rule was fitted on r of a run's first 100 steps, a quarter of it; in longer runs the first quarter is what counts."""
ENOUGH = 5
"""Fewest readings to judge by; single readings of a batch scatter by a factor of two."""
FULL_RATE = 0.5
"""Share of the largest rate from which a reading is of the run's full rate: cuts off warm-up and decay."""
LATEST = 17
"""Most readings at a run's end that tell what became of it: a third of the first 50."""
DIFFERENT = 4.0
"""Most that the labels of one batch may count as different from the others'."""
UNKNOWN_RULE = "black box"
NADAM_SHARE = 0.59
"""Share of its whole effect that a gradient has at once in torch's NAdam, whose decay of the momentum begins at half of beta
(Dozat 2016, schedule 1 - 0.96^(t/250)/2): (1 - mu) + mu' (1 - beta) at mu = 0.46, its value over the first 300 steps.
"""


def median(values: Iterable[float]) -> float:
    """Median of what is known; NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def latest(values: Sequence[T]) -> Sequence[T]:
    """The last third, and no more than `LATEST`: of a long run, what happens now."""
    return values[-min(max(1, len(values) // 3), LATEST) :]


def rate(reading: SpectralReading) -> float:
    """The largest rate of the step as it was taken; 0 where it is not known to be positive."""
    rates = [lr for lr in reading.lr if lr > 0]
    return max(rates, default=math.nan if not reading.lr else 0.0) * reading.scale


@dataclass(frozen=True)
class Evidence:
    """A run's readings, in the order of their steps, and what is read off them."""

    readings: tuple[SpectralReading, ...]
    window: tuple[SpectralReading, ...]
    """Those that r is taken from: at the full rate, early on."""
    steady: tuple[SpectralReading, ...] = ()
    """The later half of all at the full rate: where the run has settled."""

    @property
    def last(self) -> SpectralReading:
        """The latest of the window, else of all."""
        return (self.window or self.readings)[-1]

    @cached_property
    def r(self) -> float:
        """Median r of the window: the curvature of single batches is heavy-tailed under Adam."""
        return median(reading.r for reading in self.window)

    @property
    def edge(self) -> float | None:
        """e of the rule; None where the rule is not known."""
        return None if self.last.rule == UNKNOWN_RULE else self.last.edge

    @property
    def at_once(self) -> float:
        """Share of its whole effect on the weights that a gradient has in its own step: 1 - beta for heavy ball and averages.

        beta is what the edge says: 2 (1 + beta), or Nesterov's 2 (1 + beta)^2 / (1 + 2 beta), whose share is 1 - beta^2.
        """
        edge, rule = self.edge or 2.0, self.last.rule
        if "nadam" in rule:
            return NADAM_SHARE
        if "nesterov" in rule:
            half = max(edge / 2.0, 1.0)
            beta = min((half - 1.0) + math.sqrt(half * (half - 1.0)), 0.99)  # the root of (1 + b)^2 = half (1 + 2 b)
            return 1.0 - beta * beta
        return 1.0 - min(max(edge / 2.0 - 1.0, 0.0), 0.99)

    @property
    def unit(self) -> float:
        """sqrt(1 - beta): good rates read the same r in units of it, from beta = 0 to 0.95 (`benchmarks/verdict.py`)."""
        return math.sqrt(self.at_once)

    @property
    def level(self) -> float:
        """Median r in units of sqrt(1 - beta): what the thresholds are set on."""
        return self.r / self.unit

    def quartiles_over_edge(self) -> tuple[float, float]:
        """First and third quartile of r/e where the run has settled."""
        values = [reading.r for reading in self.steady]
        if len(values) < 2 or not self.edge:
            return math.nan, math.nan
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        return first / self.edge, third / self.edge

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """Losses of all readings that have one, as of a batch with typical labels: a batch whose labels differ more has a larger
        loss whatever is predicted, and so has the best constant prediction on it.
        """
        return tuple(self._typical(reading) for reading in self.readings if not math.isnan(reading.loss))

    def _typical(self, reading: SpectralReading) -> float:
        """The loss of one reading, as of a batch with typical labels; as it was where these were not seen."""
        if not (reading.baseline > 0 and self.baseline > 0):
            return reading.loss
        return reading.loss * min(max(self.baseline / reading.baseline, 1 / DIFFERENT), DIFFERENT)

    @property
    def start(self) -> float:
        """Loss of the first reading; NaN where none was seen."""
        return self.losses[0] if self.losses else math.nan

    @property
    def peak(self) -> float:
        """Largest loss after the first."""
        return max(self.losses[1:], default=math.nan)

    def thirds(self) -> tuple[float, float]:
        """Median loss of the first and of the last third of the window."""
        return _ends([self._typical(reading) for reading in self.window])

    @property
    def left(self) -> float:
        """Share of its loss that the run kept over the window; NaN where that is not known, or a likelihood.

        What lies above the loss of a constant prediction does not count: any rate takes that away.
        """
        first, last = self.thirds()
        if not (first > 0 and last > 0):
            return math.nan
        most = self.baseline if self.baseline > 0 else math.inf
        return min(last, most) / min(first, most)

    @property
    def gradient_trend(self) -> float:
        """Length of the gradient, as it was before any clipping, in the last third of the window over that in the first."""
        first, last = _ends([reading.grad_norm / (reading.clipped or math.nan) for reading in self.window])
        return last / first if first > 0 else math.nan

    @cached_property
    def _measured(self) -> list[SpectralReading]:
        """Readings of the run's first `FITTED_STEPS` steps that know the weights' length."""
        limit = self.readings[0].step + FITTED_STEPS
        return [reading for reading in self.readings if reading.weight_norm > 0 and reading.step <= limit]

    @property
    def growth(self) -> float:
        """Factor by which the weights' length grew over the run's first `FITTED_STEPS` steps; NaN where it is not known."""
        known = self._measured
        return known[-1].weight_norm / known[0].weight_norm if len(known) > 1 else math.nan

    @property
    def growing_steps(self) -> int:
        """The steps that `growth` is of."""
        return self._measured[-1].step - self._measured[0].step

    @property
    def way(self) -> float:
        """Factor by which the weights' length grew over all readings; NaN where it is not known."""
        known = [reading.weight_norm for reading in self.readings if reading.weight_norm > 0]
        return known[-1] / known[0] if known else math.nan

    @property
    def spike(self) -> float:
        """Largest loss after the first over the first; NaN where few are known, or where the loss is a likelihood."""
        return self.peak / self.start if self.start > 0 else math.nan

    @property
    def late_loss(self) -> float:
        """Median loss of the latest readings."""
        return median(latest(self.losses))

    @property
    def best_loss(self) -> float:
        """Lowest median of five losses in a row: what the run had reached."""
        fives = [self.losses[i : i + 5] for i in range(len(self.losses) - 4)] or [self.losses]
        return min((median(five) for five in fives), default=math.nan)

    @cached_property
    def baseline(self) -> float:
        """Loss of the best constant prediction, where labels were seen; NaN elsewhere."""
        return median(reading.baseline for reading in self.readings)

    def silent(self) -> tuple[float, float]:
        """Share of silent units in the first reading that saw any, and the median of the latest."""
        shares = [reading.silent for reading in self.readings if not math.isnan(reading.silent)]
        return (shares[0] if shares else math.nan), median(latest(shares))

    @property
    def update_ratio(self) -> float:
        """Median of |D| / |x| over the window."""
        return median(reading.update_ratio for reading in self.window)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    third = max(1, len(values) // 3)
    return median(values[:third]), median(values[-third:])


def gather(readings: Sequence[SpectralReading], total_steps: int | None = None) -> Evidence:
    """Order the readings and choose those that r is taken from."""
    ordered = tuple(sorted(readings, key=lambda reading: reading.step))  # stable: untied ones (-1) keep their order
    known = [reading for reading in ordered if reading.known and math.isfinite(reading.r) and rate(reading) != 0.0]
    if not known:
        return Evidence(ordered, ())
    begin, end = ordered[0].step, ordered[-1].step
    length = max(end - begin, (total_steps or 0) - max(begin, 0))
    full = FULL_RATE * max((rate(reading) for reading in known if not math.isnan(rate(reading))), default=0.0)
    at_full = [reading for reading in known if not rate(reading) < full]
    settled = [reading for reading in at_full if reading.step < 0 or reading.step >= FIRST_STEPS] or at_full
    limit = begin + max(FITTED_STEPS, FITTED_SHARE * length)
    early = [reading for reading in settled if reading.step <= limit]
    if len(early) < ENOUGH:  # readings that lie far apart, of a run whose length is not known, say
        early = settled[:ENOUGH]
    return Evidence(ordered, tuple(early), tuple(settled[len(settled) // 2 :]))
