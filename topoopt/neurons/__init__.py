"""Neurons: the groups of interchangeable units of any model, found and proved."""

from topoopt.neurons.compacting import Compacted, compact
from topoopt.neurons.coverage import Coverage, optimizer_coverage
from topoopt.neurons.finding import Discovery, discover
from topoopt.neurons.group import NeuronGroup, Slice
from topoopt.neurons.judging import Verdict, admitted, verify
from topoopt.neurons.selection import parameter_names, select
from topoopt.neurons.unwrapping import unwrap

__all__ = [
    "Compacted",
    "Coverage",
    "Discovery",
    "NeuronGroup",
    "Slice",
    "Verdict",
    "admitted",
    "compact",
    "discover",
    "optimizer_coverage",
    "parameter_names",
    "select",
    "unwrap",
    "verify",
]
