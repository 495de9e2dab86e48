"""A cloud of points, and all that is wanted of one: norms, distances, spanning tree, each computed once.

|x - y|^2 = |x|^2 + |y|^2 - 2 <x, y> costs one matrix product, but it cancels: in float32 it is wrong by 6 % at a
relative separation of 1e-3 and reads 0 below 1e-4, and near twins are the very pairs that matter here. So the pairs
whose squared distance is small against their norms are computed again from their differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.near import NearPairs, cancelling, cancels
from topoopt.geometry.precision import minus_twice_product_
from topoopt.geometry.tree import SpanningTree, minimum_spanning_tree

CHUNK = {"cpu": 1 << 19, "accelerator": 1 << 24}
"""Numbers of a strip of a matrix, and of gathered differences: what stays in a processor's cache, or fills a GPU."""
GATHERED = 8
"""Of a chunk, this part is gathered at once where few pairs are wanted: two points and a copy, which a cache holds together."""
SMALLEST, LARGEST = 2.0**-120, 2.0**120
"""What sizes are held between, so that no scale leaves the range of float32."""


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
    """Return the matrix (a host read).

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
    step, parts = max(1, chunk_of(x) // GATHERED // max(1, x.shape[1])), [x.new_zeros(0)]
    for a, b in zip(i.split(step), j.split(step)):
        parts.append(lengths(x.index_select(0, a).sub_(x.index_select(0, b))))  # three times faster than x[a]
    return torch.cat(parts)


def lengths(differences: Tensor) -> Tensor:
    """Norms of the rows of a matrix, which is overwritten: (m, d) -> (m,); no square under- or overflows."""
    if not differences.shape[1]:
        return differences.new_zeros(len(differences))
    unit = differences.abs().amax(dim=1).clamp_min_(torch.finfo(differences.dtype).tiny)
    return torch.linalg.vector_norm(differences.div_(unit[:, None]), dim=1).mul_(unit)


def chunk_of(tensor: Tensor) -> int:
    """Numbers to work on at a time on a tensor's device."""
    return CHUNK["cpu" if tensor.device.type == "cpu" else "accelerator"]


def strips_of(n: int, chunk: int) -> Iterator[slice]:
    """Blocks of rows of an (n, n) matrix: of a strip only the columns from its own first row on are needed."""
    rows = max(1, min(chunk // max(1, n), -(-n // 6) if n * n > chunk // 4 else n))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def power_of_two(size: Tensor) -> Tensor:
    """2^-e for a size in [2^(e-1), 2^e), exactly: by it numbers are scaled without rounding."""
    held = size.clamp(SMALLEST, LARGEST)
    mantissa, _ = torch.frexp(held)
    return mantissa / held


class Cloud:
    """Points (n, d) with what is made of them, lazily and once.

    The centred copy is scaled by a power of two, so that no square leaves the range of float32; squares are of that scale.
    Holds the points as given, that copy, and the distances (n, n) once they have been asked for.

    Raises:
        MeasurementError: for anything but a floating-point (n, d) tensor.
    """

    def __init__(self, points: Tensor) -> None:
        self.given = points.detach()
        self.points = as_points(points)

    @classmethod
    def of(cls, points: Tensor | Cloud) -> Cloud:
        """A cloud as it is, points made into one."""
        return points if isinstance(points, Cloud) else cls(points)

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return self.points.shape[1]

    @cached_property
    def _centring(self) -> tuple[Tensor, Tensor, Tensor]:
        return centred_and_scaled(self.points - self.points.mean(dim=0) if len(self) else self.points.clone())

    @property
    def centred(self) -> Tensor:
        """The points less their mean, times `scale`: (n, d). Without the mean norms are smaller, and less cancels."""
        return self._centring[0]

    @property
    def scale(self) -> Tensor:
        """The power of two that brings the largest entry of the centred points to [1/2, 1): 0-dim."""
        return self._centring[1]

    @property
    def finite(self) -> Tensor:
        """Whether the points and their mean are finite numbers: 0-dim bool, on the device."""
        return self._centring[2]

    @cached_property
    def norms(self) -> Tensor:
        """Squared norms of the centred copy: (n,)."""
        return torch.linalg.vector_norm(self.centred, dim=1).square_()

    @cached_property
    def distances(self) -> Tensor:
        """Distances between all points, (n, n): symmetric bit for bit, with a zero diagonal, right for near twins."""
        return self._of_all_pairs(self._unscaled_root)

    @cached_property
    def tree(self) -> SpanningTree:
        """Minimum spanning tree of the distances, its lengths right to rounding: H0's deaths.

        Where the distances have not been asked for, it is found on their squares (n, n), which are let go of: the edges are
        the same, and their lengths are measured from the differences anyway.
        """
        if "distances" in self.__dict__:
            return minimum_spanning_tree(self.distances).remeasured(self.lengths_of)
        tree = minimum_spanning_tree(self._of_all_pairs(lambda squares: squares))
        return replace(tree, nearest=self._unscaled_root(tree.nearest)).remeasured(self.lengths_of)

    def _unscaled_root(self, squares: Tensor) -> Tensor:
        """Distances of scaled squares, which are overwritten."""
        return squares.sqrt_().div_(self.scale)

    def _of_all_pairs(self, made_of: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of the squares of all pairs (n, n), symmetric bit for bit, with a zero diagonal."""
        found, near = self.points.new_empty(len(self), len(self)), NearPairs(self.points, thorough=True)
        for rows in self.strips():
            write_symmetric(found, rows, made_of(self.squares(rows, near)))
        return found

    def lengths_of(self, edges: Tensor) -> Tensor:
        """Distances of pairs (m, 2) -> (m,) from their differences."""
        return pair_distances(self.points, edges[:, 0], edges[:, 1])

    def forget(self) -> None:
        """Let go of the distances and the tree, which are computed again when asked for."""
        for made in ("distances", "tree"):
            self.__dict__.pop(made, None)

    def require_finite(self) -> Cloud:
        """Return the cloud (a host read).

        Raises:
            MeasurementError: naming the rows that hold NaN or infinite numbers.
        """
        if not bool(self.finite):
            refuse_nonfinite(self.points)
            raise MeasurementError("the points' mean overflows: their entries are too large to be weights")
        return self

    @property
    def chunk(self) -> int:
        """Numbers to work on at a time."""
        return chunk_of(self.points)

    def strips(self) -> Iterator[slice]:
        """Blocks of rows: of a strip only the columns from its own first row on are needed, the rest is its mirror."""
        return strips_of(len(self), self.chunk)

    def gram_squares(self, rows: slice) -> Tensor:
        """Squared distances of a strip to columns rows.start.. by the Gram matrix."""
        return gram_squares(self.centred, self.norms, rows)

    def squares(self, rows: slice, near: NearPairs) -> Tensor:
        """Squared distances of a strip to columns rows.start..; only what is above the diagonal may be used."""
        return self.squares_and_near(rows, near)[0]

    def squares_and_near(self, rows: slice, near: NearPairs) -> tuple[Tensor, Tensor, Tensor]:
        """`squares`, and where in the strip the near pairs are."""
        squares = self.gram_squares(rows)
        if near.counts and self._all_apart(squares):
            return squares, *near.none
        i, j = near.of(cancels(squares, sums_of(self.norms, rows)))
        squares[i, j] = self.exact_squares(i + rows.start, j + rows.start)
        return squares, i, j

    def _all_apart(self, squares: Tensor) -> bool:
        """Whether the smallest square of a strip is none to doubt, whatever its norms (a host read)."""
        squares[:, : len(squares)].diagonal().fill_(math.inf)
        return bool(squares.amin() > self._doubt)

    @cached_property
    def _doubt(self) -> Tensor:
        """The largest square that can cancel: 0-dim."""
        return cancelling(2 * self.norms.amax())

    def exact_squares(self, i: Tensor, j: Tensor) -> Tensor:
        """Squared distances of pairs i, j (m,) -> (m,) from their differences.

        Of the points as they were given: the difference of two near twins is then exact, which centring would spoil.
        """
        squares = self.points.new_empty(len(i))
        for part in self.pairs(len(i)):
            squares[part] = self.difference(i[part], j[part]).square_().sum(dim=1)
        return squares

    def difference(self, i: Tensor, j: Tensor) -> Tensor:
        """x_i - x_j, scaled: (m,), (m,) -> (m, d)."""
        return self.points.index_select(0, i).sub_(self.points.index_select(0, j)).mul_(self.scale)

    def pairs(self, count: int) -> Iterator[slice]:
        """Blocks of pairs whose differences fit in a chunk."""
        step = max(1, self.chunk // max(1, self.d))
        return (slice(start, start + step) for start in range(0, count, step))


def centred_and_scaled(centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale a centred cloud in place: it, its scale, and whether it is finite."""
    size = torch.stack(centred.aminmax()).abs().amax() if centred.numel() else centred.new_zeros(())
    scale = power_of_two(size)
    return centred.mul_(scale), scale, torch.isfinite(size)


def sums_of(norms: Tensor, rows: slice) -> Tensor:
    """Sums of the squared norms of a strip's pairs, columns rows.start..."""
    return norms[rows, None] + norms[None, rows.start :]


def gram_squares(centred: Tensor, norms: Tensor, rows: slice) -> Tensor:
    """Squared distances of a strip to columns rows.start.. by the Gram matrix."""
    return minus_twice_product_(sums_of(norms, rows), centred[rows], centred[rows.start :])


def write_symmetric(matrix: Tensor, rows: slice, strip: Tensor) -> None:
    """Put a strip, of which only what is above the diagonal is meant, and its mirror into a matrix; the diagonal is set to 0.

    A strip that is contiguous is turned over into a copy first: transposing straight into the matrix is three times slower
    on a CPU.
    """
    matrix[rows.start :, rows] = strip.T.contiguous()
    matrix[rows, rows.stop :] = strip[:, rows.stop - rows.start :]
    corner = strip[:, : rows.stop - rows.start].triu(1)
    matrix[rows, rows] = corner + corner.T
