"""A cloud of points made ready for squared distances that are right when points nearly coincide.

|x - y|^2 = |x|^2 + |y|^2 - 2 <x, y> costs one matrix product, but it cancels: in float32 it is wrong by 6 % at a
relative separation of 1e-3 and reads 0 below 1e-4, and near twins are the very pairs that matter here. So the pairs
whose squared distance is small against their norms are computed again from their differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from topoopt.errors import MeasurementError

TRUST = {torch.float32: 1e-3, torch.float64: 1e-6}
"""A squared distance from the Gram matrix is trusted above this share of |x|^2 + |y|^2."""
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Numbers of a strip of a matrix, and of gathered differences: what stays in a processor's cache, or fills a GPU."""


def as_points(points: Tensor) -> Tensor:
    """Check a cloud and return it in the precision it is computed in: float64 as it is, everything else as float32.

    Raises:
        MeasurementError: for anything but an (n, d) floating-point tensor.
    """
    if points.ndim != 2 or not points.is_floating_point():
        shape = tuple(points.shape)
        raise MeasurementError(
            f"points are a {points.dtype} tensor of shape {shape}: give a floating-point (n, d) tensor, a row a neuron"
        )
    return points.detach() if points.dtype is torch.float64 else points.detach().float()


def refuse_nonfinite(matrix: Tensor) -> Tensor:
    """Return the matrix.

    Raises:
        MeasurementError: naming the rows that hold NaN or infinite numbers.
    """
    bad = ~torch.isfinite(matrix).all(dim=1)
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise MeasurementError(
            f"{len(rows)} of {len(bad)} neurons have NaN or infinite entries (neurons {shown}): the run has diverged, "
            "or an overflow was applied; lower the learning rate"
        )
    return matrix


@torch.no_grad()
def pair_distances(points: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Distances of some pairs of points (n, d) from their differences: index tensors (m,), (m,) -> (m,)."""
    x = as_points(points)
    step, parts = max(1, chunk_of(x) // max(1, x.shape[1])), [x.new_zeros(0)]
    for a, b in zip(i.split(step), j.split(step)):
        difference = x[a].sub_(x[b])
        unit = difference.abs().amax(dim=1).clamp_min_(torch.finfo(x.dtype).tiny)  # so that no square underflows
        parts.append(torch.linalg.vector_norm(difference.div_(unit[:, None]), dim=1).mul_(unit))
    return torch.cat(parts)


def chunk_of(tensor: Tensor) -> int:
    """Numbers to work on at a time on a tensor's device."""
    return CHUNK["cpu" if tensor.device.type == "cpu" else "cuda"]


class Cloud:
    """Points (n, d), a centred copy of them, and the squared norms of that.

    The copy is scaled by a power of two, so that no square leaves the range of float32; squares are of that scale. With
    `overwrite` it takes the place of the points, which are then good for `gram_squares` only.
    """

    def __init__(self, points: Tensor, *, overwrite: bool = False) -> None:
        self.points = as_points(points)
        mean = self.points.mean(dim=0)  # without it norms are smaller, and less cancels
        centred = self.points.sub_(mean) if overwrite else self.points - mean
        size = float(torch.stack(centred.aminmax()).abs().max()) if centred.numel() else 0.0
        if not math.isfinite(size):
            refuse_nonfinite(self.points)
            raise MeasurementError("the points' mean overflows: their entries are too large to be weights")
        self.scale = 2.0 ** -min(max(math.frexp(size)[1], -120), 120)
        self.centred = centred.mul_(self.scale)

    def __len__(self) -> int:
        return self.points.shape[0]

    @cached_property
    def norms(self) -> Tensor:
        """Squared norms of the centred copy: (n,)."""
        return torch.linalg.vector_norm(self.centred, dim=1).square_()

    def mixed_with(self, other: Cloud) -> Cloud:
        """The sum of the two centred copies, good for `gram_squares` only."""
        mixture = object.__new__(Cloud)
        mixture.points = mixture.centred = self.centred + other.centred
        mixture.scale = 1.0
        return mixture

    @property
    def chunk(self) -> int:
        """Numbers to work on at a time."""
        return chunk_of(self.points)

    def strips(self) -> Iterator[slice]:
        """Blocks of rows: of a strip only the columns from its own first row on are needed, the rest is its mirror."""
        n = max(1, len(self))
        rows = max(1, min(self.chunk // n, -(-n // 6) if n * n > self.chunk // 4 else n))
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    def gram_squares(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Squared distances of a strip to columns rows.start.. by the Gram matrix, and the sums of squared norms."""
        sums = self.norms[rows, None] + self.norms[None, rows.start :]
        return torch.addmm(sums, self.centred[rows], self.centred[rows.start :].T, alpha=-2), sums

    def squares(self, rows: slice) -> Tensor:
        """Squared distances of a strip to columns rows.start..; only what is above the diagonal may be used."""
        squares, sums = self.gram_squares(rows)
        i, j = untrusted(squares, sums)
        squares[i, j] = self.exact_squares(i + rows.start, j + rows.start)
        return squares

    def exact_squares(self, i: Tensor, j: Tensor) -> Tensor:
        """Squared distances of pairs i, j (m,) -> (m,) from their differences.

        Of the points as they were given: the difference of two near twins is then exact, which centring would spoil.
        """
        squares = self.centred.new_empty(len(i))
        for part in self.pairs(len(i)):
            squares[part] = self.difference(i[part], j[part]).square_().sum(dim=1)
        return squares

    def difference(self, i: Tensor, j: Tensor) -> Tensor:
        """x_i - x_j, scaled: (m,), (m,) -> (m, d)."""
        return self.points[i].sub_(self.points[j]).mul_(self.scale)

    def pairs(self, count: int) -> Iterator[slice]:
        """Blocks of pairs whose differences fit in a chunk."""
        step = max(1, self.chunk // max(1, self.points.shape[1]))
        return (slice(start, start + step) for start in range(0, count, step))


def untrusted(squares: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of a strip above the diagonal where the Gram matrix cancels; overwrites `sums`."""
    i, j = (squares < sums.mul_(TRUST[squares.dtype])).nonzero(as_tuple=True)
    above = j > i
    return i[above], j[above]
