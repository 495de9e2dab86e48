"""What a step does to the pairs, against every pair in float64, closed forms and the lemmas."""

import math

import pytest
import torch
from device_runs import accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.errors import MeasurementError
from topoopt.geometry import compare, distances, ratios


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def all_pairs(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n, n) of ratio, gain and contraction in float64; the diagonal is NaN."""
    x, y = before.double(), after.double()
    u, w = x[:, None] - x[None, :], y[:, None] - y[None, :]
    v, length = w - u, u.norm(dim=2)
    return w.norm(dim=2) / length, v.norm(dim=2) / length, -(u * v).sum(2) / length**2


def extreme(matrix: torch.Tensor, largest: bool) -> float:
    off = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return float(off.max() if largest else off.min())


def assert_is_oracle(before, after, rel=1e-9):
    found = compare(before, after)
    ratio, gain, contraction = all_pairs(before, after)
    for value, pair, matrix, largest in (
        (found.lower, found.lower_pair, ratio, False),
        (found.upper, found.upper_pair, ratio, True),
        (found.gain, found.gain_pair, gain, True),
        (found.contraction, found.contraction_pair, contraction, True),
    ):
        assert value == pytest.approx(extreme(matrix, largest), rel=rel, abs=1e-12)
        assert value == pytest.approx(float(matrix[pair]), rel=1e-12, abs=1e-15)
    return found


@pytest.mark.parametrize("n", [2, 3, 60])
@pytest.mark.parametrize("size", [1e-7, 1e-4, 1e-1, 10.0])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_against_every_pair(n, size, offset):
    x = cloud(n, 24) + offset
    assert_is_oracle(x, x + size * cloud(n, 24, seed=1), rel=1e-6)


@pytest.mark.parametrize("separation", [1e-2, 1e-4, 1e-6])
def test_the_extremes_are_twins(separation):
    x = cloud(200, 30)
    x[100:] = x[:100] + separation * cloud(100, 30, seed=2)
    found = assert_is_oracle(x, x + 0.1 * separation * cloud(200, 30, seed=3), rel=1e-6)
    i, j = found.gain_pair
    assert abs(i - j) == 100


def test_float64():
    x = cloud(80, 5, dtype=torch.float64)
    assert_is_oracle(x, x + 1e-9 * cloud(80, 5, seed=1, dtype=torch.float64), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_not_computed(dtype):
    x = cloud(40, 16).to(dtype)
    assert_is_oracle(x, (x.float() + 0.05 * cloud(40, 16, seed=1)).to(dtype), rel=1e-6)


def test_a_pair_that_merges():
    x = cloud(100, 12)
    y = x.clone()
    y[1] = y[0] + 1e-5 * (x[1] - x[0])
    found = assert_is_oracle(x, y, rel=1e-4)
    assert found.lower_pair == (0, 1)
    assert compare(x[:2], y[:2]).contraction == pytest.approx(1.0, abs=1e-4)


def test_a_cloud_that_collapses():
    x = cloud(100, 12)
    y = 1e-4 * x + 1e-6 * cloud(100, 12, seed=1) + 5.0
    assert_is_oracle(x, y, rel=1e-3)


def test_linear_maps_have_their_singular_values():
    torch.manual_seed(0)
    a = torch.randn(6, 6, dtype=torch.float64)
    _, s, v = torch.linalg.svd(a)
    x = torch.cat([torch.zeros(1, 6, dtype=torch.float64), v])  # pairs with the origin are the singular directions
    found = compare(x, x @ a.T)
    assert found.upper == pytest.approx(float(s[0]), rel=1e-12)
    assert found.lower == pytest.approx(float(s[-1]), rel=1e-12)
    assert found.gain <= float(torch.linalg.matrix_norm(a - torch.eye(6, dtype=torch.float64), 2)) * (1 + 1e-12)


def test_a_translation_does_nothing():
    x = cloud(50, 8, dtype=torch.float64)
    found = compare(x, x + 1.0)
    assert found.gain < 1e-14
    assert found.lower == pytest.approx(1.0, abs=1e-14)
    assert found.certified


def test_together_before_and_after_is_left_out():
    x = cloud(30, 6)
    x[5] = x[9]
    found = compare(x, 1.5 * x)
    assert (found.lower, found.upper) == (pytest.approx(1.5), pytest.approx(1.5))
    assert found.gain == pytest.approx(0.5)
    assert compare(x[[5, 9]], x[[5, 9]] + 1.0).gain == 0.0
    assert ratios(x[[5, 9]], x[[5, 9]] + 1.0) == (1.0, 1.0)


def test_together_before_and_apart_after_is_no_map():
    x = cloud(30, 6)
    x[5] = x[9]
    y = x.clone()
    y[5, 0] += 1e-6
    found = compare(x, y)
    assert found.gain == found.upper == math.inf
    assert found.gain_pair == found.upper_pair == (5, 9)
    assert not found.certified
    assert ratios(x, y)[1] == math.inf
    assert ratios(y, x)[0] == 0.0
    assert compare(y, x).contraction == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 30),
    d=st.integers(1, 10),
    seed=st.integers(0, 2**31),
    log_step=st.floats(-5, 1),
    log_separation=st.floats(-6, 0),
    exponent=st.integers(-40, 40),
)
def test_lemmas(n, d, seed, log_step, log_separation, exponent):
    """[1 - gain, 1 + gain] holds the ratios, contraction is at most the gain, and units and order do not matter."""
    x = cloud(n, d, seed)
    x[1] = x[0] + 10**log_separation * cloud(1, d, seed + 1)[0]
    y = x + 10**log_step * cloud(n, d, seed + 2)
    found = compare(x, y)
    slack = 1e-6 * (1 + found.gain)
    assert 1 - found.gain - slack <= found.lower <= found.upper <= 1 + found.gain + slack
    assert abs(found.contraction) <= found.gain + slack
    ratio, gain, _ = all_pairs(x, y)
    assert extreme(ratio, largest=True) == pytest.approx(found.upper, rel=1e-4)
    assert extreme(ratio, largest=False) == pytest.approx(found.lower, rel=1e-3, abs=1e-6)
    assert extreme(gain, largest=True) == pytest.approx(found.gain, rel=1e-4)
    scaled = compare(x * 2.0**exponent, y * 2.0**exponent)
    assert (scaled.gain, scaled.lower) == (found.gain, found.lower)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert compare(x[order], y[order]).gain == pytest.approx(found.gain, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 30), seed=st.integers(0, 2**31), size=st.floats(0.01, 5))
def test_ratios_are_those_of_compare(n, seed, size):
    x = cloud(n, 7, seed)
    y = x + size * cloud(n, 7, seed + 1)
    found = compare(x, y)
    for lower, upper in (ratios(x, y), ratios(x, y, distances=distances(y))):
        assert lower == pytest.approx(found.lower, rel=2e-4)
        assert upper == pytest.approx(found.upper, rel=2e-4)


def test_gain_is_linear_in_the_step():
    """What strict mode relies on: blending a step back by s blends its gain back by s."""
    x, step = cloud(60, 9, dtype=torch.float64), cloud(60, 9, seed=1, dtype=torch.float64)
    whole = compare(x, x + step).gain
    assert compare(x, x + 0.3 * step).gain == pytest.approx(0.3 * whole, rel=1e-12)


def test_strips_meet(monkeypatch):
    x, y = cloud(101, 9), cloud(101, 9, seed=1)
    whole = compare(x, y)
    monkeypatch.setitem(__import__("topoopt.geometry.cloud", fromlist=["CHUNK"]).CHUNK, "cpu", 700)
    assert compare(x, y) == whole


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_points(n):
    found = compare(cloud(n, 3), cloud(n, 3, seed=1))
    assert (found.lower, found.upper, found.gain, found.certified) == (1.0, 1.0, 0.0, True)
    assert ratios(cloud(n, 3), cloud(n, 3, seed=1)) == (1.0, 1.0)


def test_different_shapes_are_refused():
    with pytest.raises(MeasurementError, match=r"\(4, 3\) and \(5, 3\)"):
        compare(cloud(4, 3), cloud(5, 3))
    with pytest.raises(MeasurementError, match=r"4 points have shape \(5, 5\)"):
        ratios(cloud(4, 3), cloud(4, 3), distances=torch.zeros(5, 5))


@pytest.mark.parametrize("function", [compare, ratios])
@pytest.mark.parametrize("which", [0, 1])
def test_neurons_that_are_not_finite_are_named(function, which):
    clouds = [cloud(9, 3), cloud(9, 3, seed=1)]
    clouds[which][4, 0] = torch.nan
    with pytest.raises(MeasurementError, match="neurons 4"):
        function(*clouds)


@pytest.mark.gpu
def test_on_the_gpu():
    device = accelerator()
    x, y = cloud(500, 64), cloud(500, 64, seed=1)
    found, expected = compare(x.to(device), x.to(device) + 1e-3 * y.to(device)), compare(x, x + 1e-3 * y)
    assert found.gain == pytest.approx(expected.gain, rel=1e-4)
    assert found.lower == pytest.approx(expected.lower, rel=1e-6)
