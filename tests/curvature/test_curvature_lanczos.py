"""Lanczos and Arnoldi against dense eigenvalues: random, degenerate, of low rank, badly scaled, and not finite."""

from __future__ import annotations

import math
import statistics
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from topoopt.curvature.krylov import OTHER, SEEN, Memory, arnoldi, lanczos


def _rotation(n: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


eigenvalues = st.lists(
    st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0]) | st.floats(-5, 5).map(lambda x: round(x, 6)),
    min_size=1,
    max_size=12,
)


@given(eigenvalues, st.integers(0, 10**6), st.floats(-8, 8), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_both_ends_of_a_symmetric_matrix(values: list[float], seed: int, decades: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = _rotation(len(values), generator)
    matrix = ((q * torch.tensor(values, dtype=torch.float64)) @ q.T * 10**decades).to(dtype)
    start = torch.randn(len(values), generator=generator, dtype=torch.float64).to(dtype)
    truth = torch.linalg.eigvalsh(matrix.double())
    near = (3e-4 if dtype is torch.float32 else 1e-5) * float(truth.abs().max()) + 1e-30
    for run in (lanczos, arnoldi):
        ends = run(lambda v: matrix @ v, start, 2 * len(values))  # more products than there are dimensions
        assert ends.low == pytest.approx(float(truth[0]), abs=near)
        assert ends.high == pytest.approx(float(truth[-1]), abs=near)
        assert float(ends.memory.vectors[0].norm()) == pytest.approx(1, abs=1e-3)


@given(st.integers(2, 10), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_arnoldi_finds_the_spectral_radius(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    start = torch.randn(n, generator=generator, dtype=torch.float64)
    ends = arnoldi(lambda v: matrix @ v, start, n)
    truth = float(torch.linalg.eigvals(matrix).abs().max())
    assert max(abs(ends.low), abs(ends.high)) == pytest.approx(truth, rel=1e-6)


@given(eigenvalues, st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_few_products_read_low_by_little_or_high_by_less(values: list[float], seed: int, positive: bool) -> None:
    """Between the norm on the Krylov space, which is a lower bound, and |A|, or 2 / sqrt(3) |A| where A is indefinite."""
    generator = torch.Generator().manual_seed(seed)
    q = _rotation(len(values), generator)
    values = [abs(v) for v in values] if positive else values
    matrix = (q * torch.tensor(values, dtype=torch.float64)) @ q.T
    start = torch.randn(len(values), generator=generator, dtype=torch.float64)
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    near = 1e-7 * truth + 1e-30
    for steps in range(1, len(values) + 1):
        ends = lanczos(lambda v: matrix @ v, start, steps)
        radius = max(abs(ends.low), abs(ends.high))
        assert radius <= truth * (1 if positive else 2 / math.sqrt(3)) + near
        powers = torch.stack([torch.linalg.matrix_power(matrix, i) @ start for i in range(steps)], 1)
        if steps <= 3:  # powers of a matrix are a good basis of so small a space alone
            assert radius >= float(torch.linalg.matrix_norm(matrix @ torch.linalg.qr(powers)[0], 2)) - 1e-4 * truth


def test_the_next_start_is_better_than_the_ritz_vector() -> None:
    """Its Rayleigh quotient, seen with one product of the same matrix, is above what the first estimate had."""
    generator = torch.Generator().manual_seed(0)
    q = _rotation(200, generator)
    matrix = (q * torch.logspace(0, -3, 200, dtype=torch.float64)) @ q.T
    start = torch.randn(200, generator=generator, dtype=torch.float64)
    for steps in (1, 2, 3):
        basis = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(matrix, i) @ start for i in range(steps)], 1))[0]
        ritz = float(torch.linalg.eigvalsh(basis.T @ matrix @ basis)[-1])
        vector = lanczos(lambda v: matrix @ v, start, steps).memory.vectors[0]
        assert float(vector @ matrix @ vector) > ritz


@given(eigenvalues, st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_no_memory_makes_an_estimate_much_too_large(values: list[float], seed: int, kept: int, steps: int) -> None:
    """However wrong what is remembered is: by 15 % at most, and with all products the estimate is exact."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    matrix = (q := _rotation(n, generator)) * torch.tensor(values, dtype=torch.float64) @ q.T
    vectors = _rotation(n, generator)[: min(kept, n)]
    wrong = Memory(vectors, tuple((10 * torch.randn(len(vectors), generator=generator)).tolist()))
    truth = torch.linalg.eigvalsh(matrix)
    size = float(truth.abs().max())
    few = lanczos(lambda v: matrix @ v, wrong, min(steps, n))
    assert max(abs(few.low), abs(few.high)) <= size * (1 + 1e-7) / math.sqrt(SEEN) + 1e-12
    every = lanczos(lambda v: matrix @ v, wrong, 3 * n)
    assert every.low == pytest.approx(float(truth[0]), abs=1e-4 * size + 1e-12)
    assert every.high == pytest.approx(float(truth[-1]), abs=1e-4 * size + 1e-12)


def test_what_is_remembered_is_an_orthonormal_basis_with_both_ends() -> None:
    generator = torch.Generator().manual_seed(1)
    q = _rotation(60, generator)
    matrix = (q * torch.cat([torch.tensor([9.0, 8.0, 7.0, 6.0, -5.0]), torch.zeros(55)]).double()) @ q.T
    memory = lanczos(lambda v: matrix @ v, torch.randn(60, generator=generator, dtype=torch.float64), 12).memory
    gram = memory.vectors @ memory.vectors.T
    assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-8)
    assert list(memory.values) == pytest.approx([9.0, 8.0, -5.0])
    for vector, value in zip(memory.vectors, memory.values):
        assert torch.allclose(matrix @ vector, value * vector, atol=1e-6)


@pytest.mark.parametrize("products", [2, 3, 4])
def test_a_turning_operator_is_followed_closer_than_from_its_last_vector(products: int) -> None:
    """Its dominant eigenvectors turn into each other and into all others, as those of a network's Hessian do."""
    generator = torch.Generator().manual_seed(2)
    q = _rotation(80, generator)
    values = torch.cat([torch.tensor([10.0, 8.0, 6.0]), torch.linspace(2, -2, 77)]).double()
    turn = 0.01 * torch.randn(80, 80, generator=generator, dtype=torch.float64)
    turn[:3, :3] += 0.08 * torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    turn = torch.linalg.matrix_exp(turn - turn.T)
    errors: dict[str, list[float]] = {"memory": [], "vector": []}
    starts: dict[str, Any] = dict.fromkeys(errors, torch.randn(80, generator=generator, dtype=torch.float64))
    for step in range(12):
        q = q @ turn
        matrix = (q * values) @ q.T
        for kind, start in starts.items():
            ends = lanczos(lambda v: matrix @ v, start, products if step else 12)  # noqa: B023 -- called at once
            starts[kind] = ends.memory if kind == "memory" else ends.memory.vectors[0]
            errors[kind] += [1 - ends.high / 10] if step else []
    medians = {kind: statistics.median(found) for kind, found in errors.items()}
    assert medians["memory"] < medians["vector"] / 5, medians


def test_a_memory_of_another_operator_is_dropped() -> None:
    """It then costs nothing: the products are those of a start from its first vector."""
    generator = torch.Generator().manual_seed(3)
    matrix = (q := _rotation(50, generator)) * torch.linspace(-1, 3, 50, dtype=torch.float64) @ q.T
    vectors = _rotation(50, generator)[:3]
    other = lanczos(lambda v: matrix @ v, Memory(vectors, (100.0, 90.0, -80.0)), 5)
    start = vectors[0] + OTHER * vectors[2]
    plain = lanczos(lambda v: matrix @ v, start, 5)
    assert (other.low, other.high) == pytest.approx((plain.low, plain.high), rel=1e-6)


@pytest.mark.parametrize("tail", [0.0, 1e-30, 1e-10])
def test_an_exhausted_space_does_not_overflow(tail: float) -> None:
    """After two steps nothing is left but rounding, which must neither be divided by nor reported."""
    diagonal = torch.tensor([1.0, 2.0, 2.0, tail, tail, tail])
    start = torch.tensor([1.0, 1.0, 1.0, tail, 0.0, 0.0])
    for run in (lanczos, arnoldi):
        ends = run(lambda v: diagonal * v, start, 6)
        assert ends.high == pytest.approx(2.0, rel=1e-5)


def test_the_zero_matrix() -> None:
    for run in (lanczos, arnoldi):
        ends = run(torch.zeros_like, torch.ones(4), 4)
        assert (ends.low, ends.high) == (0.0, 0.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_reads_nan(poison: float) -> None:
    for run in (lanczos, arnoldi):
        ends = run(lambda v: v * poison, torch.ones(4), 4)
        assert math.isnan(ends.low)
        assert math.isnan(ends.high)
