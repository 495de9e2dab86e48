"""What each operator says about axes: a table from operator names to rules, one function a rule, grouped by family."""

from topoopt.neurons.rules import convolution, elementwise, indexing, linear, recurrent, reduction, shape
from topoopt.neurons.rules.table import RULES, Rule, Value

__all__ = [
    "RULES",
    "Rule",
    "Value",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "recurrent",
    "reduction",
    "shape",
]
