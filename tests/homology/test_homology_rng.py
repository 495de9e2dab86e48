"""The relative neighbourhood graph against its definition; the births of H1 against ripser's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import ripser
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.errors import MeasurementError
from topoopt.geometry import cloud, distances
from topoopt.homology.h0 import spanning_tree
from topoopt.homology.rng import loop_births, relative_neighbours


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def whole_numbers(n: int, values: int, seed: int) -> torch.Tensor:
    """Symmetric distances full of ties, and of zeros: no metric need be."""
    upper = torch.randint(values, (n, n), generator=torch.Generator().manual_seed(seed)).float().triu(1)
    return upper + upper.T


def by_definition(d: np.ndarray) -> list[list[int]]:
    """Each edge with every third point, equal lengths in the order of the edges."""
    n = len(d)

    def order(i: int, j: int) -> tuple[float, int, int]:
        return (d[i, j], min(i, j), max(i, j))

    def open_(i: int, j: int) -> bool:
        others = (k for k in range(n) if k not in (i, j))
        return not any(order(i, k) < order(i, j) and order(j, k) < order(i, j) for k in others)

    return [[i, j] for i in range(n) for j in range(i + 1, n) if open_(i, j)]


def ripser_births(d: torch.Tensor) -> np.ndarray:
    return np.sort(ripser.ripser(d.numpy(), maxdim=1, distance_matrix=True)["dgms"][1][:, 0])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 24), st.integers(1, 9), st.integers(0, 10**6))
def test_the_graph_is_its_definition(n, values, seed):
    tied, generic = whole_numbers(n, values, seed), distances(points(n, 3, seed))
    for d in (tied, generic):
        assert relative_neighbours(d).tolist() == by_definition(d.numpy())


@pytest.mark.parametrize(("n", "d"), [(3, 1), (60, 1), (300, 2), (300, 8), (500, 64)])
def test_births_are_ripsers_bit_for_bit(n, d):
    matrix = distances(points(n, d))
    assert np.array_equal(loop_births(matrix).numpy(), ripser_births(matrix))


def test_float64():
    matrix = distances(points(200, 5).double())
    np.testing.assert_allclose(loop_births(matrix).numpy(), ripser_births(matrix), rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 20), st.integers(1, 8), st.integers(0, 10**6))
def test_ties_add_only_births_among_them(n, values, seed):
    matrix = whole_numbers(n, values, seed)
    found, theirs = Counter(loop_births(matrix).tolist()), Counter(ripser_births(matrix).tolist())
    assert not theirs - found
    assert len(relative_neighbours(matrix)) == n - 1 + found.total()


def test_a_cycle_has_one_loop():
    angle = torch.arange(12) * (2 * torch.pi / 12)
    births = loop_births(distances(torch.stack([angle.cos(), angle.sin()], dim=1)))
    torch.testing.assert_close(births, torch.tensor([2 * np.sin(np.pi / 12)], dtype=torch.float32))


def test_a_tree_has_none():
    assert loop_births(distances(torch.arange(9.0)[:, None])).tolist() == []


def test_strips_meet(monkeypatch):
    matrix = distances(points(97, 4))
    whole = relative_neighbours(matrix)
    monkeypatch.setitem(cloud.CHUNK, "cpu", 500)
    assert torch.equal(relative_neighbours(matrix), whole)


def test_the_graph_holds_the_tree():
    matrix = distances(points(400, 16))
    edges = {tuple(sorted(edge)) for edge in spanning_tree(matrix).edges.tolist()}
    assert edges <= {tuple(edge) for edge in relative_neighbours(matrix).tolist()}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_points_for_a_loop(n):
    assert loop_births(distances(points(n, 3))).shape == (0,)


def test_refusals():
    with pytest.raises(MeasurementError, match="square"):
        relative_neighbours(torch.zeros(3, 4))
    bad = distances(points(5, 2))
    bad[3, 1] = bad[1, 3] = torch.nan
    with pytest.raises(MeasurementError, match="neurons 1, 3"):
        loop_births(bad)


@pytest.mark.gpu
def test_on_the_gpu():
    matrix = distances(points(700, 16))
    found = loop_births(matrix.cuda())
    assert found.is_cuda
    assert torch.equal(found.cpu(), loop_births(matrix))
