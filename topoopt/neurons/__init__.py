"""Neurons: the groups of interchangeable units of any model, found and proved."""

from topoopt.neurons.compacting import Compacted, Compaction, compact
from topoopt.neurons.finding import Discovery, discover
from topoopt.neurons.group import NeuronGroup, Slice, tensor_ids, unwrap
from topoopt.neurons.judging import GateResult, admitted, verify
from topoopt.neurons.running import call_parts
from topoopt.neurons.selection import Coverage, optimizer_coverage, parameter_names, select

__all__ = [
    "Compacted",
    "Compaction",
    "Coverage",
    "Discovery",
    "GateResult",
    "NeuronGroup",
    "Slice",
    "admitted",
    "call_parts",
    "compact",
    "discover",
    "optimizer_coverage",
    "parameter_names",
    "select",
    "tensor_ids",
    "unwrap",
    "verify",
]
