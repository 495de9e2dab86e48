"""One group's step, measured at once: against the functions that measure one thing each, and what the host reads for it."""

import math

import numpy as np
import pytest
import torch
from device_runs import accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from topoopt.errors import MeasurementError
from topoopt.geometry import (
    Cloud,
    StoredCloud,
    collect,
    compare,
    degeneracy,
    distances,
    effective_rank,
    measure,
    ratios,
)
from topoopt.homology import h0_diagram, spanning_tree


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=["cpu", "accelerator"])
def device_like(request, monkeypatch):
    """Both ways: as where reading is free, and as where it would stop the device's queue."""
    for place in ("near", "tree"):
        monkeypatch.setattr(f"topoopt.geometry.{place}.reading_is_free", lambda tensor: request.param == "cpu")
    return request.param


class Reads(TorchDispatchMode):
    """Writes down every operation whose result the host has to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in func._schema.name for name in self.WAITS):
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def twins(n: int, d: int, seed: int, separation: float) -> torch.Tensor:
    x = cloud(n, d, seed)
    x[1::3] = x[::3][: len(x[1::3])] + separation * cloud(len(x[1::3]), d, seed + 9)
    return x


def assert_is_what_each_finds(before, after, windows):
    (found,) = collect([measure(before, after, windows=windows)])
    moved = compare(before, after)
    for name in ("lower", "upper", "gain", "contraction"):
        assert getattr(found.distortion, name) == pytest.approx(getattr(moved, name), rel=1e-4, abs=1e-9)
    matrix = distances(after)
    assert found.deaths == pytest.approx(spanning_tree(matrix, points=after).deaths.double().numpy(), rel=1e-4)
    assert found.deaths.dtype == np.float64
    ends = after.double()[torch.from_numpy(found.edges)]
    assert found.deaths == pytest.approx((ends[:, 0] - ends[:, 1]).norm(dim=1).numpy(), rel=1e-4)
    assert np.array_equal(found.h0, h0_diagram(found.deaths))
    assert found.merge_margin == found.deaths[0]
    assert found.diameter == pytest.approx(float(matrix.max()), rel=1e-4)
    assert found.degeneracy == degeneracy(after, matrix)
    assert found.effective_rank == pytest.approx(effective_rank(after), rel=1e-3)
    for name, kept in windows.items():
        older = kept.to("cpu") if isinstance(kept, StoredCloud) else kept
        assert found.windows[name] == pytest.approx(ratios(older, after), rel=3e-4)
    return found


@pytest.mark.usefixtures("device_like")
@pytest.mark.parametrize("separation", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("size", [0.0, 1e-5, 1e-2, 3.0, 1e3])
def test_it_is_what_each_function_finds(size, separation):
    before = twins(61, 12, 0, separation) + 1.0
    after = before + size * separation * cloud(61, 12, seed=3)
    windows = {"first": cloud(61, 12, seed=5), "last": StoredCloud.of(before + 0.1 * cloud(61, 12, seed=6))}
    assert_is_what_each_finds(before, after, windows)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(2, 30), d=st.integers(1, 8), seed=st.integers(0, 2**31), exponent=st.integers(-50, 50))
def test_units_do_not_matter(device_like, n, d, seed, exponent):
    before, after = (cloud(n, d, s) * 2.0**exponent for s in (seed, seed + 1))
    assert_is_what_each_finds(before, after, {"first": cloud(n, d, seed + 2) * 2.0**exponent})


@pytest.mark.usefixtures("device_like")
def test_a_cloud_that_collapses_in_one_step():
    """All distances cancel in what the step's products say of them: the cloud is then measured from itself."""
    before = cloud(80, 12)
    assert_is_what_each_finds(before, 1e-4 * before + 1e-6 * cloud(80, 12, seed=1) + 5.0, {})


@pytest.mark.usefixtures("device_like")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    before = cloud(40, 16).to(dtype)
    assert_is_what_each_finds(
        before, (before + 0.05 * cloud(40, 16, seed=1)).to(dtype), {"first": cloud(40, 16, 2).to(dtype)}
    )


@pytest.mark.usefixtures("device_like")
def test_neurons_that_are_together():
    before = cloud(30, 6)
    before[5] = before[9]
    after = 1.5 * before
    found = assert_is_what_each_finds(before, after, {"first": before + 1})
    assert (found.merge_margin, found.degeneracy.unresolved_twins) == (0.0, 2)
    dead = torch.zeros(8, 3)
    (found,) = collect([measure(dead, dead)])
    assert (found.diameter, found.degeneracy.vanishing, found.distortion.lower) == (0.0, 8, 1.0)
    assert math.isnan(found.effective_rank)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_a_cloud(n):
    (found,) = collect([measure(cloud(n, 3), cloud(n, 3, seed=1), windows={"first": cloud(n, 3, seed=2)})])
    assert found.h0.shape == (n, 2)
    assert (found.n, found.d, len(found.deaths)) == (n, 3, max(0, n - 1))
    if n < 2:
        assert (found.merge_margin, found.diameter, found.windows["first"]) == (math.inf, 0.0, (1.0, 1.0))
        assert found.distortion.certified


def test_nothing_is_read_until_all_is_collected(monkeypatch):
    for place in ("near", "tree"):
        monkeypatch.setattr(f"topoopt.geometry.{place}.reading_is_free", lambda tensor: False)
    groups = [(twins(50 + k, 7, k, 1e-3), twins(50 + k, 7, k, 1e-3)) for k in range(5)]
    stored = StoredCloud.of(cloud(50, 7))
    with Reads() as reads:
        queued = [measure(x, y + 0.01, windows={"first": 1.1 * x, "last": x}) for x, y in groups]
        queued.append(measure(cloud(50, 7), cloud(50, 7, seed=1), windows={"first": stored}))
    assert reads.seen == []
    with Reads() as reads:
        found = collect(queued)
    assert reads.seen == []  # one copy, which on a CPU is none
    assert [one.n for one in found] == [50, 51, 52, 53, 54, 50]


def test_more_near_twins_than_there_was_room_for(monkeypatch):
    for place in ("near", "tree"):
        monkeypatch.setattr(f"topoopt.geometry.{place}.reading_is_free", lambda tensor: False)
    before = cloud(4, 9).repeat_interleave(25, dim=0) + 1e-5 * cloud(100, 9, seed=1)
    after = before + 1e-6 * cloud(100, 9, seed=2)
    queued = measure(before, after)
    assert bool(queued.numbers["missed"])
    (found,) = collect([queued])
    assert found.distortion.gain == pytest.approx(compare(before, after).gain, rel=1e-6)
    assert found.merge_margin == pytest.approx(float(torch.pdist(after.double()).min()), rel=1e-6)


def test_three_products_for_a_step_and_one_for_each_distinct_window(monkeypatch):
    from topoopt.geometry import cloud as module

    rows = []
    product = module.minus_twice_product_
    monkeypatch.setattr(module, "minus_twice_product_", lambda s, a, b: (rows.append(len(a)), product(s, a, b))[1])
    x, y, older = cloud(40, 5), cloud(40, 5, seed=1), cloud(40, 5, seed=2)
    for windows, products in (
        ({}, 3),
        ({"first": x}, 3),
        ({"first": older, "last": older}, 4),
        ({"a": older, "b": 2 * older}, 5),
    ):
        rows.clear()
        measure(x, y, windows=windows)
        assert sum(rows) == products * 40


def test_a_group_that_is_not_finite_costs_the_others_nothing():
    good = cloud(20, 4)
    bad = good.clone()
    bad[3, 1], bad[7, 0] = torch.nan, torch.inf
    results = collect(
        [measure(good, 1.1 * good), measure(good, bad), measure(bad, bad), measure(good, good, windows={"a": bad})]
    )
    assert results[0].distortion.upper == pytest.approx(1.1)
    for one in results[1:]:
        assert isinstance(one, MeasurementError)
        assert "2 of 20 neurons" in str(one)
        assert "neurons 3, 7" in str(one)
    huge = torch.full((5, 2), 3e38)
    assert isinstance(collect([measure(huge, -huge)])[0], MeasurementError)


def test_shapes_are_refused_at_once():
    with pytest.raises(MeasurementError, match=r"\(4, 3\) and \(5, 3\)"):
        measure(cloud(4, 3), cloud(5, 3))
    with pytest.raises(MeasurementError, match=r"\(5, 3\) and \(4, 3\)"):
        measure(cloud(4, 3), cloud(4, 3), windows={"first": cloud(5, 3)})
    assert collect([]) == []


def test_distances_are_kept_on_request():
    x, y = cloud(30, 4), cloud(30, 4, seed=1)
    assert measure(x, y).distances is None
    kept = measure(x, y, keep_distances=True).distances
    assert torch.allclose(kept, distances(y), rtol=1e-4, atol=0)
    assert torch.equal(kept, kept.T)
    assert not kept.diagonal().any()


def test_a_cloud_makes_each_thing_once():
    made = Cloud(cloud(30, 4))
    assert made.distances is made.distances
    assert torch.equal(made.tree.deaths, spanning_tree(distances(made), points=made.points).deaths)
    tree = made.tree
    made.forget()
    assert made.tree is not tree
    assert bool(made.finite)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 40), d=st.integers(1, 12), seed=st.integers(0, 2**31), offset=st.floats(-10, 10))
def test_effective_rank_is_the_participation_ratio_of_the_spectrum(n, d, seed, offset):
    x = cloud(n, d, seed, torch.float64) * torch.logspace(0, -2, d, dtype=torch.float64) + offset
    s = torch.linalg.svdvals(x - x.mean(0)).square()
    expected = float(s.sum().square() / s.square().sum())
    assert effective_rank(x) == pytest.approx(expected, rel=1e-9)
    assert 1 - 1e-9 <= expected <= min(n - 1, d) + 1e-9
    assert effective_rank(x.float()) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_of_known_clouds():
    assert effective_rank(torch.cat([torch.eye(5), -torch.eye(5)])) == pytest.approx(5.0)
    assert effective_rank(torch.outer(torch.arange(4.0), torch.ones(3))) == pytest.approx(1.0)
    assert math.isnan(effective_rank(torch.ones(1, 3)))
    with pytest.raises(MeasurementError, match="neurons 1"):
        effective_rank(torch.tensor([[0.0], [torch.inf]]))


@pytest.mark.gpu
def test_on_the_gpu():
    device = accelerator()
    x, y = twins(500, 64, 0, 1e-4), twins(500, 64, 0, 1e-4) + 1e-3 * cloud(500, 64, seed=1)
    on_gpu, on_cpu = collect([measure(x.to(device), y.to(device), windows={"first": StoredCloud.of(x)}), measure(x, y)])
    assert on_gpu.distortion.gain == pytest.approx(on_cpu.distortion.gain, rel=1e-4)
    assert on_gpu.deaths == pytest.approx(on_cpu.deaths, rel=1e-4)


def test_a_long_chain_of_nearest_neighbours_is_one_component_of_the_tree():
    """Each point's nearest is the next one: what a round merges is as deep as the chain is long; two of them, far apart."""
    gaps = torch.linspace(2, 1, 16, dtype=torch.float64)
    chain = torch.cat([torch.zeros(1, dtype=torch.float64), gaps.cumsum(0)])
    points = torch.cat([chain, chain + 1000])[:, None]
    deaths = Cloud(points).tree.deaths
    between = torch.tensor([1000 - float(gaps.sum())], dtype=torch.float64)
    assert torch.allclose(deaths.sort().values, torch.cat([gaps, gaps, between]).sort().values.to(deaths.dtype))
