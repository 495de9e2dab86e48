"""Pairwise distances that are right when neurons nearly coincide."""

from __future__ import annotations

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import Cloud, refuse_nonfinite

STRIP = 1 << 20
"""Numbers compared with their mirror image at a time."""


@torch.no_grad()
def distances(points: Tensor | Cloud) -> Tensor:
    """Euclidean distances between all rows: (n, d) -> (n, n), in the units of `points`.

    float64 for float64 points, float32 for all others. Symmetric bit for bit, with a zero diagonal. Holds the result, a
    centred copy of the points (and a float32 one where they are stored in less) and a few times `cloud.CHUNK` numbers.

    Raises:
        MeasurementError: for anything but a floating-point (n, d) tensor, and for NaN or infinite entries, naming the
            rows.
    """
    return Cloud.of(points).require_finite().distances


@torch.no_grad()
def checked_distances(matrix: Tensor | None) -> Tensor:
    """Return a matrix of distances (n, n) that was given by hand, in float32 or float64 (one host read where it is right).

    Raises:
        MeasurementError: for anything but a square matrix of finite, non-negative floating-point numbers, symmetric bit for
            bit, with zeros on the diagonal; naming what and where.
    """
    assert matrix is not None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
        raise MeasurementError(
            f"distances are a {matrix.dtype} tensor of shape {tuple(matrix.shape)}: give a floating-point (n, n) one"
        )
    d = matrix.detach() if matrix.dtype is torch.float64 else matrix.detach().float()
    if not len(d):
        return d
    step = max(1, STRIP // len(d))
    starts = range(0, len(d), step)
    mirrored = torch.stack([(d[k : k + step, k:] != d[k:, k : k + step].T).any() for k in starts]).any()
    low, high = d.aminmax()  # NaN if there is one
    faults = torch.stack([~torch.isfinite(low + high), low < 0, d.diagonal().any(), mirrored])
    infinite, negative, diagonal, asymmetric = faults.tolist()
    if infinite:
        refuse_nonfinite(d)
    if negative:
        raise MeasurementError(f"{_first(d < 0, d)}: a distance is not negative")
    if diagonal:
        raise MeasurementError(f"{_first(torch.diag(d.diagonal()) != 0, d)}: a neuron is at distance 0 from itself")
    if asymmetric:
        raise MeasurementError(
            f"the distances are not symmetric, {_first(d != d.T, d)}: give d with d[i, j] == d[j, i], bit for bit; "
            "(d + d.T) / 2 is, where they differ by rounding"
        )
    return d


def _first(wrong: Tensor, d: Tensor) -> str:
    i, j = wrong.nonzero()[0].tolist()
    there = "" if i == j else f", d[{j}, {i}] = {float(d[j, i])!r}"
    return f"d[{i}, {j}] = {float(d[i, j])!r}{there}"
