"""Documents of others, changed at random: taken, or refused with a TopoError, and nothing else."""

from __future__ import annotations

import logging

import pytest
from fuzz import TARGETS, fuzz


@pytest.mark.parametrize("target", TARGETS)
def test_foreign_input_is_taken_or_refused(target: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "topoopt"):
        counts = fuzz(target, 150)
    assert sum(counts.values()) >= 150
    assert counts["refused"] > 10
