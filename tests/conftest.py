"""What holds for every property: a busy machine is no failure."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

if settings.get_current_profile_name() != "mutants":
    settings.register_profile("topoopt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("topoopt")
