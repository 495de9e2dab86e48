"""Faults at random for a long time: the bare run's bits, every fault counted under its name, and nothing that grows."""

from __future__ import annotations

import sys

import pytest
from soak import soak

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@linux
@pytest.mark.parametrize("steps", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_long_run_under_random_faults(steps: int) -> None:
    done = soak(steps)
    assert done.same
    assert done.counted == done.injected
    assert len(done.injected) == 7 if steps > 1_000 else sum(done.injected.values()) > 10
    assert done.logged < 40
    assert done.end.threads <= done.begin.threads + 1
    assert done.end.files <= done.begin.files + 4  # homology's process may be there or not
    assert done.end.memory <= done.begin.memory + 24
