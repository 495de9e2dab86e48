"""What each operator says about axes: a table from operator names to rules, one function a rule, grouped by family."""

from topoopt.neurons.rules import (
    attention,
    convolution,
    elementwise,
    indexing,
    linear,
    loss,
    making,
    norm,
    recurrent,
    reduction,
    shape,
    transform,
)
from topoopt.neurons.rules.table import RULES, Rule, Value

__all__ = [
    "RULES",
    "Rule",
    "Value",
    "attention",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "loss",
    "making",
    "norm",
    "recurrent",
    "reduction",
    "shape",
    "transform",
]
