"""Records of format 1, which topoopt 0.1 wrote: a header, then flat measurements whose numbers may be strings."""

from __future__ import annotations

from typing import Any

import msgspec

from topoopt.measurement import Measurement
from topoopt.report.border import check_measurement, convert
from topoopt.report.lines import Header, Line, MeasurementLine

_READING = {"r_spec": "r", "r_field": "field"} | {
    name: name for name in ("step", "edge", "lr", "loss", "rule", "engine", "products", "probe")
}
"""Field of the flat measurement -> of its reading."""
_ASSESSMENT = ("phase", "proximity", "estimator", "eta_star", "eta_star_bracket")
_COST = ("seconds", "share")
_OWN = ("step", "lr", "lr_scale", "groups", "decision", "skipped", "notes", "counts")


def decode(text: bytes) -> Line:
    """Read one line.

    Raises:
        ValueError: for what is no such line, with the reason; RecursionError for hostile nesting.
    """
    data = msgspec.json.decode(text, type=dict[str, Any])
    if "topoopt" in data:
        return convert(data, Header)
    measurement = convert(migrated(data), Measurement)
    check_measurement(measurement)
    return MeasurementLine(measurement)


def migrated(flat: dict[str, Any]) -> dict[str, Any]:
    """Put a flat measurement's fields where they are now."""
    spectral = {new: flat[old] for old, new in _READING.items() if old in flat}
    spectral["scale"] = flat.get("lr_scale", 1.0)
    low, high = convert(flat.get("spectrum", ("nan", "nan")), tuple[float, float])
    skipped = convert(flat.get("skipped", {}), dict[str, str])
    parts = {
        "spectral": spectral | {"low": low, "high": high, "reason": skipped.get("spectral", "")},
        "assessment": {name: flat[name] for name in _ASSESSMENT if name in flat},
        "cost": {name: flat[name] for name in _COST if name in flat},
    }
    return parts | {name: flat[name] for name in _OWN if name in flat}
