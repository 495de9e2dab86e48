"""Which units of a group may go: those that nobody reads, those whose value never changes, and all but one of equal ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from topoopt.neurons.compacting.cutting import Cut, Original
from topoopt.neurons.compacting.result import Plan
from topoopt.neurons.compacting.roles import incoming, outgoing
from topoopt.neurons.group import NeuronGroup, Slice

BLOCK = 1 << 24
"""Distances held at a time."""
Constants = dict[int, dict[str, tuple[float, ...]]]


def plan(of: Original, cut: Cut, group: NeuronGroup, tolerance: float, constants: Constants | None = None) -> Plan:
    """What may go of what `cut` has left of a group.

    Args:
        of: the model, uncut.
        cut: what has gone already.
        group: the group; it has an incoming and an outgoing side.
        tolerance: of the neurons' incoming (outgoing) norms' root mean square.
        constants: units whose value never changes, with what those who read them see.
    """
    alive = cut.alive(of, group)
    if len(alive) < 2:  # a layer needs one unit
        return Plan()
    made, read = incoming(of.model, group), outgoing(of.model, group)
    into, out = (_rows(of, cut, group, slices)[alive] for slices in (made, read))
    norms = out.norm(dim=1)
    idle = norms <= tolerance * norms.square().mean().sqrt()
    steady = constants or {}
    removed = [unit for unit, still in zip(alive, idle.tolist()) if still or unit in steady]
    left = [i for i, unit in enumerate(alive) if unit not in set(removed)]
    if not left:
        removed = removed[1:]
    twins = _twins(into[left], tolerance * float(into.square().sum(1).mean().sqrt()))
    merged = {alive[left[i]]: alive[left[k]] for i, k in twins.items()}
    return Plan(merged, tuple(removed), {unit: steady[unit] for unit in removed if unit in steady})


def _rows(of: Original, cut: Cut, group: NeuronGroup, slices: Sequence[Slice]) -> Tensor:
    """The units' numbers in these slices: (n, d) in float64, complex ones as pairs."""
    parts = []
    for s in slices:
        tensor = cut.current(of, of.name[s.tensor])
        tensor = torch.view_as_real(tensor.contiguous()) if tensor.is_complex() else tensor
        places = s.positions(group.n).reshape(-1).to(tensor.device)
        parts.append(tensor.double().index_select(s.dim, places).movedim(s.dim, 0).reshape(group.n, -1))
    return torch.cat(parts, dim=1)


def _twins(rows: Tensor, near: float) -> dict[int, int]:
    """row -> an earlier row within `near` that stays: (n, d) rows, n numbers of a block of distances at a time."""
    taken: dict[int, int] = {}
    for i, k in _close(rows, near):
        if i not in taken and k not in taken:
            taken[i] = k
    return taken


def _close(rows: Tensor, near: float) -> Iterator[tuple[int, int]]:
    """Pairs (i, k), k < i, in order, whose distance is at most `near`: proposed by products, then measured."""
    n = len(rows)
    squares = rows.square().sum(1)
    step = max(1, BLOCK // max(1, n))
    for start in range(0, n, step):
        block = rows[start : start + step]
        size = squares[start : start + step, None] + squares[None]
        apart = size - 2 * block @ rows.T
        for b, k in (apart <= near**2 + 1e-11 * size).nonzero().tolist():
            i = start + b
            if k < i and float((rows[i] - rows[k]).norm()) <= near:
                yield i, k


def steady_by_weights(of: Original, group: NeuronGroup, tolerance: float) -> list[int]:
    """Units that no input reaches: their incoming weights are negligible, or the scale that multiplies their value is."""
    still = torch.zeros(group.n, dtype=torch.bool)
    slices = incoming(of.model, group)
    weights = [s for s in slices if of.tensors[of.name[s.tensor]].ndim > 1]
    scales = [s for s in slices if s.role == "scale" and s.tensor.endswith("weight") and s not in weights]
    for held in [weights, *([s] for s in scales)]:
        if held:
            norms = _rows(of, Cut(), group, held).norm(dim=1)
            still |= (norms <= tolerance * norms.square().mean().sqrt()).cpu()
    return still.nonzero().flatten().tolist()


def has_sides(model: nn.Module, group: NeuronGroup) -> str:
    """Why a group cannot be compacted whatever its numbers are; "" where it can."""
    if any(s.siblings for s in group.slices):
        return "its units are modules of their own"
    if not incoming(model, group) or not outgoing(model, group):
        return "none of its parameters make (or none read) its units' values alone"
    return ""
