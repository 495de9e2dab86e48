"""The pairs of a strip that are too close for the Gram matrix, chosen without asking the device how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from topoopt.device import reading_is_free

TRUST = {torch.float32: 1e-3, torch.float64: 1e-6}
"""A squared distance from the Gram matrix is trusted above this share of |x|^2 + |y|^2."""
PER_ROW = 8
"""Pairs there is room for in a strip where their number must not be read: this many a row."""


class NearPairs:
    """Chooses pairs of strips; on an accelerator into as many places as there is room for, so that nothing is read.

    `thorough` reads how many there are. Otherwise `missed` says, on the device, whether there were more somewhere. Places
    that no pair fills hold the strip's first entry, which is on the diagonal and means nothing.
    """

    def __init__(self, like: Tensor, *, thorough: bool = False) -> None:
        self.counts = thorough or reading_is_free(like)
        self.missed = torch.zeros((), dtype=torch.bool, device=like.device)

    @property
    def none(self) -> tuple[Tensor, Tensor]:
        """Row and column of no pair."""
        nothing = torch.zeros(0, dtype=torch.int64, device=self.missed.device)
        return nothing, nothing

    def of(self, near: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column, in the strip, of the pairs above the diagonal that a mask (rows, m) marks; overwrites it."""
        if self.counts:
            i, j = near.nonzero(as_tuple=True)
            above = j > i
            return i[above], j[above]
        near[:, : near.shape[0]].triu_(1)
        room = PER_ROW * near.shape[0]
        place = near.flatten().cumsum(0, dtype=torch.int32)
        self.missed |= place[-1] > room
        index = torch.arange(near.numel(), device=near.device)
        taken = torch.where(near.flatten() & (place <= room), place - 1, room).long()
        filled = torch.arange(room, device=near.device) < place[-1]
        flat = index.new_zeros(room + 1).scatter_(0, taken, index)[:room].where(filled, 0)
        return flat // near.shape[1], flat % near.shape[1]


def cancelling(sums: Tensor) -> Tensor:
    """The largest squared distance that cancels against a sum of squared norms."""
    return sums * TRUST[sums.dtype]


def cancels(squares: Tensor, sums: Tensor) -> Tensor:
    """Where squared distances from a Gram matrix cancel against the sums of squared norms; overwrites `sums`."""
    return squares <= sums.mul_(TRUST[squares.dtype])  # equal where both points are in the middle
