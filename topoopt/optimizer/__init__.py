"""The wrapper that is the optimizer: what happens around its steps, and what a run keeps."""

from topoopt.optimizer.wrapper import TopoOptimizer

__all__ = ["TopoOptimizer"]
