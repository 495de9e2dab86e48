"""Clouds in half the size: what is promised of them, and that they come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.geometry import Cloud, StoredCloud, distances, ratios


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def margin_of(points: torch.Tensor) -> float:
    return float(Cloud(points).tree.deaths[0])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 30),
    d=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-40, 40),
    offset=st.integers(0, 3),
)
def test_no_distance_is_further_off_than_promised(n, d, seed, exponent, offset):
    x = (cloud(n, d, seed) + offset) * 2.0**exponent
    stored = StoredCloud.of(x, margin=margin_of(x), tolerance=float("inf"))
    assert stored.points.dtype is torch.int16
    off = ~torch.eye(n, dtype=torch.bool)
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")[off]
    back = stored.to("cpu").double()
    found = torch.cdist(back, back, compute_mode="donot_use_mm_for_euclid_dist")[off]
    assert float((found / exact - 1).abs().max()) <= stored.error * (1 + 1e-4)  # the margin is float32's


def test_half_the_size_where_that_is_exact_enough():
    x, y = cloud(200, 65), cloud(200, 65, seed=1)
    stored = StoredCloud.of(x, margin=margin_of(x))
    assert (stored.points.dtype, stored.nbytes) == (torch.int16, 2 * 200 * 65 + 4 * 200)
    assert 0 < stored.error <= 1e-3
    assert ratios(stored.to("cpu"), y) == pytest.approx(ratios(x, y), rel=stored.error)


def test_near_twins_are_kept_whole():
    x = cloud(20, 30)
    x[1] = x[0] + 1e-4
    stored = StoredCloud.of(x, margin=margin_of(x))
    assert (stored.error, stored.rounding) == (0.0, 0.0)
    assert torch.equal(stored.to("cpu"), x)
    assert torch.equal(StoredCloud.of(x).points, x)  # of unknown margin


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    x = cloud(30, 20).to(dtype)
    stored = StoredCloud.of(x, margin=margin_of(x))
    assert stored.points.element_size() == 2
    assert torch.allclose(distances(stored.to("cpu")).double(), distances(x).double(), rtol=1e-3, atol=0)
    if dtype is not torch.float64:
        assert torch.equal(stored.points, x)


def test_what_is_stored_is_a_copy():
    x = cloud(5, 3)
    stored = StoredCloud.of(x)
    x.zero_()
    assert stored.points.any()


def test_a_checkpoint_brings_it_back(tmp_path):
    x = cloud(50, 40)
    for stored in (StoredCloud.of(x, margin=margin_of(x)), StoredCloud.of(x)):
        torch.save(stored.state_dict(), tmp_path / "state.pt")
        back = StoredCloud.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(back.to("cpu"), stored.to("cpu"))
        assert (back.error, back.rounding) == (stored.error, stored.rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_whole_is_a_copy_that_training_on_does_not_change(dtype):
    x = cloud(12, 5, dtype=dtype)
    stored = StoredCloud.of(x, margin=0.0)
    before = stored.to("cpu").clone()
    x.add_(torch.arange(12)[:, None])
    assert torch.equal(stored.to("cpu"), before)
