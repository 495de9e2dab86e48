"""What holds for every test: a busy machine is no failure, and what takes long begins first."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

if settings.get_current_profile_name() != "mutants":
    settings.register_profile("topoopt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("topoopt")

LONG = ("distributed", "faults", "integrations", "homology")
"""Folders of few tests that take long: workers that get them last leave the others with nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long folders first; the order within is the collection's."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))
