"""How long a diagram stays certified: measured distances say when homology must be computed again.

Over a window in which every distance was stretched by factors in [a, b], the Vietoris-Rips filtrations are interleaved
multiplicatively: on a logarithmic scale every birth and death moves by at most (log b - log a) / 2 about a common shift,
so the ratio death / birth of a feature changes by at most b / a, up or down. Features whose ratio is above b / a are
certified to be there still, and none can have come up but from below it, without computing homology. It is the
stability of persistence (Cohen-Steiner, Edelsbrunner and Harer 2007), on a log scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

GAP = 2.0
"""Features stand out when the ratio death / birth of the least of them is at least this times that of the next one."""


@dataclass(frozen=True)
class Watch:
    """A certificate for the features of degree 1 and up, and how much of it has been used up.

    In a window of resolution b / a every ratio death / birth has grown or shrunk by at most b / a, so the gap between
    neighbours in their sorted order, a factor g, by at most (b / a)^2. Where the widest gap is at least `GAP`, the features
    above it are watched: below a resolution of sqrt(g) they are still as many, and above all others. Where it is less,
    nothing stands out and none is watched: below sqrt(GAP / g) nothing has come to.
    """

    watched: int
    """How many features stand out."""
    limit: float
    """The resolution from which on the certificate no longer covers them."""
    window: tuple[float, float] = (1.0, 1.0)
    """(lower, upper) distortion since the diagrams' points."""

    @classmethod
    def of(cls, diagrams: Sequence[np.ndarray]) -> Watch:
        """Start watching freshly computed diagrams, in order of degree from 0."""
        ratios = np.concatenate([np.ones(1), *(_ratios(d) for d in diagrams[1:])])  # 1: the diagonal
        ratios = np.sort(ratios)[::-1]
        gaps = ratios[:-1] / ratios[1:]
        widest = float(gaps.max(initial=1.0))
        if widest < GAP:
            return cls(0, math.sqrt(GAP / widest))
        return cls(int(gaps.argmax()) + 1, math.sqrt(widest))

    def observe(self, lower: float, upper: float) -> Watch:
        """Take note of the distortion from the diagrams' points to those of now (measured, not compounded)."""
        return replace(self, window=(lower, upper))

    @property
    def resolution(self) -> float:
        """The window's b / a: features of the diagrams with death / birth above this are certified still present."""
        lower, upper = self.window
        return upper / lower if lower > 0 else math.inf

    @property
    def stale(self) -> bool:
        """Whether the certificate no longer covers what is watched, and homology must be computed again."""
        return not self.resolution < self.limit


def _ratios(diagram: np.ndarray) -> np.ndarray:
    d = diagram[(diagram[:, 0] > 0) & np.isfinite(diagram[:, 1])]
    return d[:, 1] / d[:, 0]
