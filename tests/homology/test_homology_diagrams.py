"""Distances and summaries of diagrams against the definition, gudhi and closed forms."""

import math
import warnings

import gudhi.hera
import gudhi.representations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from topoopt.errors import MeasurementError
from topoopt.geometry import distances
from topoopt.homology import (
    betti_curve,
    bottleneck,
    largest_loop,
    log_persistence,
    persistence,
    persistence_entropy,
    prominent,
    total_persistence,
)


@st.composite
def diagrams(draw, positive=False, coarse=False):
    """Finite diagrams: with repeated points and points on the diagonal when coarse."""
    size = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    births = rng.integers(0, 4, size) / 4 if coarse else rng.random(size)
    lifetimes = rng.integers(0, 4, size) / 4 if coarse else rng.exponential(0.3, size)
    births = births + 0.1 * positive
    return np.column_stack([births, births + lifetimes])


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest of all possible costs at which every point has a partner: a point or its place on the diagonal."""
    if not len(a) + len(b):
        return 0.0
    cost = np.zeros((len(a) + len(b),) * 2)
    cost[: len(a), : len(b)] = np.abs(a[:, None] - b[None]).max(2)
    cost[: len(a), len(b) :] = ((a[:, 1] - a[:, 0]) / 2)[:, None]
    cost[len(a) :, : len(b)] = ((b[:, 1] - b[:, 0]) / 2)[None]
    for limit in np.unique(cost):
        partners = maximum_bipartite_matching(csr_array(cost <= limit), perm_type="column")
        if (partners >= 0).all():
            return float(limit)
    raise AssertionError("the largest cost allows everything")


@settings(max_examples=150, deadline=None)
@given(a=diagrams(), b=diagrams(), c=diagrams(coarse=True), d=diagrams(coarse=True))
def test_bottleneck(a, b, c, d):
    """Against the definition: gudhi 3.13's own is sometimes larger than matching everything to the diagonal costs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bottleneck(a, b) == pytest.approx(by_definition(a, b), abs=1e-12)
        assert bottleneck(c, d) == by_definition(c, d)
        assert bottleneck(c, d) == bottleneck(d, c)
        assert bottleneck(a, a) == 0.0


@pytest.mark.parametrize(("n", "d"), [(150, 2), (300, 20)])
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_bottleneck_of_real_diagrams_against_hera(n, d, size):
    """Loops of a cloud and of one near it: hundreds of points, of which few, many or all must be matched."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(n))
    y = x + size * torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    a, b = (persistence(distances=distances(points)).diagrams[1] for points in (x, y))
    assert bottleneck(a, b) == pytest.approx(gudhi.hera.bottleneck_distance(a, b, delta=0.0), rel=1e-9)
    assert bottleneck(a, b) == bottleneck(b[::-1], a[::-1])


def test_pairs_are_looked_at_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.random((40, 2)), axis=1) for _ in range(2))
    whole = bottleneck(a, b)
    monkeypatch.setattr("topoopt.homology.matching.CHUNK", 100)
    assert bottleneck(a, b) == whole == by_definition(a, b)


@settings(max_examples=60, deadline=None)
@given(a=diagrams(positive=True), b=diagrams(positive=True))
def test_log_bottleneck_is_the_bottleneck_of_logs(a, b):
    if len(a) and len(b):
        assert bottleneck(a, b, log=True) == pytest.approx(by_definition(np.log(a), np.log(b)), abs=1e-12)
    assert bottleneck(a, 3 * a, log=True) <= math.log(3) + 1e-12


def test_essential_classes_are_matched_by_birth():
    a = np.array([[0.0, np.inf], [0.5, np.inf], [0.0, 1.0]])
    b = np.array([[0.7, np.inf], [0.1, np.inf], [0.0, 1.05]])
    assert bottleneck(a, b) == pytest.approx(0.2)
    assert bottleneck(a, b[1:]) == math.inf
    assert bottleneck(a[:1], np.zeros((0, 2))) == math.inf


def test_empty_diagrams():
    empty, one = np.zeros((0, 2)), np.array([[1.0, 3.0]])
    assert bottleneck(empty, empty) == 0.0
    assert bottleneck(one, empty) == bottleneck(empty, one) == 1.0
    assert bottleneck(one, empty, log=True) == pytest.approx(math.log(3) / 2)


def test_log_h0_is_the_distance_of_sorted_log_deaths():
    a = np.array([[0.0, 1.0], [0.0, 4.0], [0.0, np.inf]])
    b = np.array([[0.0, 8.0], [0.0, 1.5], [0.0, np.inf]])
    assert bottleneck(a, b, log=True) == pytest.approx(math.log(2))
    merged = np.array([[0.0, 0.0], [0.0, 4.0], [0.0, np.inf]])
    assert bottleneck(a, merged, log=True) == math.inf
    assert bottleneck(merged, merged, log=True) == 0.0


def test_log_of_a_mixture_is_refused():
    with pytest.raises(MeasurementError, match="positive"):
        bottleneck(np.array([[0.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 2.0]]), log=True)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 3)), np.array([[0.0, np.nan]])])
def test_what_is_no_diagram_is_refused(wrong):
    with pytest.raises(MeasurementError, match="diagram"):
        bottleneck(wrong, wrong)


@settings(max_examples=60, deadline=None)
@given(d=diagrams())
def test_summaries_against_gudhi(d):
    assert total_persistence(d) == pytest.approx((d[:, 1] - d[:, 0]).sum())
    if len(d):
        entropy = gudhi.representations.Entropy(mode="scalar")(d)[0]
        assert persistence_entropy(d) == pytest.approx(float(entropy), abs=1e-9)
    scales = np.linspace(-0.1, 2.5, 40)
    assert betti_curve(d, scales).tolist() == [int(((d[:, 0] <= s) & (s < d[:, 1])).sum()) for s in scales]


def test_summaries_in_closed_form():
    d = np.array([[1.0, math.e], [1.0, math.e], [2.0, np.inf]])
    assert total_persistence(d, log=True) == pytest.approx(2.0)
    assert persistence_entropy(d) == pytest.approx(math.log(2))
    assert persistence_entropy(d[:1]) == persistence_entropy(d[:0]) == 0.0
    assert betti_curve(d, np.array([0.5, 1.0, 2.5, 100.0])).tolist() == [0, 2, 3, 1]


def test_the_largest_loop_and_the_size_without_units():
    d = np.array([[1.0, 3.0], [0.5, 1.0], [2.0, np.inf], [4.0, 5.0]])
    assert largest_loop(d) == 2.0
    assert log_persistence(d) == pytest.approx(math.log(3.0 * 2.0 * 1.25))
    assert log_persistence(7.0 * d) == pytest.approx(log_persistence(d))
    empty = np.zeros((0, 2))
    assert (largest_loop(empty), log_persistence(empty)) == (0.0, 0.0)
    assert log_persistence(np.array([[0.0, 1.0], [0.0, 2.0]])) == 0.0
    for summary in (largest_loop, log_persistence):
        with pytest.raises(MeasurementError, match="diagram"):
            summary(np.zeros(3))


def test_prominent_features():
    noise = np.array([[1.0, 1.1], [1.0, 1.15], [2.0, 2.1]])
    loops = np.array([[1.0, 3.0], [0.5, 1.6]])
    found = prominent(np.concatenate([noise, loops, [[0.3, np.inf]]]))
    assert found.tolist() == [[0.3, np.inf], [0.5, 1.6], [1.0, 3.0]]
    assert len(prominent(noise, gap=1.0)) == 0
    assert len(prominent(noise[:0])) == 0
    assert prominent(np.array([[0.0, 5.0], [1.0, 2.0]]), log=False).tolist() == [[0.0, 5.0]]
