"""What a step does to the distances between neurons: gain, lower and upper distortion, contraction.

Source: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670, Lemmas 2 and 4, for this step's pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import Cloud
from topoopt.geometry.near import NearPairs
from topoopt.geometry.step import Step, same_shape, window


@dataclass(frozen=True)
class Distortion:
    """What a map of n points did to their pairwise distances. Each extreme's value is exact for the pair named."""

    lower: float
    """min over pairs of |x_i' - x_j'| / |x_i - x_j|."""
    upper: float
    """max over pairs of the same."""
    gain: float
    """max over pairs of |D_i - D_j| / |x_i - x_j|: r_pair of the step."""
    contraction: float
    """max over pairs of -<D_i - D_j, x_i - x_j> / |x_i - x_j|^2."""
    lower_pair: tuple[int, int]
    upper_pair: tuple[int, int]
    gain_pair: tuple[int, int]
    contraction_pair: tuple[int, int]

    @property
    def certified(self) -> bool:
        """Whether gain < 1: the step was then bi-Lipschitz with constants in [1 - gain, 1 + gain].

        It is a fact of these points and needs no assumption; on the straight way between them no two ever met.
        """
        return self.gain < 1.0

    @classmethod
    def of(cls, values: Sequence[float], places: Sequence[float]) -> Distortion:
        """From `Step.extremes`, flat."""
        i, j = (tuple(int(x) for x in places[k::2]) for k in (0, 1))
        return cls(values[0], values[1], values[2], values[3], *zip(i, j))


IDENTITY = Distortion(1.0, 1.0, 0.0, 0.0, (-1, -1), (-1, -1), (-1, -1), (-1, -1))
"""Of fewer than two points, or of points without a dimension."""


@torch.no_grad()
def compare(before: Tensor | Cloud, after: Tensor | Cloud) -> Distortion:
    """Compare a cloud with itself a step later: (n, d), (n, d) -> `Distortion`.

    Streams over strips of rows: never holds (n, n), but three clouds beside those given and a few times `cloud.CHUNK`
    numbers. The pairs are chosen to about 1e-4 of the values, which are then computed again in float64.
    Neurons that coincide before and after (they stay together at any rate: Lemma 1) are left out; where all do, the
    result is that of a step that does nothing. A pair that coincides before and not after has an infinite gain and
    ratio: no Lipschitz rule does that.

    Raises:
        MeasurementError: for clouds of different shapes, or with NaN or infinite entries, naming the rows.
    """
    x, y = Cloud.of(before), Cloud.of(after)
    same_shape(x, y)
    if trivial(x):
        return IDENTITY
    step = Step(x, y, NearPairs(x.points, thorough=True))
    values, places = step.extremes()
    finite, *numbers = torch.cat([step.finite[None].to(values), values, places.flatten().to(values)]).tolist()
    if not finite:
        refuse(x, y)
    return Distortion.of(numbers[:4], numbers[4:])


@torch.no_grad()
def ratios(before: Tensor | Cloud, after: Tensor | Cloud, *, distances: Tensor | None = None) -> tuple[float, float]:
    """(min, max) over pairs of |x_i' - x_j'| / |x_i - x_j|, as `compare` defines it, at two thirds of its price.

    With the `distances` (n, n) of `after` at hand it is one third. Meant for windows of many steps: it looks at
    distances, not at the displacement, and cannot tell ratios that differ by less than about 1e-4 from each other.

    Raises:
        MeasurementError: as `compare` does, and for distances of another shape.
    """
    x, y = Cloud.of(before), Cloud.of(after)
    same_shape(x, y)
    if trivial(x):
        return 1.0, 1.0
    if distances is not None and distances.shape != (len(x), len(x)):
        raise MeasurementError(
            f"distances of {len(x)} points have shape {tuple(distances.shape)}: give those of `after`"
        )
    found = window(x, y, NearPairs(x.points, thorough=True), distances)
    finite, lower, upper = torch.cat([(x.finite & y.finite)[None].to(found), found]).tolist()
    if not finite:
        refuse(x, y)
    return lower, upper


def trivial(cloud: Cloud) -> bool:
    """Whether there is no pair to look at, or nothing to see of one."""
    return len(cloud) < 2 or not cloud.d


def refuse(*clouds: Cloud) -> None:
    """Name the rows that are not finite.

    Raises:
        MeasurementError: in any case.
    """
    for cloud in clouds:
        cloud.require_finite()
    raise MeasurementError("the step's displacement overflows: the weights are too large to be compared")
