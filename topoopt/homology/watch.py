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
"""Features stand out when the ratio death / birth of the least of them is at least this times that of the next."""


@dataclass(frozen=True)
class Watch:
    """A certificate for the features of degree 1 and up, and how much of it has been used up.

    Where some features stand out, by a factor g >= `GAP`, they are watched: while the resolution is below sqrt(g) there are
    still exactly as many above all others, as theirs shrank and the others' grew by less than sqrt(g). Where none does,
    none is watched, and while the resolution is below `GAP` none has come up that is `GAP` times the largest.
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
        if not len(gaps) or gaps.max() < GAP:
            return cls(0, GAP)
        return cls(int(gaps.argmax()) + 1, math.sqrt(gaps.max()))

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
