"""compact: a smaller module with the same function, without the neurons that no longer count."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from topoopt.errors import ConfigError
from topoopt.neurons.compacting.choosing import Bench
from topoopt.neurons.compacting.configuration import describe
from topoopt.neurons.compacting.result import Compacted, Compaction
from topoopt.neurons.compacting.trial import Inputs
from topoopt.neurons.copying import copy_of
from topoopt.neurons.group import NeuronGroup, unwrap

logger = logging.getLogger("topoopt")


def compact(
    model: nn.Module,
    groups: Sequence[NeuronGroup],
    tolerance: float = 1e-3,
    *,
    inputs: Any = None,
    silent: bool = False,
    change: float = 1e-5,
) -> tuple[nn.Module, Compaction]:
    """Return a smaller copy of `model` with the same function, and for each group what was done to it or why not.

    A neuron that nobody reads (outgoing weights negligible) is removed; so is one whose value never changes, and what it
    always adds goes into the bias of those who read it; neurons whose incoming weights coincide are merged into one that
    carries the sum of their outgoing weights. What may be done to which group is first tried on random weights, where equal
    units are planted; then the cut model is run beside the uncut one, on private copies in float64 on the CPU, and a group
    whose cut changes any output entry by more than `change` is left whole, with its reason. So is one that a module
    cannot be cut for. Of layers that one module or one configuration gives a single width, each keeps as many.

    Costs two copies of the model in float64, one after the other, and a few forwards a group that has units to spare; where
    none has any, only the products of each group's neurons. Large matrices of distances are taken in blocks.

    Args:
        model: the module; it is neither changed nor run.
        groups: groups of `model`, as `discover` returns them.
        tolerance: relative to the root mean square of the neurons' incoming (or outgoing) norms.
        inputs: what the two are compared on: a tensor, a tuple of arguments or a dict of keyword arguments, or a list of
            several of these. Default: the inputs that the groups were found with.
        silent: also remove units whose value is the same on all of `inputs` (dead ones, say): the function is then kept on
            these inputs, not on every one.
        change: largest change of an output entry, relative to the entry's scale (its own size, or its place's root mean
            square over the batch). Above 1e-5 the small model is an approximation, and says so.

    Returns:
        The small copy (without hooks, on the model's device, in its types and mode), and a dict from each group's name to
        `Compacted`, which prints as a table.

    Raises:
        ConfigError: for a negative tolerance or change, or `silent` without inputs.
    """
    if tolerance < 0:
        raise ConfigError(f"tolerance={tolerance} is not usable: give a share of the neurons' size, 0 or more")
    if change < 0:
        raise ConfigError(f"change={change} is not usable: give a share of an output entry's scale, 0 or more")
    if silent and inputs is None:
        raise ConfigError("silent=True removes units by what they do on data: give inputs=")
    own = unwrap(model)
    runs = _runs(groups) if inputs is None else [_arguments(one) for one in _several(inputs)]
    result = Compaction({group.name: Compacted(group.n) for group in groups})
    small = copy_of(own)
    if runs:
        _work(own, small, groups, runs, result, Bench.Limits(tolerance, change, silent))
    else:
        why = "there are no inputs to compare on: give inputs=, or groups as `discover` returns them"
        result.update({group.name: Compacted(group.n, reason=why) for group in groups})
    result.parameters = _size(own), _size(small)
    return small, result


def _work(
    own: nn.Module,
    small: nn.Module,
    groups: Sequence[NeuronGroup],
    runs: list[Inputs],
    result: Compaction,
    limits: Bench.Limits,
) -> None:
    bench = Bench(own, groups, runs, limits)
    try:
        bench.choose()
    except Exception as error:  # a user's model raises whatever it likes; what has been found so far was compared
        logger.info("topoopt: compacting stopped", exc_info=True)
        for group in bench.waiting():
            bench.reasons[group.name] = f"the model cannot be compared with itself ({type(error).__name__}: {error})"
    if bench.plans:
        bench.cut.carry_out(bench.of, small)
        result.change = bench.change
        result.notes = (*bench.notes, *describe(small, bench.shrunk()))
    for group in groups:
        done = bench.plans.get(group.name, [])
        merged, removed = sum(len(p.merged) for p in done), sum(len(p.removed) for p in done)
        reason = "" if done else bench.reasons.get(group.name, "")
        result[group.name] = Compacted(group.n - merged - removed, removed, merged, reason)


def _runs(groups: Sequence[NeuronGroup]) -> list[Inputs]:
    found = next((group.example for group in groups if group.example is not None), None)
    return [] if found is None else [found.inputs()]


def _several(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, list) else [inputs]


def _arguments(one: Any) -> Inputs:
    if isinstance(one, dict):
        return (), one
    return (tuple(one) if isinstance(one, tuple) else (one,)), {}


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
