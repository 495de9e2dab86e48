"""Counts of vanishing and twin neurons, on clouds where they are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.errors import MeasurementError
from topoopt.geometry import degeneracy, distances


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_known_cloud():
    x = cloud(40, 25)
    x[3] *= 1e-4
    x[5] = 0.0  # with neuron 3 a pair of twins, too
    x[11] = x[10] + 1e-4
    x[20] = x[21]
    found = degeneracy(x, distances(x))
    assert (found.vanishing, found.twins, found.unresolved_twins) == (2, 6, 2)
    assert (found.vanishing_tolerance, found.twin_tolerance) == (1e-2, 1e-2)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 1000), vanishing=st.floats(0, 2), twin=st.floats(0, 2))
def test_against_the_definition(n, seed, vanishing, twin):
    x = cloud(n, 3, seed)
    matrix = distances(x)
    found = degeneracy(x, matrix, vanishing_tolerance=vanishing, twin_tolerance=twin)
    norms = x.norm(dim=1)
    scale = float(norms.double().square().mean().sqrt())
    assert found.vanishing == sum(norm <= vanishing * scale * (1 + 1e-6) for norm in norms.tolist())
    others = [[matrix[i, j].item() for j in range(n) if j != i] for i in range(n)]
    assert found.twins == sum(bool(row) and min(row) <= twin * scale * (1 + 1e-6) for row in others)


def test_twins_that_rounding_made():
    """In bfloat16 neurons a thousandth apart may be one; in float32 they are two."""
    x = cloud(10, 50)
    x[1] = x[0] * 1.001
    assert degeneracy(x, distances(x)).unresolved_twins == 0
    stored = x.to(torch.bfloat16)
    assert degeneracy(stored, distances(stored)).unresolved_twins == 2
    assert degeneracy(x.double(), distances(x.double())).unresolved_twins == 0


def test_a_single_neuron_and_none():
    assert degeneracy(cloud(1, 3), torch.zeros(1, 1)).twins == 0
    assert degeneracy(cloud(0, 3), torch.zeros(0, 0)).vanishing == 0


def test_strips_meet(monkeypatch):
    x = cloud(57, 2)
    whole = degeneracy(x, distances(x), twin_tolerance=0.1)
    monkeypatch.setitem(__import__("topoopt.geometry.cloud", fromlist=["CHUNK"]).CHUNK, "cpu", 300)
    assert degeneracy(x, distances(x), twin_tolerance=0.1) == whole


def test_refusals():
    x = cloud(4, 2)
    with pytest.raises(MeasurementError, match=r"\(3, 3\)"):
        degeneracy(x, torch.zeros(3, 3))
    x[1] = torch.inf
    with pytest.raises(MeasurementError, match="neurons 1"):
        degeneracy(x, torch.zeros(4, 4))


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1.0, 1e18])
def test_counts_do_not_depend_on_the_scale(size: float) -> None:
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    points[0] *= 1e-9
    points *= size
    assert degeneracy(points, torch.cdist(points.double(), points.double())).vanishing == 1
