"""The wrapper: hooks on a torch optimizer, when to measure, what to keep between measurements."""

from topoopt.optimizer.facade import TopoOptimizer

__all__ = ["TopoOptimizer"]
