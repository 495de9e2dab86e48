"""The largest and smallest entries of a streamed matrix, and their exact values for the pairs that attain them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from topoopt.device import wide


class Extremes:
    """The extreme entry above the diagonal of a symmetric matrix, seen strip by strip; nothing is read."""

    def __init__(self, kind: Literal["min", "max"]) -> None:
        self._sign = 1.0 if kind == "max" else -1.0
        self._best: Tensor | None = None
        self._place: Tensor | None = None

    def see(self, start: int, strip: Tensor, left_out: LeftOut) -> None:
        """Take a strip, rows and columns from `start` on; overwrites what is left out."""
        left_out.fill(strip, -self._sign * math.inf)
        values = strip.amax(dim=1) if self._sign > 0 else strip.amin(dim=1)  # with indices it is ten times slower
        best, row = (values * self._sign).max(dim=0, keepdim=True)
        column = (strip.index_select(0, row) * self._sign).argmax(dim=1)
        place = torch.cat([row, column]) + start
        if self._best is None or self._place is None:
            self._best, self._place = best, place
        else:
            self._place = torch.where(best > self._best, place, self._place)
            self._best = torch.maximum(best, self._best)

    @property
    def place(self) -> Tensor:
        """Row and column of the extreme: (2,) int64."""
        assert self._place is not None
        return self._place


@dataclass(frozen=True)
class LeftOut:
    """The entries of a strip that are not looked at: on and below the diagonal, and pairs that stay together."""

    rows: Tensor  # (m,) with columns, places in the strip
    columns: Tensor  # (m,)
    together: Tensor  # (m,) bool: which of them are left out

    def fill(self, strip: Tensor, value: float) -> None:
        """Write a value there."""
        height = strip.shape[0]
        below = torch.ones(height, height, dtype=torch.bool, device=strip.device).tril_()
        strip[:, :height].masked_fill_(below, value)
        strip[self.rows, self.columns] = torch.where(self.together, value, strip[self.rows, self.columns])


@dataclass(frozen=True)
class Pairs:
    """Some pairs of points before and after a step, measured from their differences, in float64 where the device has it."""

    ratio: Tensor  # (m,) |x_i' - x_j'| / |x_i - x_j|: 1 for points together before and after, inf if only before
    gain: Tensor  # (m,) |D_i - D_j| / |x_i - x_j|: 0 for points together before and after, inf if only before
    contraction: Tensor  # (m,) -<D_i - D_j, x_i - x_j> / |x_i - x_j|^2: 0 for points together before

    @classmethod
    def of(cls, before: Tensor, after: Tensor, places: Tensor) -> Pairs:
        """Measure the pairs at places (m, 2) of two clouds (n, d)."""
        i, j = places[:, 0], places[:, 1]
        u, last = (wide(cloud[i]) - wide(cloud[j]) for cloud in (before, after))
        v = last - u
        size = u.abs().amax(dim=1, keepdim=True)  # the unit, so that no square overflows
        together, apart = size[:, 0] == 0, (last != 0).any(dim=1)
        size = torch.where(size == 0, torch.ones_like(size), size)
        u, v, last = u / size, v / size, last / size
        length = torch.where(together, torch.ones_like(size[:, 0]), torch.linalg.vector_norm(u, dim=1))
        ratio, gain = (torch.linalg.vector_norm(x, dim=1) / length for x in (last, v))
        ratio, gain = (
            torch.where(together, torch.where(apart, math.inf, neutral).to(value.dtype), value)
            for value, neutral in ((ratio, 1.0), (gain, 0.0))
        )
        contraction = torch.where(together, 0.0, -(u * v).sum(dim=1) / length.square())
        return cls(ratio, gain, contraction)
