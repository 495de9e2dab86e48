"""Births of loops against ripser's, bit for bit, and against the definition of the graph."""

import numpy as np
import pytest
import torch
from device_runs import accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.errors import MeasurementError
from topoopt.geometry import distances
from topoopt.homology import loop_births, persistence


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("backend", ["redzed", "ripser"])
@pytest.mark.parametrize(("n", "d"), [(40, 2), (300, 2), (300, 3), (200, 40)])
def test_births_are_ripsers(n, d, backend):
    matrix = distances(cloud(n, d))
    h1 = persistence(distances=matrix, backend=backend).diagrams[1]
    assert np.array_equal(loop_births(matrix).double().numpy(), np.sort(h1[:, 0]))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 25), d=st.integers(1, 4), seed=st.integers(0, 2**31), near=st.integers(1, 5))
def test_against_the_definition(n, d, seed, near):
    matrix = distances(cloud(n, d, seed, torch.float64))
    edges = sum(
        all(max(matrix[i, k], matrix[j, k]) >= matrix[i, j] for k in range(n)) for i in range(n) for j in range(i)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("topoopt.homology.births.NEAREST", near)
        births = loop_births(matrix)
    assert len(births) == max(0, edges - (n - 1)) * (n > 0)


def test_strips_meet(monkeypatch):
    matrix = distances(cloud(101, 3))
    whole = loop_births(matrix)
    monkeypatch.setitem(__import__("topoopt.geometry.cloud", fromlist=["CHUNK"]).CHUNK, "cpu", 700)
    assert torch.equal(loop_births(matrix), whole)


def test_not_finite():
    matrix = distances(cloud(10, 3))
    matrix[3], matrix[:, 3] = torch.nan, torch.nan
    with pytest.raises(MeasurementError, match=r"neurons .*3"):
        loop_births(matrix)


@pytest.mark.gpu
def test_on_the_gpu():
    matrix = distances(cloud(500, 3))
    assert torch.equal(loop_births(matrix.to(accelerator())).cpu(), loop_births(matrix))
