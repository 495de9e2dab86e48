"""What a step does to the distances between neurons: gain, lower and upper distortion, contraction.

With x the points before, D the displacement and a pair (i, j): u = x_i - x_j, v = D_i - D_j,
gain g = |v| / |u|, contraction c = -<v, u> / |u|^2, and the ratio of the distances after and before is
sqrt(1 - 2 c + g^2). Written this way, in the displacement, small steps do not cancel: the ratio is right to the
rounding of D, not of x. Source: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670, Lemmas 2 and 4, for this step's pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.distances import CHUNK, TRUST, as_points, full_precision, inner_pairs

MERGED = 1e-3
"""Squared ratios below this are computed again from the differences: there 1 - 2 c + g^2 itself cancels."""


@dataclass(frozen=True)
class Distortion:
    """What a map of n points did to their pairwise distances."""

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
        """Whether gain < 1: the step was then bi-Lipschitz with constants in [1 - gain, 1 + gain], without any assumption."""
        return self.gain < 1.0


IDENTITY = Distortion(1.0, 1.0, 0.0, 0.0, (-1, -1), (-1, -1), (-1, -1), (-1, -1))
"""Of fewer than two points."""


@torch.no_grad()
def compare(before: Tensor, after: Tensor) -> Distortion:
    """Compare a cloud with itself a step later: (n, d), (n, d) -> `Distortion`.

    Streams over blocks of rows: holds both clouds, the displacement and a few times `CHUNK` numbers, never (n, n).
    Neurons that coincide before and after count as unmoved (they stay together at any rate); a pair that coincides
    before and not after has an infinite gain and ratio: no Lipschitz rule does that.

    Raises:
        MeasurementError: for clouds of different shapes.
    """
    if before.shape != after.shape:
        raise MeasurementError(
            f"clouds of shapes {tuple(before.shape)} and {tuple(after.shape)}: give the same neurons"
        )
    x = as_points(before)
    displacement = (as_points(after) - x).contiguous()
    if x.shape[0] < 2:
        return IDENTITY
    x = x - x.mean(dim=0)
    displacement = displacement - displacement.mean(dim=0)
    best = _Extremes()
    rows = max(1, CHUNK // x.shape[0])
    with full_precision(x):
        for start in range(0, x.shape[0], rows):
            best.add(start, *_block(x, displacement, start, min(start + rows, x.shape[0])))
    return best.result(x.shape[0])


def ratios(before: Tensor, after: Tensor) -> tuple[float, float]:
    """(min, max) over pairs of |x_i' - x_j'| / |x_i - x_j|."""
    moved = compare(before, after)
    return moved.lower, moved.upper


def _block(x: Tensor, displacement: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squared ratio, squared gain and contraction of rows start..stop against all: three (rows, n) tensors."""
    rows = slice(start, stop)
    xb, db = x[rows], displacement[rows]
    xx, dd = x.square().sum(1), displacement.square().sum(1)
    xd = (x * displacement).sum(1)
    norms = xx[rows, None] + xx[None, :]
    u2 = (norms - 2 * (xb @ x.T)).clamp_min_(0)
    v2 = (dd[rows, None] + dd[None, :] - 2 * (db @ displacement.T)).clamp_min_(0)
    uv = xd[rows, None] + xd[None, :] - xb @ displacement.T - db @ x.T

    i, j = (u2 < TRUST[x.dtype] * norms).nonzero(as_tuple=True)
    u2[i, j] = inner_pairs(x, x, i + start, j)
    v2[i, j] = inner_pairs(displacement, displacement, i + start, j)
    uv[i, j] = inner_pairs(x, displacement, i + start, j)

    gain2, contraction = v2 / u2, -uv / u2
    ratio2 = 1 - 2 * contraction + gain2
    i, j = (ratio2 < MERGED).nonzero(as_tuple=True)
    after = x + displacement
    ratio2[i, j] = inner_pairs(after, after, i + start, j) / u2[i, j]

    together = u2 == 0
    apart = v2 > 0
    gain2 = torch.where(together, torch.where(apart, math.inf, 0.0), gain2)
    ratio2 = torch.where(together, torch.where(apart, math.inf, 1.0), ratio2)
    contraction = torch.where(together, 0.0, contraction)
    return ratio2, gain2, contraction


class _Extremes:
    """Running extremes over blocks, kept on the device until the end."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._places: list[Tensor] = []

    def add(self, start: int, ratio2: Tensor, gain2: Tensor, contraction: Tensor) -> None:
        n = ratio2.shape[1]
        diagonal = torch.arange(ratio2.shape[0], device=ratio2.device)
        columns = diagonal + start
        values, places = [], []
        for matrix, sign in ((ratio2, -1.0), (ratio2, 1.0), (gain2, 1.0), (contraction, 1.0)):
            signed = matrix * sign
            signed[diagonal, columns] = -math.inf
            value, place = signed.flatten().max(dim=0)
            values.append(value)
            places.append(place + start * n)
        self._values.append(torch.stack(values))
        self._places.append(torch.stack(places))

    def result(self, n: int) -> Distortion:
        """One copy to the host."""
        values, blocks = torch.stack(self._values).max(dim=0)
        places = torch.stack(self._places).gather(0, blocks[None])[0]
        lower, upper, gain, contraction = values.double().tolist()
        pairs = [(place // n, place % n) for place in places.tolist()]
        return Distortion(
            lower=math.sqrt(max(0.0, -lower)),
            upper=math.sqrt(max(0.0, upper)),
            gain=math.sqrt(max(0.0, gain)),
            contraction=contraction,
            lower_pair=pairs[0],
            upper_pair=pairs[1],
            gain_pair=pairs[2],
            contraction_pair=pairs[3],
        )
