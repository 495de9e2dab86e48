"""Which groups pass the gate: all together first, by bisection where they fail, beside broken copies in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from topoopt.errors import DiscoveryError
from topoopt.neurons.gate import TOLERANCE, Gate
from topoopt.neurons.group import NeuronGroup, unwrap
from topoopt.neurons.running import Call, alone
from topoopt.neurons.watching import NotApart

CONTROL = 100.0
"""In float32 a broken symmetry must change the output by this many tolerances, or nothing can be told."""
NO_EFFECT = "its parameters have no effect on the output"
SMALL = 4
"""Groups of at most this many units are permuted several times: they have few permutations that move everything."""


@dataclass(frozen=True)
class GateResult:
    """Groups that passed, and for each that did not the reason."""

    passed: list[NeuronGroup]
    rejected: dict[str, str]
    notes: tuple[str, ...] = ()


def judge(gate: Gate, groups: Sequence[NeuronGroup]) -> GateResult:
    """Verify groups together first, and by bisection where they fail together."""
    rejected: dict[str, str] = {}
    try:
        dead = gate.dead(groups)
    except (RuntimeError, NotApart):  # an output without a gradient: nothing can be called dead
        dead = set()
    rejected |= dict.fromkeys(dead, NO_EFFECT)
    queue = [[group for group in groups if group.name not in dead]]
    passed: list[NeuronGroup] = []
    while queue:
        batch = queue.pop()
        if not batch:
            continue
        change = _largest_change(gate, batch)
        if change <= gate.tolerance:
            passed += batch
        elif len(batch) == 1:
            rejected[batch[0].name] = f"permuting it changes the output by {change:.2g} (relative)"
        else:
            queue += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    if gate.tolerance > TOLERANCE[torch.float64]:
        blurred = {group.name: reason for group in passed if (reason := _blurred(gate, group))}
        passed, rejected = [group for group in passed if group.name not in blurred], rejected | blurred
    moved = rejected.keys() - dead
    if moved and not gate.steady:
        rejected |= dict.fromkeys(moved, "the model gives another output each time it is run on the same inputs")
    order = {group.name: i for i, group in enumerate(groups)}
    return GateResult(sorted(passed, key=lambda group: order[group.name]), rejected)


def _largest_change(gate: Gate, groups: Sequence[NeuronGroup]) -> float:
    tries = 3 if any(group.n <= SMALL for group in groups) else 1
    return max(gate.change([(group, gate.permutation(group.n)) for group in groups]) for _ in range(tries))


def _blurred(gate: Gate, group: NeuronGroup) -> str:
    """Why rounding hides whether this group is one: moved without its first slice, it must change the output clearly."""
    broken = replace(group, slices=group.slices[1:])
    change = _largest_change(gate, [broken]) if broken.slices else math.inf
    if change >= CONTROL * gate.tolerance:
        return ""
    return f"in float32 a broken copy of it changes the output by {change:.2g} only: rounding would hide a mistake"


@alone()
def admitted(
    model: nn.Module,
    groups: Sequence[NeuronGroup],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    call: Call | str | None = None,
) -> GateResult:
    """Pass groups through the gate: in float64, or beside broken copies of themselves in float32 where that cannot run.

    Raises:
        DiscoveryError: when the model can be run in neither.
    """
    gate, notes = open_gate(model, args, kwargs, call)
    return replace(judge(gate, groups), notes=notes)


def open_gate(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Call | str | None = None
) -> tuple[Gate, tuple[str, ...]]:
    """The most precise gate that a model can be run in, and what is to be said of it.

    Raises:
        DiscoveryError: when the model cannot be copied or run.
    """
    try:
        return Gate(model, args, kwargs, call=call), ()
    except NotApart:
        raise
    except DiscoveryError as error:
        try:
            gate = Gate(model, args, kwargs, torch.float32, call=call)
        except DiscoveryError:
            raise error from None
        return gate, (f"{error}: its groups were verified in float32, each beside a broken copy of itself",)


@alone()
def verify(model: nn.Module, group: NeuronGroup, *args: Any, call: Call | str | None = None, **kwargs: Any) -> float:
    """Largest relative change of the model's output under a random permutation of a group, on random float64 weights.

    A symmetry gives rounding, about 1e-15; anything above 1e-9 is none. The model itself is not touched.

    Raises:
        DiscoveryError: when the model cannot be copied or run on the inputs given.
    """
    gate = Gate(unwrap(model), args, kwargs, call=call)
    return _largest_change(gate, [group])
