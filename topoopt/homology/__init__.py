"""Persistent homology of neuron clouds. Tensors or distances in, diagrams out."""

from topoopt.homology.births import loop_births
from topoopt.homology.diagrams import (
    betti_curve,
    bottleneck,
    largest_loop,
    log_persistence,
    persistence_entropy,
    prominent,
    total_persistence,
)
from topoopt.homology.h0 import SpanningTree, h0_diagram, spanning_tree
from topoopt.homology.merge_tree import last_merges, merge_tree
from topoopt.homology.persistence import Persistence, persistence
from topoopt.homology.watch import Watch
from topoopt.homology.worker import Finished, HomologyWorker

__all__ = [
    "Finished",
    "HomologyWorker",
    "Persistence",
    "SpanningTree",
    "Watch",
    "betti_curve",
    "bottleneck",
    "h0_diagram",
    "largest_loop",
    "last_merges",
    "log_persistence",
    "loop_births",
    "merge_tree",
    "persistence",
    "persistence_entropy",
    "prominent",
    "spanning_tree",
    "total_persistence",
]
