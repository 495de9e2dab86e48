"""An optimizer that its owner has already made a `TopoOptimizer`, inside what a tool has wrapped around it since."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from topoopt.optimizer import TopoOptimizer


def measured_inside(optimizer: Any) -> TopoOptimizer | None:
    """The first measured optimizer on the way down through `.optimizer`, or None."""
    seen: list[Any] = []
    while isinstance(optimizer, Optimizer) and not any(optimizer is other for other in seen):
        if isinstance(optimizer, TopoOptimizer):
            return optimizer
        seen.append(optimizer)
        optimizer = vars(optimizer).get("optimizer")
    return None
