"""How long a diagram stays certified: measured distances say when homology must be computed again.

Over a window in which every distance was stretched by factors in [a, b], the Vietoris-Rips filtrations are interleaved
multiplicatively: the ratio death / birth of a feature can change by at most b / a, up or down. So features whose ratio
is above b / a are certified to be there still, without computing homology (stability of persistence, on a log scale).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PROMINENT = 2.0
"""A feature that dies at no less than this times the scale of its birth is worth watching."""


@dataclass(frozen=True)
class Watch:
    """A certificate and how much of it has been used up.

    Watched are the features above the widest gap in the ratios death / birth, of those gaps whose upper end is prominent.
    Let the gap reach from `left` up to `kept`. Watched features have now a ratio of at least kept / resolution, all others
    one of at most left * resolution: they are told apart while resolution < sqrt(kept / left), and then it is stale.
    Where nothing is prominent, `kept` is twice `PROMINENT`: what may have come up unseen.
    """

    kept: float
    left: float
    window: tuple[float, float] = (1.0, 1.0)
    """(lower, upper) distortion since the diagrams' weights."""

    @classmethod
    def of(cls, diagrams: Sequence[np.ndarray]) -> Watch:
        """Start watching the features of degree 1 and up of freshly computed diagrams."""
        ratios = np.concatenate([_ratios(d) for d in diagrams[1:]]) if len(diagrams) > 1 else np.zeros(0)
        ratios = np.append(np.sort(ratios)[::-1], 1.0)
        prominent = np.flatnonzero(ratios >= PROMINENT)
        if not len(prominent):
            return cls(2 * PROMINENT, float(ratios[0]))
        gaps = ratios[prominent] / ratios[prominent + 1]
        widest = int(prominent[gaps.argmax()])
        return cls(float(ratios[widest]), float(ratios[widest + 1]))

    def observe(self, lower: float, upper: float) -> Watch:
        """Take note of the distortion from the diagrams' weights to those of now (not compounded)."""
        return replace(self, window=(lower, upper))

    @property
    def resolution(self) -> float:
        """b / a of the window: features of the diagrams with death / birth above this are certified still present."""
        lower, upper = self.window
        return upper / lower if lower > 0 else math.inf

    @property
    def stale(self) -> bool:
        """Whether the certificate no longer tells the watched features from the others."""
        return not self.resolution < math.sqrt(self.kept / self.left)


def _ratios(diagram: np.ndarray) -> np.ndarray:
    d = diagram[(diagram[:, 0] > 0) & np.isfinite(diagram[:, 1])]
    return d[:, 1] / d[:, 0]
