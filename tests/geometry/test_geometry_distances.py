"""Distances against float64 from the differences, against scipy, and by their symmetries."""

import subprocess
import sys

import pytest
import torch
from device_runs import accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from topoopt.errors import MeasurementError
from topoopt.geometry import compare, distances


def oracle(points: torch.Tensor) -> torch.Tensor:
    x = points.double()
    return (x[:, None] - x[None, :]).norm(dim=2)


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float(((found.double() - exact).abs() / exact.clamp_min(1e-300)).max())


@pytest.mark.parametrize("separation", [1.0, 1e-1, 3e-2, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_twins_at_every_separation(separation, offset):
    x = cloud(200, 64) + offset
    x[1::2] = x[::2] + separation * cloud(100, 64, seed=1)
    assert relative_error(distances(x), oracle(x)) < 1e-4
    pairs = distances(x)[::2, 1::2].diagonal()
    exact = (x[::2].double() - x[1::2].double()).norm(dim=1)
    assert relative_error(pairs, exact) < (1e-6 if separation < 0.02 else 1e-4)


def test_a_tight_cluster_far_from_the_origin():
    x = 1.0 + 1e-4 * cloud(300, 40)
    assert relative_error(distances(x), oracle(x)) < 1e-4


def test_float64_against_scipy():
    x = cloud(500, 33, dtype=torch.float64)
    x[7] = x[8] + 1e-9
    assert relative_error(distances(x), torch.from_numpy(cdist(x, x))) < 1e-9
    assert distances(x).dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_not_computed(dtype):
    x = cloud(50, 20).to(dtype)
    assert torch.equal(distances(x), distances(x.float()))


def test_rows_of_a_parameter_that_needs_gradients():
    assert not distances(torch.nn.Parameter(cloud(5, 3))).requires_grad


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-60, 60),
    duplicates=st.integers(0, 10),
)
def test_symmetries(n, d, seed, exponent, duplicates):
    x = cloud(n, d, seed)
    x[: min(duplicates, n)] = x[0].clone()
    found = distances(x)
    assert torch.equal(found, found.T)
    assert not found.diagonal().any()
    assert not found[: min(duplicates, n), : min(duplicates, n)].any()
    assert torch.equal(distances(x * 2.0**exponent), found * 2.0**exponent)
    assert relative_error(found, oracle(x)) < 1e-4
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(distances(x[order]), found[order][:, order], rtol=1e-4, atol=0)


def test_strips_meet(monkeypatch):
    x = cloud(101, 9)
    whole = distances(x)
    monkeypatch.setitem(__import__("topoopt.geometry.cloud", fromlist=["CHUNK"]).CHUNK, "cpu", 700)
    assert torch.allclose(distances(x), whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 0)])
def test_empty_and_single(shape):
    found = distances(torch.zeros(shape))
    assert found.shape == (shape[0], shape[0])
    assert not found.any()


def test_neurons_that_are_not_finite_are_named():
    x = cloud(20, 4)
    x[3, 1], x[17, 0] = torch.nan, torch.inf
    with pytest.raises(MeasurementError, match=r"2 of 20 neurons .*\(neurons 3, 17\)"):
        distances(x)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64)])
def test_what_is_no_cloud_is_refused(wrong):
    with pytest.raises(MeasurementError, match="floating-point"):
        distances(wrong)


SWITCHES = hasattr(torch.backends.cuda.matmul, "fp32_precision")


class TestPrecision:
    """The model may multiply in TF32 or bfloat16; distances do not, and leave the switches alone."""

    @pytest.fixture(autouse=True)
    def restore(self):
        before = torch.get_float32_matmul_precision()
        yield
        for matmul in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)) if SWITCHES else ():
            matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)

    def test_the_legacy_switch(self):
        x = cloud(300, 300)
        torch.set_float32_matmul_precision("medium")
        assert relative_error(distances(x), oracle(x)) < 1e-6
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32

    @pytest.mark.skipif(not SWITCHES, reason="torch before 2.9 has one switch for all")
    def test_the_switch_of_each_backend(self):
        x = cloud(300, 300)
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert relative_error(distances(x), oracle(x)) < 1e-6
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"

    def test_autocast(self):
        x = cloud(300, 300)
        exact = distances(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(distances(x), exact)

    def test_no_switch_is_set_even_for_a_moment(self, monkeypatch):
        """It belongs to the whole process: another thread would see it."""
        torch.set_float32_matmul_precision("medium")
        seen = []
        product = torch.Tensor.addmm_
        monkeypatch.setattr(
            torch.Tensor,
            "addmm_",
            lambda *a, **k: (seen.append(torch.get_float32_matmul_precision()), product(*a, **k))[1],
        )
        compare(cloud(40, 2000), cloud(40, 2000, seed=1))
        assert len(seen) >= 6
        assert set(seen) == {"medium"}


PEAK = """
import resource, torch
from topoopt.geometry import {name}
torch.set_num_threads(1)
x = torch.randn({n}, {d}); y = x + 1e-3
distances = {name}  # noqa
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{name}(*(cloud[:8] for cloud in ({arguments}))); before = peak()
{name}({arguments})
print((peak() - before) * 1024)
"""


def peak_bytes(name: str, arguments: str, n: int, d: int) -> int:
    """Growth of a fresh process's peak memory through one call."""
    script = PEAK.format(name=name, arguments=arguments, n=n, d=d)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(
    ("name", "arguments", "matrices", "clouds"),
    [("distances", "x,", 1, 1), ("compare", "x, y", 0, 3), ("ratios", "x, y", 0, 2)],
)
def test_working_set(name, arguments, matrices, clouds):
    """Beside its result nothing of size (n, n) is held, and of size (n, d) only what the docstrings state."""
    n, d = 6144, 256
    stated = 4 * (matrices * n * n + clouds * n * d)
    strips = 8 * 4 * (1 << 19)
    spare = 24 << 20  # the matrix library's own buffers
    assert peak_bytes(name, arguments, n, d) < stated + strips + spare < 4 * n * n * (matrices + 1)


@pytest.mark.gpu
def test_on_the_gpu():
    x = cloud(700, 96).to(accelerator())
    x[1] = x[0] + 1e-6
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # the model's own products may be in less
    try:
        found = distances(x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.device == x.device
    assert relative_error(found.cpu(), oracle(x.cpu())) < 1e-4
