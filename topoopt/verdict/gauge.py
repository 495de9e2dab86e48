"""A verdict's r/e on a scale: where the run stands to the band of good rates and to the edge, drawn or in one line of text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from topoopt.verdict.numbers import number

LEAST, MOST = (-4, -2), (1, 3)
"""Powers of ten at which a scale may begin and end, nearest and furthest: two runs mostly share one scale."""
PLACES = {"too low": "below", "right": "within", "too high": "above"}
"""Where a state expects r/e to lie."""
ASIDE = "the verdict rests on more than r here"


@dataclass(frozen=True)
class Gauge:
    """A logarithmic scale of r/e with what is marked on it."""

    ratio: float
    """Median r/e of the run."""
    band: tuple[float, float]
    """Good rates, in units of r/e."""
    low: int
    """Power of ten at the scale's left."""
    high: int
    """Power of ten at its right."""
    aside: str = ""
    """What else there is to say of it: that the verdict rests on more than r, where the scale alone would tell another."""

    def place(self, value: float) -> float:
        """Where a value lies: 0 is the left end, 1 the right one; what is beyond is at the end."""
        share = (math.log10(value) - self.low) / (self.high - self.low) if value > 0 else 0.0
        return min(max(share, 0.0), 1.0)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Powers of ten on the scale."""
        return tuple(10.0**power for power in range(self.low, self.high + 1))

    @property
    def where(self) -> str:
        """Below, within or above the band."""
        return "below" if self.ratio < self.band[0] else "within" if self.ratio <= self.band[1] else "above"

    def __str__(self) -> str:
        """The scale in words, for who cannot see it."""
        low, high = (number(bound) for bound in self.band)
        ends = f"{number(self.ticks[0])} to {number(self.ticks[-1])}"
        return (
            f"r/e of this run, {number(self.ratio)}, on a scale from {ends}: {self.where} the band of good rates, "
            f"{low} to {high}. 1 is the edge of stability.{self.aside and f' {self.aside[0].upper()}{self.aside[1:]}.'}"
        )

    def line(self, width: int = 34) -> str:
        """The scale in one line of ASCII: `#` is the run, `[=]` the band, `|` the edge."""
        cells = ["-"] * width
        first, last = (round(self.place(bound) * (width - 1)) for bound in self.band)
        cells[first : last + 1] = ["=" for _ in range(first, last + 1)]
        cells[first], cells[last] = "[", "]"
        cells[round(self.place(1.0) * (width - 1))] = "|"
        cells[round(self.place(self.ratio) * (width - 1))] = "#"
        ends = (number(self.ticks[0]), number(self.ticks[-1]))
        return f"r/e {ends[0]} {''.join(cells)} {ends[1]}   # this run  [=] good  | edge"


def gauge(state: str, ratio: float | None, band: tuple[float, float] | None) -> Gauge | None:
    """The scale of a verdict; None where no reading supports one, and where nothing moves, since r is low there at any rate."""
    if ratio is None or band is None or state == "collapsed":
        return None
    known = (ratio, *band)  # of a record, which anybody may have written
    numbers = all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in known)
    if len(known) != 3 or not numbers or not 0 < band[0] <= band[1]:
        return None
    powers = [math.log10(value) for value in known if value > 0]
    low = min(max(math.floor(min(powers)), LEAST[0]), LEAST[1])
    high = max(min(math.ceil(max(powers)), MOST[1]), MOST[0])
    scale = Gauge(ratio, band, low, high)
    return replace(scale, aside=ASIDE) if PLACES.get(state, scale.where) != scale.where else scale
