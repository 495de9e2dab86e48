"""Maxmin landmarks against the obvious loop, and against the best cover by brute force."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.errors import MeasurementError
from topoopt.geometry import distances, maxmin


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def covering_radius(matrix: torch.Tensor, indices) -> float:
    return float(matrix[:, list(indices)].min(dim=1).values.max())


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), k=st.integers(1, 70), d=st.integers(1, 5), seed=st.integers(0, 1000))
def test_each_is_farthest_from_those_before(n, k, d, seed):
    x = cloud(n, d, seed)
    matrix = distances(x)
    found = maxmin(distances=matrix, k=k, seed=seed)
    chosen = found.indices.tolist()
    assert len(set(chosen)) == len(chosen) == min(n, k)
    assert found.radius == pytest.approx(covering_radius(matrix, chosen))
    for m in range(1, len(chosen) if k < n else 0):
        nearest = matrix[:, chosen[:m]].min(dim=1).values
        assert nearest[chosen[m]] == nearest.max()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_within_twice_the_best_cover(k, seed):
    """Gonzalez 1985: no k points cover within less than half the radius."""
    matrix = distances(cloud(14, 2, seed))
    best = min(covering_radius(matrix, centres) for centres in combinations(range(14), k))
    assert maxmin(distances=matrix, k=k).radius <= 2 * best * (1 + 1e-6)


def test_points_or_distances():
    x = cloud(80, 4)
    by_points, by_distances = maxmin(x, 10, seed=3), maxmin(distances=distances(x), k=10, seed=3)
    assert torch.equal(by_points.indices, by_distances.indices)
    assert by_points.radius == pytest.approx(by_distances.radius, rel=1e-6)


def test_the_seed_alone_decides():
    x = cloud(80, 4)
    state = torch.get_rng_state()
    first = maxmin(x, 10)
    torch.rand(3)
    assert torch.equal(first.indices, maxmin(x, 10).indices)
    torch.set_rng_state(state)
    assert len({int(maxmin(x, 1, seed=seed).indices) for seed in range(20)}) > 5


@pytest.mark.parametrize("arguments", [{}, {"points": torch.zeros(3, 2), "distances": torch.zeros(3, 3)}])
def test_one_of_points_and_distances(arguments):
    with pytest.raises(MeasurementError, match="one of them"):
        maxmin(**arguments)


def test_refusals():
    with pytest.raises(MeasurementError, match="k=0"):
        maxmin(cloud(5, 2), 0)
    x = cloud(5, 2)
    x[2] = torch.nan
    with pytest.raises(MeasurementError, match="neurons 2"):
        maxmin(x, 3)
