"""`topoopt inspect`: the neurons of saved checkpoints, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from topoopt.geometry import compare, degeneracy, distances
from topoopt.homology import persistence, prominent
from topoopt.neurons import Discovery, NeuronGroup, discover, select
from topoopt.report.loading import example_inputs, load

Row = dict[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What was found in checkpoints of one architecture."""

    groups: Discovery
    neurons: tuple[Row, ...]
    """One row for each checkpoint and group."""
    distortion: tuple[Row, ...]
    """One row for each group and pair of neighbouring checkpoints."""


def inspect(
    checkpoints: Sequence[str],
    *,
    model: str | None = None,
    inputs: str | None = None,
    only_groups: bool = False,
    include: Sequence[str] | None = None,
    degree: int = 1,
    progress: Callable[[float], object] = lambda share: None,
) -> Inspection:
    """Find the groups of the first checkpoint, the neurons of each, and the distortion between neighbours.

    Args:
        checkpoints: Hugging Face folders (config and weights), or files of a state dict, of one and the same architecture.
        model: "module:callable" that makes the module for state dicts.
        inputs: "module:callable" that makes example inputs; token ids are made up for a Hugging Face model without it.
        only_groups: stop after the groups.
        include: glob patterns over group names.
        degree: highest degree of homology.
        progress: told the share of the work that is done.

    Raises:
        ConfigError: for a checkpoint that cannot be read, with what is missing.
    """
    modules = [load(checkpoint, model) for checkpoint in checkpoints]
    args, kwargs = example_inputs(modules[0], inputs)
    found = discover(modules[0], *args, **kwargs)
    if only_groups:
        return Inspection(found, (), ())
    groups, _ = select(found, include)
    named = list(zip(checkpoints, modules))
    neurons, count = [], max(1, len(named) * len(groups))
    for row in _neurons(named, groups, degree):
        neurons.append(row)
        progress(len(neurons) / count)
    return Inspection(found, tuple(neurons), tuple(_distortion(named, groups)))


def _neurons(named: Sequence[tuple[str, nn.Module]], groups: Sequence[NeuronGroup], degree: int) -> Iterator[Row]:
    for checkpoint, module in named:
        for group in groups:
            points = group.points(module)
            d = distances(points)
            weak = degeneracy(points, d)
            result = persistence(distances=d, degree=degree)
            features = (f"{len(prominent(dgm))} of {len(dgm)} in H{k}" for k, dgm in enumerate(result.diagrams) if k)
            yield {
                "checkpoint": checkpoint,
                "group": group.name,
                "neurons": points.shape[0],
                "dimension": points.shape[1],
                "merge margin": float(result.diagrams[0][0, 1]),
                "vanishing": weak.vanishing,
                "twins": weak.twins,
                "stand out": ", ".join(features),
            }


def _distortion(named: Sequence[tuple[str, nn.Module]], groups: Sequence[NeuronGroup]) -> Iterator[Row]:
    for (a, before), (b, after) in pairwise(named):
        for group in groups:
            moved = compare(group.points(before), group.points(after))
            yield {
                "from": a,
                "to": b,
                "group": group.name,
                "lower": moved.lower,
                "upper": moved.upper,
                "most shrunk": str(moved.lower_pair),
                "most stretched": str(moved.upper_pair),
            }
