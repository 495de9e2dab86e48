"""What a step does to the distances between neurons: gain, lower and upper distortion, contraction.

With D the displacement and a pair (i, j): u = x_i - x_j, v = D_i - D_j, gain g = |v| / |u|, contraction
c = -<v, u> / |u|^2, and the ratio of the distances after and before is sqrt(1 - 2 c + g^2). Written this way, in the
displacement, small steps do not cancel: the ratio is right to the rounding of D, not of x.
Source: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670, Lemmas 2 and 4, for this step's pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import Cloud, as_points, refuse_nonfinite, untrusted
from topoopt.geometry.extremes import Extremes, Pair
from topoopt.geometry.precision import full_precision

MERGED = 1e-3
"""Squared ratios below this are taken from the distances after the step: there 1 - 2 c + g^2 itself cancels."""


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


IDENTITY = Distortion(1.0, 1.0, 0.0, 0.0, (-1, -1), (-1, -1), (-1, -1), (-1, -1))
"""Of fewer than two points."""


@torch.no_grad()
def compare(before: Tensor, after: Tensor) -> Distortion:
    """Compare a cloud with itself a step later: (n, d), (n, d) -> `Distortion`.

    Streams over strips of rows: never holds (n, n), but three clouds beside those given and a few times `cloud.CHUNK`
    numbers. The pairs are chosen to about 1e-4 of the values, which are then computed again in float64.
    Neurons that coincide before and after (they stay together at any rate: Lemma 1) are left out; where all do, the
    result is that of a step that does nothing. A pair that coincides before and not after has an infinite gain and
    ratio: no Lipschitz rule does that.

    Raises:
        MeasurementError: for clouds of different shapes, or with NaN or infinite entries, naming the rows.
    """
    x, y = _same_shape(before, after)
    if len(x) < 2:
        return IDENTITY
    step = _Step(x, y)
    lower, upper, gain, contraction = Extremes("min"), Extremes("max"), Extremes("max"), Extremes("max")
    with full_precision(x):
        for rows in step.cloud.strips():
            ratios2, gains2, contractions = step.strip(rows)
            together = gains2.isnan().nonzero(as_tuple=True)
            lower.see(rows.start, ratios2, together)
            upper.see(rows.start, ratios2, together)
            gain.see(rows.start, gains2, together)
            contraction.see(rows.start, contractions, together)
    exact = [Pair(x, y, *extreme.place) for extreme in (lower, upper, gain, contraction)]
    return Distortion(
        exact[0].ratio, exact[1].ratio, exact[2].gain, exact[3].contraction, *(pair.indices for pair in exact)
    )


@torch.no_grad()
def ratios(before: Tensor, after: Tensor, *, distances: Tensor | None = None) -> tuple[float, float]:
    """(min, max) over pairs of |x_i' - x_j'| / |x_i - x_j|, as `compare` defines it, at two thirds of its price.

    With the `distances` (n, n) of `after` at hand it is one third. Meant for windows of many steps: it looks at
    distances, not at the displacement, and cannot tell ratios that differ by less than about 1e-4 from each other.

    Raises:
        MeasurementError: as `compare` does, and for distances of another shape.
    """
    x, y = _same_shape(before, after)
    if len(x) < 2:
        return 1.0, 1.0
    if distances is not None and distances.shape != (len(x), len(x)):
        raise MeasurementError(
            f"distances of {len(x)} points have shape {tuple(distances.shape)}: give those of `after`"
        )
    first = Cloud(x)
    last = Cloud(y) if distances is None else None
    lower, upper = Extremes("min"), Extremes("max")
    with full_precision(x):
        for rows in first.strips():
            squares = first.squares(rows)
            if last is not None:
                ratios2 = last.squares(rows).div_(squares)
            else:
                assert distances is not None
                ratios2 = distances[rows, rows.start :].square().div_(squares)
            together = ratios2.isnan().nonzero(as_tuple=True)
            lower.see(rows.start, ratios2, together)
            upper.see(rows.start, ratios2, together)
    return Pair(x, y, *lower.place).ratio, Pair(x, y, *upper.place).ratio


def _same_shape(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    if before.shape != after.shape:
        raise MeasurementError(
            f"clouds of shapes {tuple(before.shape)} and {tuple(after.shape)}: give the same neurons, before and after"
        )
    return as_points(before), as_points(after)


class _Step:
    """The clouds before and after a step, its displacement, and the one matrix that their inner products come from.

    <u, v> is had from |u + v|^2 = |u|^2 + 2 <u, v> + |v|^2 at the price of one symmetric product instead of two others.
    x and D are scaled to the same size first: neither part then drowns the other.
    """

    def __init__(self, before: Tensor, after: Tensor) -> None:
        self.cloud = Cloud(before)
        self._after = after
        try:
            self._displacement = Cloud(after - before, overwrite=True)
        except MeasurementError:
            refuse_nonfinite(after)  # names the neurons, where it was they
            raise
        self._mixture = self.cloud.mixed_with(self._displacement)
        self._unit = self.cloud.scale / self._displacement.scale  # of |v| / |u| in the clouds' scales

    @cached_property
    def _last(self) -> Cloud:
        return Cloud(self._after)

    def strip(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Squared ratio, squared gain (times a constant) and contraction of the pairs above the diagonal of a strip.

        The gain of a pair that coincides before and after is NaN.
        """
        u2, sums = self.cloud.gram_squares(rows)
        v2, _ = self._displacement.gram_squares(rows)
        inner, _ = self._mixture.gram_squares(rows)
        inner.sub_(u2).sub_(v2).div_(2)
        i, j = untrusted(u2, sums)
        for matrix, neutral in ((u2, 1.0), (v2, 0.0), (inner, 0.0)):  # on and below the diagonal nothing is meant
            corner = matrix[:, : matrix.shape[0]]
            corner.masked_fill_(torch.ones_like(corner, dtype=torch.bool).tril_(), neutral)
        u2[i, j], v2[i, j], inner[i, j] = self._exact(i + rows.start, j + rows.start)

        gains2 = v2.clamp_min_(0).div_(u2)
        contractions = inner.div_(u2).mul_(-self._unit).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
        ratios2 = (gains2 * self._unit).mul_(self._unit).add_(1).sub_(contractions, alpha=2)
        ratios2.nan_to_num_(nan=math.inf, posinf=math.inf)
        if bool((ratios2 < MERGED).any()):
            ratios2 = torch.where(ratios2 < MERGED, self._last.squares(rows) / u2, ratios2)
        return ratios2, gains2, contractions

    def _exact(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """|u|^2, |v|^2 and <u, v> of pairs from their differences, in the clouds' scales: three (m,)."""
        u2, v2, inner = self.cloud.norms.new_empty(3, len(i))
        for part in self.cloud.pairs(len(i)):
            u = self.cloud.points[i[part]] - self.cloud.points[j[part]]
            v = (self._after[i[part]] - self._after[j[part]]).sub_(u).mul_(self._displacement.scale)
            u.mul_(self.cloud.scale)
            u2[part], v2[part], inner[part] = u.square().sum(1), v.square().sum(1), (u * v).sum(1)
        return u2, v2, inner
