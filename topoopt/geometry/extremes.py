"""The largest and smallest entries of a streamed matrix, and their exact values for the pairs that attain them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Places = tuple[Tensor, ...]
"""Row and column indices, as of `nonzero(as_tuple=True)`."""


class Extremes:
    """The extreme entry above the diagonal of a symmetric matrix, seen strip by strip. One host read a strip."""

    def __init__(self, kind: Literal["min", "max"]) -> None:
        self._sign = 1.0 if kind == "max" else -1.0
        self._best = -math.inf
        self.place = (0, 1)

    def see(self, start: int, strip: Tensor, left_out: Places) -> None:
        """Take a strip, rows and columns from `start` on; overwrites what is `left_out` or not above the diagonal."""
        corner = strip[:, : strip.shape[0]]
        below = torch.ones_like(corner, dtype=torch.bool).tril_()
        corner.masked_fill_(below, -self._sign * math.inf)
        strip[left_out] = -self._sign * math.inf
        value = self._sign * float(strip.amax() if self._sign > 0 else strip.amin())
        if value > self._best:
            self._best = value
            flat = int(strip.argmax() if self._sign > 0 else strip.argmin())
            self.place = (start + flat // strip.shape[1], start + flat % strip.shape[1])


class Pair:
    """Two points before and after a step, in float64."""

    def __init__(self, before: Tensor, after: Tensor, i: int, j: int) -> None:
        self.indices = (i, j)
        self._u, last = ((cloud[i].double() - cloud[j].double()).cpu() for cloud in (before, after))
        self._v = last - self._u
        size = float(self._u.abs().max())
        self._coincident = size == 0.0
        self._moved_apart = bool((last != 0).any())
        if not self._coincident:  # in units of the largest component, so that no square overflows
            self._u, self._v = self._u / size, self._v / size

    @property
    def ratio(self) -> float:
        """|u + v| / |u|; 1 for points together before and after, inf if only before."""
        if self._coincident:
            return math.inf if self._moved_apart else 1.0
        return float((self._u + self._v).norm() / self._u.norm())

    @property
    def gain(self) -> float:
        """|v| / |u|; 0 for points together before and after, inf if only before."""
        if self._coincident:
            return math.inf if self._moved_apart else 0.0
        return float(self._v.norm() / self._u.norm())

    @property
    def contraction(self) -> float:
        """-<v, u> / |u|^2; 0 for points together before."""
        return 0.0 if self._coincident else float(-(self._v @ self._u) / (self._u @ self._u))
