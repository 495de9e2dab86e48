"""What a step does to every pair of neurons, streamed in strips of rows.

With D the displacement and a pair (i, j): u = x_i - x_j, v = D_i - D_j, gain g = |v| / |u|, contraction
c = -<v, u> / |u|^2, and the ratio of the distances after and before is sqrt(1 - 2 c + g^2). Written this way, in the
displacement, small steps do not cancel: the ratio is right to the rounding of D, not of x.
Source: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670, Lemmas 2 and 4, for this step's pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import Cloud, centred_and_scaled, gram_squares, sums_of
from topoopt.geometry.extremes import Extremes, LeftOut, Pairs
from topoopt.geometry.near import PER_ROW, NearPairs, cancels

MERGED = 1e-3
"""Squared ratios below this are taken from the distances after the step: there 1 - 2 c + g^2 itself cancels."""


class Step:
    """The clouds before and after a step, and three Gram matrices: of x, of the displacement D, and of their mixture.

    <u, v> is had from |u + v|^2 = |u|^2 + 2 <u, v> + |v|^2 at the price of one symmetric product instead of two others.
    x and D are scaled to the same size first: neither part then drowns the other. The squared distances after the step are
    a sum of the three, so that they cost no product: |u + t v|^2 with t the ratio of the scales.
    Holds three clouds beside those given; reads nothing unless `near` does.
    """

    def __init__(self, before: Cloud, after: Cloud, near: NearPairs) -> None:
        self.before, self.after, self._near = before, after, near
        displacement = after.points - before.points
        displacement.sub_(displacement.mean(dim=0))
        self._d, self._d_scale, finite = centred_and_scaled(displacement)
        self.finite = finite & before.finite
        self._mixture = before.centred + self._d
        self._nd, self._nm = (torch.linalg.vector_norm(x, dim=1).square_() for x in (self._d, self._mixture))
        self._t = (before.scale / self._d_scale).clamp(2.0**-126, 2.0**126)  # of |v| / |u| in the clouds' scales
        self._a = 1 / self._t.clamp_min(1)  # w = (a u + b v) / after_scale, neither above 1
        self._b = self._a * self._t
        self.after_scale = before.scale * self._a
        self.collapsed = False
        """Whether the cloud shrank so much that its distances had to be taken from it alone."""

    @property
    def after_norms(self) -> Tensor:
        """Squared norms of the centred points after the step, in their scale: (n,)."""
        a, b, nx = self._a, self._b, self.before.norms
        return (a * a * nx + a * b * (self._nm - nx - self._nd) + b * b * self._nd).clamp_min_(0)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Look at every pair: (lower, upper, gain, contraction) exactly, (4,), and the pairs that attain them, (4, 2)."""
        for _ in self.strips():
            pass
        return self.found()

    def strips(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Go through the strips; yields rows, squared distances after the step from the Gram matrices, and those with near
        pairs made right, both scaled. Of the latter only what is above the diagonal is meant.
        """
        self._seen = Extremes("min"), Extremes("max"), Extremes("max"), Extremes("max")
        for rows in self.before.strips():
            u2, v2, inner, gram_w2, w2, i, j = self._squares(rows)
            left_out = LeftOut(i, j, (u2[i, j] == 0) & (v2[i, j] == 0))
            ratios2, gains2, contractions = self._of_pairs(u2, v2, inner, w2)
            for seen, matrix in zip(self._seen, (ratios2, ratios2, gains2, contractions)):
                seen.see(rows.start, matrix, left_out)
            yield rows, gram_w2, w2

    def found(self) -> tuple[Tensor, Tensor]:
        """What the strips have shown: see `extremes`."""
        places = torch.stack([seen.place for seen in self._seen])
        pairs = Pairs.of(self.before.points, self.after.points, places)
        return torch.stack([pairs.ratio[0], pairs.ratio[1], pairs.gain[2], pairs.contraction[3]]), places

    def _squares(self, rows: slice) -> tuple[Tensor, ...]:
        """Of a strip: |u|^2, |v|^2, <u, v>, |w|^2 from the Gram matrices and made right, and where the near pairs are."""
        a, b, nx, near = self._a, self._b, self.before.norms, self._near
        u2 = self.before.gram_squares(rows)
        v2 = gram_squares(self._d, self._nd, rows)
        inner = gram_squares(self._mixture, self._nm, rows)
        inner.sub_(u2).sub_(v2).div_(2)
        gram_w2 = torch.addcmul(a * a * u2, inner, 2 * a * b).addcmul_(v2, b * b)
        own = (a + b) * (a * nx + b * self._nd)  # what w's rounding is measured against
        close_before, close_after = cancels(u2, sums_of(nx, rows)), cancels(gram_w2, sums_of(own, rows))
        i, j = near.of(close_before | close_after)
        w2 = gram_w2.clone()
        if near.counts and len(i) > PER_ROW * (rows.stop - rows.start) and close_after.sum() > 2 * close_before.sum():
            self.collapsed = True
            w2 = self.after.squares(rows, near).mul_((self.after_scale / self.after.scale).square())
            i, j = near.of(close_before)
            u2[i, j], v2[i, j], inner[i, j], _ = self._exact(i + rows.start, j + rows.start)
        else:
            u2[i, j], v2[i, j], inner[i, j], w2[i, j] = self._exact(i + rows.start, j + rows.start)
        return u2, v2, inner, gram_w2, w2, i, j

    def _of_pairs(self, u2: Tensor, v2: Tensor, inner: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared ratio, squared gain (times a constant) and contraction; overwrites all but w2."""
        gains2 = v2.clamp_min_(0).div_(u2)
        contractions = inner.div_(u2).mul_(-self._t).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
        ratios2 = (gains2 * self._t).mul_(self._t).add_(1).sub_(contractions, alpha=2)
        ratios2.nan_to_num_(nan=math.inf, posinf=math.inf)
        ratios2 = torch.where(ratios2 < MERGED, u2.mul_(self._a * self._a).reciprocal_().mul_(w2), ratios2)
        return ratios2, gains2.nan_to_num_(nan=-math.inf, posinf=math.inf), contractions

    def _exact(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """|u|^2, |v|^2, <u, v> and |w|^2 of pairs from their differences, in the clouds' scales: four (m,)."""
        u2, v2, inner, w2 = self.before.points.new_empty(4, len(i))
        for part in self.before.pairs(len(i)):
            u = self.before.points[i[part]] - self.before.points[j[part]]
            w = self.after.points[i[part]] - self.after.points[j[part]]
            v = (w - u).mul_(self._d_scale)
            u.mul_(self.before.scale)
            w.mul_(self.after_scale)
            u2[part], v2[part], inner[part], w2[part] = (
                u.square().sum(1),
                v.square().sum(1),
                (u * v).sum(1),
                w.square().sum(1),
            )
        return u2, v2, inner, w2


def window(reference: Cloud, after: Cloud, near: NearPairs, distances: Tensor | None = None) -> Tensor:
    """(lower, upper) distortion from an older cloud to this one, exact for the pairs named: (2,).

    One Gram product, or two without the `distances` (n, n) of `after`.
    """
    lower, upper = Extremes("min"), Extremes("max")
    for rows in reference.strips():
        squares, i, j = reference.squares_and_near(rows, near)
        last = (
            after.squares(rows, near) if distances is None else (distances[rows, rows.start :] * after.scale).square_()
        )
        ratios2 = last.div_(squares)
        left_out = LeftOut(i, j, ratios2[i, j].isnan())
        lower.see(rows.start, ratios2, left_out)
        upper.see(rows.start, ratios2, left_out)
    return Pairs.of(reference.points, after.points, torch.stack([lower.place, upper.place])).ratio


def same_shape(before: Cloud, after: Cloud) -> None:
    """Raise MeasurementError unless two clouds are of as many points of as many dimensions."""
    if before.points.shape != after.points.shape:
        shapes = f"{tuple(before.points.shape)} and {tuple(after.points.shape)}"
        raise MeasurementError(f"clouds of shapes {shapes}: give the same neurons, before and after")
