"""The table of rules, and what a rule works with.

A rule is `rule(out, *args, **kwargs)`: `args` and `kwargs` are the operator's own, with every tensor replaced by its
`Value`; `out` is the shape (or the list of shapes) of what the operator returns. It unifies, splits and freezes axes of
its inputs and returns the output's `Value` (or a list of them). An operator without a rule freezes all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from topoopt.neurons.axes import Axis, unify


@dataclass
class Value:
    """A tensor in the graph: an axis for each dimension, and what else rules need to know of it."""

    dims: list[Axis]
    source: str = ""
    """Name of the parameter or buffer that this is (possibly transposed), "" for what was computed."""
    uniform: bool = False
    """All entries are equal, so that any permutation leaves it alone."""
    domain: Axis | None = None
    """For integers that index: the axis whose positions they are."""
    content: Tensor | None = None
    """The numbers themselves, of a small constant of integers."""
    learned: bool = False
    """Made of parameters alone: a weight, whatever was done to it."""
    roles: dict[int, str] = field(default_factory=dict)
    """For a weight: id of an axis in `dims` -> "out" or "in", as matrix products have used it; shared by transposes."""

    def used_as(self, role: str, dim: int) -> None:
        """Say which side of a weight a dimension is."""
        self.roles.setdefault(id(self.dims[dim]), role)

    @property
    def shape(self) -> list[int]:
        """Sizes of the dimensions."""
        return [axis.size for axis in self.dims]

    @property
    def is_parameter(self) -> bool:
        """Whether this is a parameter or buffer itself."""
        return bool(self.source)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name, without namespace and overload (`linear`, not `aten.linear.default`)."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def fresh(shape: Sequence[int], frozen: str | None = None) -> list[Axis]:
    """New axes for a shape."""
    return [Axis(int(size), frozen) for size in shape]


def broadcast(values: Sequence[Value], out: Sequence[int]) -> list[Axis]:
    """Unify the axes of values that are broadcast together, from the right, and return the result's axes."""
    dims: list[Axis] = []
    for position in range(1, len(out) + 1):
        size = int(out[-position])
        meeting = [
            v.dims[-position]
            for v in values
            if len(v.dims) >= position and v.dims[-position].size == size and not v.uniform
        ]
        axis = meeting[0] if meeting else Axis(size)
        for other in meeting[1:]:
            unify(axis, other)
        dims.insert(0, axis)
    return dims


def tensors(*things: Any) -> list[Value]:
    """The values among arguments, lists of them included."""
    found: list[Value] = []
    for thing in things:
        if isinstance(thing, Value):
            found.append(thing)
        elif isinstance(thing, list | tuple):
            found.extend(tensors(*thing))
    return found
