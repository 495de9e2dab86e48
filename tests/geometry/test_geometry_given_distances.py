"""Distances that somebody gives: what is no matrix of distances is refused wherever one is taken, saying where and why."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.errors import MeasurementError
from topoopt.geometry import checked_distances, distances, maxmin
from topoopt.homology import HomologyWorker, loop_births, persistence, spanning_tree


def matrix(n: int = 12, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return distances(torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=dtype))


def changed(*entries: tuple[int, int, float]) -> torch.Tensor:
    found = matrix()
    for i, j, value in entries:
        found[i, j] = value
    return found


WRONG = {
    "one side": (changed((3, 7, 0.0)), r"not symmetric, d\[3, 7\] = 0.0, d\[7, 3\] = "),
    "by rounding": (changed((2, 1, float(torch.nextafter(matrix()[1, 2], torch.tensor(9.0))))), r"\(d \+ d.T\) / 2"),
    "negative": (changed((4, 5, -0.5), (5, 4, -0.5)), r"d\[4, 5\] = -0.5"),
    "diagonal": (changed((6, 6, 0.25)), r"d\[6, 6\] = 0.25: a neuron is at distance 0 from itself"),
    "NaN": (changed((1, 8, torch.nan), (8, 1, torch.nan)), "neurons 1, 8"),
    "infinite": (changed((1, 8, torch.inf), (8, 1, torch.inf)), "neurons 1, 8"),
    "NaN diagonal": (changed((3, 3, torch.nan)), "neurons 3"),
    "not square": (matrix()[:5], r"\(5, 12\)"),
    "a vector": (matrix()[0], r"\(12,\)"),
    "integers": (matrix().long(), "int64"),
    "complex": (matrix().to(torch.complex64), "complex64"),
}
TAKES = {
    "persistence by redzed": lambda d: persistence(distances=d, backend="redzed"),
    "persistence by ripser": lambda d: persistence(distances=d, backend="ripser"),
    "spanning_tree": spanning_tree,
    "loop_births": loop_births,
    "maxmin": lambda d: maxmin(distances=d, k=3),
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("taker", TAKES)
def test_it_is_refused(fault, taker):
    given_matrix, says = WRONG[fault]
    with pytest.raises(MeasurementError, match=says):
        TAKES[taker](given_matrix)


@pytest.mark.parametrize("fault", WRONG)
def test_a_worker_says_so_in_its_result(fault):
    worker = HomologyWorker()
    worker.submit("a", 1, WRONG[fault][0])
    (failed,) = worker.collect(wait=True)
    assert failed.persistence is None
    assert failed.error.startswith("MeasurementError")


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), i=st.integers(0, 59), j=st.integers(0, 59), step=st.integers(1, 100))
def test_a_single_entry_is_found_wherever_it_is(n, i, j, step):
    found = matrix(n)
    found[i % n, j % n] += 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["topoopt.geometry.distances"], "STRIP", step * n)
        with pytest.raises(MeasurementError, match=rf"d\[({i % n}|{j % n}), ({i % n}|{j % n})\]"):
            checked_distances(found)


@pytest.mark.parametrize("n", [0, 1, 2, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_right_comes_back_as_it_was(n, dtype):
    given_matrix = matrix(n, dtype)
    assert checked_distances(given_matrix).data_ptr() == given_matrix.data_ptr()
    assert checked_distances(given_matrix.half() if n else given_matrix).dtype in (torch.float32, dtype)
