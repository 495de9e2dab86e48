"""All that is measured of one group around one step, queued on its device; then of all groups brought over at once.

A read by the host stops a device's queue. So `measure` reads nothing: it leaves its numbers where they are, and `collect`
brings those of every group over in one copy. That a group's weights are not finite comes as a flag among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from topoopt.device import wide
from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import Cloud, write_symmetric
from topoopt.geometry.degeneracy import TOLERANCE, Degeneracy, counts
from topoopt.geometry.distortion import IDENTITY, Distortion, refuse, trivial
from topoopt.geometry.near import NearPairs
from topoopt.geometry.rank import Participation, participation
from topoopt.geometry.step import Step, same_shape, window
from topoopt.geometry.stored import StoredCloud, as_cloud, rounding_of
from topoopt.geometry.tree import minimum_spanning_tree

Kept = Tensor | Cloud | StoredCloud
"""A reference, however it is kept."""


@dataclass(frozen=True)
class CloudMeasurement:
    """One group around one step, in plain numbers. Distances are in the units of the weights."""

    n: int
    d: int
    distortion: Distortion
    """Of the step."""
    windows: Mapping[str, tuple[float, float]]
    """(lower, upper) distortion since each of the older clouds."""
    deaths: np.ndarray  # (n - 1,) float64, ascending: H0's deaths, the edges of the spanning tree after the step
    diameter: float
    """Largest distance after the step; 0 for a single neuron."""
    degeneracy: Degeneracy
    """Vanishing neurons and twins after the step."""
    effective_rank: float
    """Participation ratio of the covariance's spectrum after the step; NaN where all neurons are one."""
    edges: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """The spanning tree's edges (n - 1, 2), in the order of `deaths`: which two neurons each death joins."""
    rounding: float | None = None
    """By how much keeping it in half the size moves a point, where that was asked for: see `StoredCloud.of`."""

    @property
    def merge_margin(self) -> float:
        """Distance of the two nearest neurons; inf for a single one."""
        return float(self.deaths[0]) if len(self.deaths) else math.inf

    @property
    def h0(self) -> np.ndarray:
        """H0's diagram (n, 2): births 0, the deaths, and the one class that never dies."""
        deaths = np.append(self.deaths, np.inf)[: self.n]
        return np.column_stack([np.zeros(len(deaths)), deaths])


@dataclass(frozen=True)
class DeviceMeasurement:
    """What `measure` has queued: numbers on the device, and the clouds they are of, until `collect` has seen them."""

    before: Tensor
    after: Tensor
    windows: Mapping[str, Kept]
    tolerances: tuple[float, float]
    """Vanishing, twins."""
    distances: Tensor | None
    """Distances (n, n) after the step, if they were to be kept."""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """By name: 0-dim or 1-d, of any dtype."""


@torch.no_grad()
def measure(
    before: Tensor | Cloud,
    after: Tensor | Cloud,
    *,
    windows: Mapping[str, Kept] | None = None,
    vanishing_tolerance: float = TOLERANCE,
    twin_tolerance: float = TOLERANCE,
    keep_distances: bool = False,
    thorough: bool = False,
    halve: bool = False,
) -> DeviceMeasurement:
    """Measure a cloud around a step, (n, d) before and after, and against older clouds of it; for `collect` to bring over.

    Costs three Gram products, one more for each distinct window (none for one that is `before`), and one spanning tree.
    Makes no host read unless `thorough`, which makes room for any number of near twins; `halve` also asks by how much keeping
    the cloud in half the size moves its points. Holds (n, n) and three clouds beside those given while it runs; afterwards
    the clouds given, a few numbers, the n - 1 deaths with their edges, and with `keep_distances` (n, n).

    Raises:
        MeasurementError: for anything but floating-point (n, d) tensors of one shape. What is not finite `collect` tells.
    """
    x, y = Cloud.of(before), Cloud.of(after)
    same_shape(x, y)
    near = NearPairs(y.points, thorough=thorough)
    numbers, distances = _of_the_step(x, y, near)
    numbers |= _of_the_cloud(y, distances, vanishing_tolerance, twin_tolerance)
    found: dict[int, Tensor] = {
        id(before): torch.cat([numbers["step"][:2], numbers["finite"][None].to(numbers["step"])])
    }
    for name, kept in (windows or {}).items():
        if id(kept) not in found:
            found[id(kept)] = _since(kept, y, near, distances)
        numbers[f"window/{name}"] = found[id(kept)]
    numbers["missed"] = near.missed
    if halve:
        numbers["rounding"] = rounding_of(y)
    tolerances = vanishing_tolerance, twin_tolerance
    return DeviceMeasurement(
        x.given, y.given, dict(windows or {}), tolerances, distances if keep_distances else None, numbers
    )


def _of_the_step(x: Cloud, y: Cloud, near: NearPairs) -> tuple[dict[str, Tensor], Tensor]:
    """The step's extremes and the effective rank after it; and the distances (n, n) after it."""
    distances = y.points.new_zeros(len(y), len(y))
    if trivial(x):
        unknown = wide(x.points.new_full((), math.nan))
        places = torch.full((4, 2), -1, device=unknown.device)
        step = unknown.new_tensor([IDENTITY.lower, IDENTITY.upper, IDENTITY.gain, IDENTITY.contraction])
        return {"finite": x.finite & y.finite, "step": step, "places": places.flatten(), "rank": unknown}, distances
    step = Step(x, y, near)
    rank = Participation(step.after_norms)
    for rows, gram_squares, squares in step.strips():
        rank.see(rows, gram_squares)
        write_symmetric(distances, rows, squares.sqrt_().div_(step.after_scale))
    values, places = step.found()
    participating = participation(y) if step.collapsed else rank.value
    return {"finite": step.finite, "step": values, "places": places.flatten(), "rank": participating}, distances


def _of_the_cloud(y: Cloud, distances: Tensor, vanishing: float, twin: float) -> dict[str, Tensor]:
    """Deaths, diameter and counts of a cloud with its distances."""
    tree = minimum_spanning_tree(distances).remeasured(y.lengths_of)
    diameter = distances.amax() if distances.numel() else distances.new_zeros(())
    few = counts(y.given, tree.nearest, vanishing, twin)[:3]
    return {
        "sound": tree.sound, "deaths": tree.deaths, "edges": tree.edges.flatten(), "diameter": diameter, "counts": few
    }  # fmt: skip


def _since(kept: Kept, y: Cloud, near: NearPairs, distances: Tensor) -> Tensor:
    reference = as_cloud(kept, y.points.device)
    same_shape(reference, y)
    if trivial(y):
        return wide(distances.new_ones(3))
    found = window(reference, y, near, distances)
    return torch.cat([found, reference.finite[None].to(found)])


def collect(measurements: Iterable[DeviceMeasurement]) -> list[CloudMeasurement | MeasurementError]:
    """Bring over what was measured, in order: one host read for all of a device.

    A group that could not be measured is an error in its place, naming the rows that are not finite; it costs the others
    nothing. Where more near twins turned up than there was room for, the group is measured once more, thoroughly.
    """
    given = list(measurements)
    return [_result(one, numbers) for one, numbers in zip(given, _brought_over(given))]


def _brought_over(given: Sequence[DeviceMeasurement]) -> list[dict[str, np.ndarray]]:
    """The numbers of each measurement, by name: one copy from each device."""
    flat = [torch.cat([wide(number).reshape(-1) for number in one.numbers.values()]) for one in given]
    rows: dict[int, np.ndarray] = {}
    for device in {one.device for one in flat}:
        here = [k for k, one in enumerate(flat) if one.device == device]
        ends = np.cumsum([len(flat[k]) for k in here])[:-1]
        rows |= dict(zip(here, np.split(torch.cat([flat[k] for k in here]).cpu().numpy(), ends)))
    return [_named(one.numbers, rows[k]) for k, one in enumerate(given)]


def _named(numbers: Mapping[str, Tensor], row: np.ndarray) -> dict[str, np.ndarray]:
    ends = np.cumsum([number.numel() for number in numbers.values()])[:-1]
    return dict(zip(numbers, np.split(row, ends)))


def _result(one: DeviceMeasurement, numbers: dict[str, np.ndarray]) -> CloudMeasurement | MeasurementError:
    windows = {name: numbers[f"window/{name}"].tolist() for name in one.windows}
    try:
        if not numbers["finite"][0]:
            refuse(Cloud(one.before), Cloud(one.after))
        for name, (_, _, finite) in windows.items():
            if not finite:
                refuse(as_cloud(one.windows[name], one.after.device))
        if numbers["missed"][0]:
            return _thoroughly(one)
        if not numbers["sound"][0]:
            refuse(Cloud(one.after))
    except MeasurementError as error:
        return error
    return CloudMeasurement(
        n=one.after.shape[0],
        d=one.after.shape[1],
        distortion=Distortion.of(numbers["step"].tolist(), numbers["places"].tolist()),
        windows={name: (lower, upper) for name, (lower, upper, _) in windows.items()},
        deaths=numbers["deaths"].astype(np.float64),
        edges=numbers["edges"].astype(np.int64).reshape(-1, 2),
        diameter=float(numbers["diameter"][0]),
        degeneracy=_degeneracy(numbers["counts"], one.tolerances),
        effective_rank=float(numbers["rank"][0]),
        rounding=float(numbers["rounding"][0]) if "rounding" in numbers else None,
    )


def _thoroughly(one: DeviceMeasurement) -> CloudMeasurement | MeasurementError:
    vanishing, twin = one.tolerances
    again = measure(
        one.before, one.after, windows=one.windows, vanishing_tolerance=vanishing, twin_tolerance=twin, thorough=True,
        halve="rounding" in one.numbers,
    )  # fmt: skip
    return collect([again])[0]


def _degeneracy(found: np.ndarray, tolerances: tuple[float, float]) -> Degeneracy:
    vanishing, twins, unresolved = (int(few) for few in found)
    return Degeneracy(vanishing, twins, unresolved, *tolerances)
