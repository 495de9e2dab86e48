"""Diagrams against ripser and gudhi, known shapes, landmarks with their bound, and what is refused."""

import math

import gudhi
import numpy as np
import pytest
import ripser
import torch
from device_runs import accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.errors import ConfigError, MeasurementError
from topoopt.geometry import distances
from topoopt.homology import backends, bottleneck, persistence

BACKENDS = ["redzed", "ripser"]


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_order(diagram: np.ndarray) -> np.ndarray:
    return diagram[np.lexsort(diagram.T)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_against_ripser(backend, degree):
    matrix = distances(cloud(60, 3))
    found = persistence(distances=matrix, degree=degree, backend=backend)
    expected = ripser.ripser(matrix.numpy(), maxdim=degree, distance_matrix=True)["dgms"]
    assert len(found.diagrams) == degree + 1
    for diagram, other in zip(found.diagrams, expected):
        assert diagram.dtype == np.float64
        assert np.array_equal(in_order(diagram), in_order(other.astype(np.float64)))
    assert (found.covering_radius, found.backend, found.notes) == (0.0, backend, ())


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), d=st.integers(1, 4), seed=st.integers(0, 2**31), duplicates=st.integers(0, 5))
def test_against_gudhi(n, d, seed, duplicates):
    x = cloud(n, d, seed, torch.float64)
    x[:duplicates] = x[0].clone()
    rips = gudhi.RipsComplex(points=x.numpy()).create_simplex_tree(max_dimension=2)
    rips.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    for backend in BACKENDS:
        found = persistence(x, backend=backend).diagrams
        assert bottleneck(found[1], rips.persistence_intervals_in_dimension(1)) < 1e-6
        deaths = rips.persistence_intervals_in_dimension(0)
        finite = np.sort(found[0][:, 1])
        positive = np.sort(deaths[:, 1])
        assert np.allclose(finite[len(finite) - len(positive) :], positive, rtol=1e-6)


def test_known_shapes():
    angle = 2 * math.pi * torch.arange(40, dtype=torch.float64) / 40
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = persistence(circle)
    assert found.diagrams[0].shape == (40, 2)
    assert np.isinf(found.diagrams[0][-1, 1])
    assert found.diagrams[1] == pytest.approx(np.array([[2 * math.sin(math.pi / 40), math.sqrt(3)]]), rel=0.05)
    octahedron = torch.cat([torch.eye(3), -torch.eye(3)])
    sphere = persistence(octahedron, degree=2).diagrams[2]
    assert sphere == pytest.approx(np.array([[math.sqrt(2), 2.0]]), rel=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_too_few_points_for_a_loop(n, backend):
    found = persistence(cloud(n, 3), degree=2, backend=backend)
    assert [len(d) for d in found.diagrams] == [n, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_keep_their_bound(seed):
    x = torch.rand(300, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact, found = persistence(x), persistence(x, max_points=80)
    assert found.covering_radius > 0
    assert bottleneck(exact.diagrams[1], found.diagrams[1]) <= 2 * found.covering_radius
    assert np.array_equal(exact.diagrams[0], found.diagrams[0])
    assert "80 maxmin landmarks of 300" in found.notes[0]
    assert f"right to {2 * found.covering_radius:.4g}" in found.notes[0]
    assert "says nothing" not in found.notes[0]


def test_a_bound_that_says_nothing_is_called_so():
    assert "says nothing" in persistence(cloud(200, 500), max_points=20).notes[0]


def test_points_or_distances():
    x = cloud(50, 4)
    by_points, by_distances = persistence(x), persistence(distances=distances(x))
    assert bottleneck(by_points.diagrams[1], by_distances.diagrams[1]) == 0.0
    assert np.allclose(by_points.diagrams[0][:-1], by_distances.diagrams[0][:-1], rtol=1e-6)
    assert persistence(x.to(torch.bfloat16)).diagrams[1].dtype == np.float64


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_neurons_that_are_not_finite_are_named(bad):
    x = cloud(20, 3)
    x[4, 2] = bad
    with pytest.raises(MeasurementError, match="neurons 4"):
        persistence(x)
    matrix = distances(cloud(20, 3))
    matrix[7, 9] = matrix[9, 7] = bad
    with pytest.raises(MeasurementError, match="neurons 7, 9"):
        persistence(distances=matrix)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, MeasurementError, "one of them"),
        ({"points": torch.zeros(2, 2), "distances": torch.zeros(2, 2)}, MeasurementError, "one of them"),
        ({"distances": torch.zeros(2, 3)}, MeasurementError, r"\(n, n\)"),
        ({"distances": torch.zeros(2, 2, dtype=torch.int64)}, MeasurementError, r"int64"),
        ({"points": torch.zeros(3, 2), "degree": -1}, ConfigError, "degree=-1"),
        ({"points": torch.zeros(3, 2), "max_points": 2}, ConfigError, "max_points=2"),
        ({"points": torch.zeros(3, 2), "backend": "riper"}, ConfigError, "riper"),
    ],
)
def test_refusals(arguments, error, says):
    with pytest.raises(error, match=says):
        persistence(**arguments)


def test_what_is_installed_decides(monkeypatch):
    installed: set[str] = {"ripser"}
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert backends.choose("auto") == "ripser"
    with pytest.raises(ConfigError, match="pip install redzed-tda"):
        backends.choose("redzed")
    installed.clear()
    with pytest.raises(ConfigError, match="installed: neither"):
        backends.choose("auto")
    installed.update({"redzed_tda", "ripser"})
    assert backends.choose("auto") == "redzed"


@pytest.mark.gpu
def test_on_the_gpu():
    x = cloud(200, 10)
    on_gpu, on_cpu = persistence(x.to(accelerator())), persistence(x)
    assert bottleneck(on_gpu.diagrams[1], on_cpu.diagrams[1]) < 1e-5
