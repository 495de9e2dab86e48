"""The spanning tree against ripser bit for bit, scipy, and its definition; ties, duplicates, what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import ripser
import torch
from device_runs import accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, is_valid_linkage, linkage
from scipy.spatial.distance import pdist, squareform

from topoopt.errors import MeasurementError
from topoopt.geometry import Cloud, distances
from topoopt.geometry.tree import minimum_spanning_tree
from topoopt.homology import spanning_tree
from topoopt.homology.merge_tree import last_merges, merge_tree


def cloud(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ripser_deaths(matrix: torch.Tensor) -> np.ndarray:
    deaths = ripser.ripser(matrix.numpy(), maxdim=0, distance_matrix=True)["dgms"][0][:-1, 1]
    return np.sort(deaths).astype(np.float32)


def prim(matrix: np.ndarray) -> np.ndarray:
    """The obvious slow one."""
    n, lengths = len(matrix), []
    reached, nearest = [0], matrix[0].copy()
    for _ in range(n - 1):
        nearest[reached] = np.inf
        new = int(nearest.argmin())
        lengths.append(nearest[new])
        reached.append(new)
        nearest = np.minimum(nearest, matrix[new])
    return np.sort(lengths)


def assert_spans(edges: torch.Tensor, n: int):
    label = list(range(n))
    for i, j in edges.tolist():
        assert label[i] != label[j], "a cycle"
        old, new = label[i], label[j]
        label = [new if one == old else one for one in label]
    assert len(set(label)) == 1


@pytest.fixture(params=["read", "queued"])
def rounds(request, monkeypatch):
    """Both ways of going through the rounds: as small as can be, and as many as there may have to be without a read."""
    monkeypatch.setattr("topoopt.geometry.tree.reading_is_free", lambda tensor: request.param == "read")


@pytest.mark.usefixtures("rounds")
@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 2), (50, 3), (400, 2), (600, 40)])
def test_deaths_are_ripsers_bit_for_bit(n, d):
    matrix = distances(cloud(n, d))
    matrix[0, 1] = matrix[1, 0] = matrix[0, 1] + 0.25
    assert np.array_equal(spanning_tree(matrix).deaths.numpy(), ripser_deaths(matrix))


@pytest.mark.usefixtures("rounds")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 40), values=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_ties_and_duplicates(n, values, seed):
    """Distances from a handful of values, 0 among them: any wrong tie-break closes a cycle here."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randint(0, values, (n, n), generator=generator).float().triu(1)
    matrix = matrix + matrix.T
    tree = spanning_tree(matrix)
    assert_spans(tree.edges, n)
    assert np.array_equal(tree.deaths.numpy(), prim(matrix.numpy()))
    assert torch.equal(tree.deaths, matrix[tree.edges[:, 0], tree.edges[:, 1]])


@pytest.mark.usefixtures("rounds")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_a_matrix_that_holds_no_distances_is_found_unsound(n, bad):
    """Whatever is in it, nothing is indexed out of bounds: on a GPU that would end the program."""
    finite = distances(cloud(n, 3))
    assert bool(minimum_spanning_tree(finite).sound)
    one = finite.clone()
    one[1], one[:, 1] = bad, bad
    cycle = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]])
    for matrix in (one, torch.full((n, n), bad), cycle):
        assert not bool(minimum_spanning_tree(matrix).sound)


def test_nearest_others():
    matrix = distances(cloud(40, 3))
    off = matrix + torch.diag(torch.full((40,), torch.inf))
    assert torch.equal(spanning_tree(matrix).nearest, off.amin(1))
    assert spanning_tree(torch.zeros(1, 1)).nearest.tolist() == [torch.inf]


@settings(max_examples=25, deadline=None)
@given(side=st.integers(2, 12))
def test_a_grid_is_all_ties(side):
    axis = torch.arange(side, dtype=torch.float32)
    matrix = distances(torch.cartesian_prod(axis, axis))
    tree = spanning_tree(matrix)
    assert_spans(tree.edges, side**2)
    assert torch.allclose(tree.deaths, torch.ones(side**2 - 1))


def test_float64_against_scipy():
    x = cloud(300, 7, dtype=torch.float64)
    heights = linkage(x.numpy(), "single")[:, 2]
    assert np.allclose(spanning_tree(distances(x)).deaths.numpy(), heights, rtol=1e-12)


@pytest.mark.parametrize("separation", [3e-2, 1e-3, 1e-5])
def test_float32_from_points_is_float64_to_1e_6(separation):
    """Groups of near twins: their distances are right, and so is every edge that joins the groups."""
    x = cloud(40, 200).repeat_interleave(5, dim=0)
    x = x + separation * cloud(200, 200, seed=1)
    deaths = spanning_tree(distances(x), points=x).deaths
    exact = np.sort(prim(squareform(pdist(x.double().numpy()))))
    assert np.allclose(deaths.numpy(), exact, rtol=1e-6, atol=0)


def test_the_matrix_is_left_alone():
    matrix = distances(cloud(70, 4))
    before = matrix.clone()
    spanning_tree(matrix)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("n", [0, 1])
def test_no_edges(n):
    tree = spanning_tree(torch.zeros(n, n))
    assert tree.edges.shape == (0, 2)
    assert tree.deaths.shape == (0,)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("n", [2, 3, 40])
def test_neurons_that_are_not_finite_are_named(bad, n):
    matrix = distances(cloud(n, 3))
    matrix[1], matrix[:, 1] = bad, bad
    with pytest.raises(MeasurementError, match=r"neurons .*1"):
        spanning_tree(matrix)


def test_what_is_no_distance_matrix_is_refused():
    with pytest.raises(MeasurementError, match=r"\(3, 4\)"):
        spanning_tree(torch.zeros(3, 4))
    rock, paper, scissors = [0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]
    with pytest.raises(MeasurementError, match="not symmetric"):
        spanning_tree(torch.tensor([rock, paper, scissors]))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 1000), clusters=st.integers(1, 5))
def test_the_merge_tree_is_single_linkage(n, seed, clusters):
    x = cloud(n, 3, seed, torch.float64)
    merges = merge_tree(spanning_tree(distances(x)))
    expected = linkage(x.numpy(), "single")
    assert is_valid_linkage(merges)
    assert np.allclose(merges[:, 2], expected[:, 2])
    assert np.array_equal(merges[:, 3], expected[:, 3])
    k = min(clusters, n)
    same, expected_same = ([a == b for a in c for b in c] for c in (cut_tree(m, k) for m in (merges, expected)))
    assert same == expected_same


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 1000), most=st.integers(0, 45))
def test_the_last_merges_are_the_end_of_the_tree(n, seed, most):
    tree = spanning_tree(distances(cloud(n, 3, seed, torch.float64)))
    sizes, merges = last_merges(tree.edges.numpy(), most)
    assert len(merges) == min(most, n - 1) == len(sizes) - 1
    whole = merge_tree(tree)
    left = cut_tree(whole, len(sizes)).ravel() if n > 1 else np.zeros(1, int)
    assert list(sizes) == [int((left == left[i]).sum()) for i in sorted(np.unique(left, return_index=True)[1])]
    for a, b in merges:
        sizes = (*sizes, sizes[a] + sizes[b])
    assert list(sizes[len(sizes) - len(merges) :]) == whole[len(whole) - len(merges) :, 3].tolist()


PEAK = """
import resource, torch
from topoopt.homology import spanning_tree
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
matrix = torch.rand({n}, {n})
for i in range(0, {n}, 256): matrix[i:, i : i + 256] = matrix[i : i + 256, i:].T
matrix = torch.minimum(matrix, matrix.T).fill_diagonal_(0)
spanning_tree(matrix[:9, :9]); before = peak()
spanning_tree(matrix)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_working_set():
    """What the docstring states; the peak before the call counts a copy of the matrix, so the bound is on what is above."""
    n = 4096
    run = subprocess.run([sys.executable, "-c", PEAK.format(n=n)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1.4 * 4 * n * n


@pytest.mark.gpu
def test_on_the_gpu():
    matrix = distances(cloud(900, 20))
    device = accelerator()
    tree = spanning_tree(matrix.to(device))
    assert tree.edges.device == device
    assert torch.equal(tree.deaths.cpu(), spanning_tree(matrix).deaths)


@pytest.mark.usefixtures("rounds")
@pytest.mark.parametrize("n", [2, 33, 700])
def test_the_tree_of_the_squares_is_that_of_the_distances(n: int):
    """A cloud's tree is the same whether its distances were asked for before or not; a third of the points have a near twin."""
    points = cloud(n, 7)
    points[: n // 3] = points[n // 3 : 2 * (n // 3)] * (1 + 1e-5)
    alone, after = Cloud(points), Cloud(points)
    assert after.distances.shape == (n, n)
    assert torch.equal(alone.tree.deaths, after.tree.deaths)
    assert torch.equal(alone.tree.nearest, after.tree.nearest)
    assert_spans(alone.tree.edges, n)
    np.testing.assert_allclose(alone.tree.deaths, prim(after.distances.double().numpy()), rtol=1e-5)
