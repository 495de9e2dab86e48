"""The certificate: stability on a log scale, on random bi-Lipschitz maps, and what `Watch` concludes from it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from topoopt.geometry import ratios
from topoopt.homology import Watch, bottleneck, persistence


def bi_lipschitz(points: torch.Tensor, seed: int, strength: float) -> torch.Tensor:
    """A random smooth map x -> A x + s sum_k a_k sin(<w_k, x>), one-to-one for a small strength and free to fold else."""
    generator = torch.Generator().manual_seed(seed)
    d = points.shape[1]
    linear = torch.eye(d, dtype=torch.float64) + strength * torch.randn(d, d, generator=generator, dtype=torch.float64)
    w = torch.randn(3, d, generator=generator, dtype=torch.float64)
    a = torch.randn(3, d, generator=generator, dtype=torch.float64)
    return points @ linear.T + strength * torch.sin(points @ w.T) @ a


def loops(n: int, seed: int, count: int, noise: float) -> torch.Tensor:
    """`count` noisy circles side by side in three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    circle = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1)
    shifts = torch.arange(count, dtype=torch.float64)[:, None] * torch.tensor([4.0, 0, 0], dtype=torch.float64)
    points = (circle[None] + shifts[:, None]).reshape(-1, 3)
    return points + noise * torch.randn(points.shape, generator=generator, dtype=torch.float64)


def log_distance(before: list[np.ndarray], after: list[np.ndarray], shift: float, degree: int) -> float:
    """Log-bottleneck distance once the first diagram is shifted by a factor."""
    return bottleneck(before[degree] * math.exp(shift), after[degree], log=True)


@settings(max_examples=80, deadline=None)
@given(n=st.integers(2, 40), d=st.integers(1, 4), seed=st.integers(0, 2**31), strength=st.floats(0.001, 1.0))
def test_the_bound_is_never_wrong(n, d, seed, strength):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = bi_lipschitz(x, seed + 1, strength)
    lower, upper = ratios(x, y)
    assume(lower > 1e-6)
    before, after = persistence(x).diagrams, persistence(y).diagrams
    shift, bound = (math.log(lower) + math.log(upper)) / 2, (math.log(upper) - math.log(lower)) / 2
    for degree in (0, 1):
        assert log_distance(before, after, shift, degree) <= bound + 1e-6


@pytest.mark.parametrize(("a", "b"), [(0.5, 1.0), (0.9, 1.3), (1.0, 1.001)])
def test_the_bound_is_attained(a, b):
    """Two squares, one scaled by a and one by b, far from each other: both degrees move by (log b - log a) / 2."""
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    far = torch.tensor([20.0, 0.0], dtype=torch.float64)
    x = torch.cat([square, square + far])
    y = torch.cat([a * square, b * square + (a + b) / 2 * far])
    lower, upper = ratios(x, y)
    assert (lower, upper) == (pytest.approx(a), pytest.approx(b))
    before, after = persistence(x).diagrams, persistence(y).diagrams
    shift, bound = (math.log(lower) + math.log(upper)) / 2, (math.log(upper) - math.log(lower)) / 2
    for degree in (0, 1):
        limit = min(bound, math.log(math.sqrt(2)) / 2) if degree else bound  # a bar may go to the diagonal instead
        assert log_distance(before, after, shift, degree) == pytest.approx(limit, abs=1e-6)


def feature_ratios(diagram: np.ndarray) -> np.ndarray:
    return np.sort(diagram[:, 1] / diagram[:, 0])[::-1]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 3), strength=st.floats(0.001, 0.3), noise=st.floats(0, 0.1))
def test_what_is_watched_is_still_there(seed, count, strength, noise):
    x = loops(24, seed, count, noise) if count else torch.randn(60, 3, dtype=torch.float64)
    y = bi_lipschitz(x, seed + 1, strength)
    before, after = (feature_ratios(persistence(points).diagrams[1]) for points in (x, y))
    watch = Watch.of(persistence(x).diagrams).observe(*ratios(x, y))
    if count and noise < 0.02:
        assert watch.watched == count
    assume(not watch.stale)
    resolution = watch.resolution * (1 + 1e-9)
    if watch.watched:
        assert (after >= before[watch.watched - 1] / resolution).sum() == watch.watched
    else:
        assert Watch.of(persistence(y).diagrams).watched == 0


def diagrams(*ratios_of_h1: float) -> list[np.ndarray]:
    h1 = np.array([[0.5, 0.5 * r] for r in ratios_of_h1]).reshape(-1, 2)
    return [np.array([[0.0, 1.0], [0.0, np.inf]]), h1]


@pytest.mark.parametrize(
    ("found", "watched", "limit"),
    [
        ((), 0, math.sqrt(2.0)),
        ((1.25, 1.1), 0, math.sqrt(2.0 / (1.25 / 1.1))),
        ((4.0,), 1, 2.0),
        ((9.0, 8.0, 1.0), 2, math.sqrt(8.0)),
        ((12.0, 3.0, 1.5), 1, 2.0),
        ((1.9, 1.8), 0, math.sqrt(2.0 / 1.8)),
    ],
)
def test_what_stands_out(found, watched, limit):
    watch = Watch.of(diagrams(*found))
    assert watch.watched == watched
    assert watch.limit == pytest.approx(limit)
    assert watch.resolution == 1.0
    assert not watch.stale


def test_a_window_is_replaced_not_compounded():
    watch = Watch.of(diagrams(4.0))
    assert not watch.observe(0.9, 1.7).stale
    assert watch.observe(0.9, 1.8).stale
    assert not watch.observe(0.9, 1.8).observe(0.99, 1.01).stale
    assert watch.observe(3.0, 3.0).resolution == 1.0


@pytest.mark.parametrize("window", [(0.0, 1.0), (1.0, math.inf), (math.nan, math.nan), (0.0, 0.0)])
def test_a_window_that_certifies_nothing(window):
    assert Watch.of(diagrams(100.0)).observe(*window).stale


def test_h0_alone_is_watched_by_nothing():
    assert Watch.of(diagrams()[:1]) == Watch(0, math.sqrt(2.0))
