"""Measurements for tests that need some and no training."""

from __future__ import annotations

from typing import Any

from topoopt.measurement import Assessment, Cost, Measurement, Phase, SpectralReading


def make(step: int = 0, **flat: Any) -> Measurement:
    """A measurement from flat names: those of its parts find their way into them."""
    spectral = {"r_spec": "r", "r_field": "field", "edge": "edge", "loss": "loss", "rule": "rule", "engine": "engine"}
    reading = {inner: flat.pop(name) for name, inner in spectral.items() if name in flat}
    cost = {name: flat.pop(name) for name in ("seconds", "share") if name in flat}
    stands: dict[str, Any] = {"phase": Phase.CONSTRAINED, "proximity": 0.5, "estimator": "spectral"}
    stands |= {"eta_star": (0.2,), "eta_star_bracket": ((0.2, 1.0),)}
    stands |= {name: flat.pop(name) for name in list(stands) if name in flat}
    flat.pop("r_pair", None)
    values = {"lr": (0.1,), "lr_scale": 1.0, "groups": {}} | flat
    return Measurement(
        step=step,
        spectral=SpectralReading(**{"step": step, "r": stands["proximity"], "edge": 2.0} | reading),
        assessment=Assessment(**stands),
        cost=Cost(**cost),
        **values,
    )
