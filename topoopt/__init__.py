"""topoopt: how close your learning rate is to the topological critical one, and what to do about it.

A drop-in wrapper around any torch optimizer. See `TopoOptimizer`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topoopt.config import TopoConfig as TopoConfig
    from topoopt.control import Hold as Hold
    from topoopt.control import Preserve as Preserve
    from topoopt.control import Report as Report
    from topoopt.control import Schedule as Schedule
    from topoopt.control import Simplify as Simplify
    from topoopt.measurement import Measurement as Measurement
    from topoopt.measurement import Phase as Phase
    from topoopt.neurons import NeuronGroup as NeuronGroup
    from topoopt.neurons import compact as compact
    from topoopt.neurons import discover as discover
    from topoopt.neurons import verify as verify
    from topoopt.optimizer import TopoOptimizer as TopoOptimizer
    from topoopt.suggestion import Suggestion as Suggestion
    from topoopt.suggestion import suggest as suggest

__version__ = "0.2.0"

_HOME = {
    "TopoOptimizer": "topoopt.optimizer",
    "TopoConfig": "topoopt.config",
    "Phase": "topoopt.measurement",
    "Measurement": "topoopt.measurement",
    "NeuronGroup": "topoopt.neurons",
    "discover": "topoopt.neurons",
    "verify": "topoopt.neurons",
    "compact": "topoopt.neurons",
    "Report": "topoopt.control",
    "Preserve": "topoopt.control",
    "Simplify": "topoopt.control",
    "Hold": "topoopt.control",
    "Schedule": "topoopt.control",
    "suggest": "topoopt.suggestion",
    "Suggestion": "topoopt.suggestion",
}

__all__ = [  # noqa: RUF022 -- in the order in which one meets them
    "TopoOptimizer",
    "TopoConfig",
    "Phase",
    "Measurement",
    "NeuronGroup",
    "discover",
    "verify",
    "compact",
    "Report",
    "Preserve",
    "Simplify",
    "Hold",
    "Schedule",
    "suggest",
    "Suggestion",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing topoopt does no work."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("geometry", "homology", "curvature", "neurons", "control", "critical", "integrations", "report"):
        return importlib.import_module(f"topoopt.{name}")
    raise AttributeError(f"module 'topoopt' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
