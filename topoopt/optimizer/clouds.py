"""The neuron clouds of a run: each group's points before and after a measured step, and what is remembered of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoopt.config import TopoConfig
from topoopt.errors import MeasurementError
from topoopt.geometry import compare, degeneracy, distances, ratios
from topoopt.homology.h0 import spanning_tree
from topoopt.measurement import GroupMeasurement
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.faults import Faults
from topoopt.optimizer.topology import Topology


@dataclass
class _Cloud:
    """What is remembered of one group: the points at the first measurement, at the last, and its own proximity."""

    first: Tensor
    last: Tensor
    proximity: float | None = None
    proximity_step: int = -1


class Clouds:
    """Measures the groups around a step; a group that fails is skipped by name and the others go on."""

    def __init__(self, config: TopoConfig, faults: Faults) -> None:
        self._faults = faults
        self._clouds: dict[str, _Cloud] = {}
        self._before: dict[str, Tensor] = {}
        self._topology = Topology(config)

    @torch.no_grad()
    def before(self, model: nn.Module, groups: list[NeuronGroup]) -> dict[str, str]:
        """Take every group's points before the step; returns what was skipped, with its reason."""
        self._before, skipped = {}, {}
        for group in groups:
            try:
                self._before[group.name] = _finite(group.points(model))
            except Exception as error:
                skipped[group.name] = self._faults.note("geometry", error)
        return skipped

    @torch.no_grad()
    def after(
        self,
        model: nn.Module,
        groups: list[NeuronGroup],
        step: int,
        proximity: tuple[str, float] | None,
        *,
        wait: bool = False,
    ) -> tuple[dict[str, GroupMeasurement], dict[str, str]]:
        """Compare with the points after the step; returns the groups' measurements and what was skipped."""
        measured: dict[str, GroupMeasurement] = {}
        skipped: dict[str, str] = {}
        for group in groups:
            before = self._before.pop(group.name, None)
            if before is None:
                continue  # skipped before the step, with its reason
            try:
                points = _finite(group.points(model))
                cloud = self._clouds.setdefault(group.name, _Cloud(first=before, last=before))
                cloud.first, cloud.last = cloud.first.to(points.device), cloud.last.to(points.device)  # after a resume
                if proximity is not None and proximity[0] == group.name:
                    cloud.proximity, cloud.proximity_step = proximity[1], step
                measured[group.name] = self._measure(group, cloud, before, points, step)
                cloud.last = points
            except Exception as error:
                skipped[group.name] = self._faults.note("geometry", error)
        return self._topology.complete(measured, wait=wait), skipped

    def _measure(
        self, group: NeuronGroup, cloud: _Cloud, before: Tensor, points: Tensor, step: int
    ) -> GroupMeasurement:
        moved = compare(before, points)
        d = distances(points)
        tree = spanning_tree(d, points=points)
        weak = degeneracy(points, d)
        deaths = tree.deaths.double().cpu().numpy()
        requested = self._topology.look(group.name, step, points, d)
        return GroupMeasurement(
            n=points.shape[0],
            d=points.shape[1],
            gain=moved.gain,
            certified=moved.certified,
            distortion=(moved.lower, moved.upper),
            distortion_window=(moved.lower, moved.upper)
            if cloud.last is before
            else ratios(cloud.last, points, distances=d),
            distortion_total=(moved.lower, moved.upper)
            if cloud.first is before
            else ratios(cloud.first, points, distances=d),
            contraction=moved.contraction,
            gain_pair=moved.gain_pair,
            merge_margin=float(deaths[0]) if len(deaths) else math.inf,
            diameter=float(d.max()),
            vanishing=weak.vanishing,
            twins=weak.twins,
            unresolved_twins=weak.unresolved_twins,
            vanishing_tolerance=weak.vanishing_tolerance,
            twin_tolerance=weak.twin_tolerance,
            proximity=cloud.proximity,
            proximity_step=cloud.proximity_step,
            recomputed=requested,
            diagrams=(_h0_diagram(deaths),),
            diagrams_step=step,
            covering_radius=0.0,
            resolution=math.nan,
        )

    def finish(self, groups: Mapping[str, GroupMeasurement]) -> dict[str, GroupMeasurement]:
        """Wait for late homology and return those of `groups` that it completes; then stop the worker."""
        return self._topology.finish(dict(groups))

    def counts(self) -> dict[str, int]:
        """Running totals of the homology worker."""
        return self._topology.counts()

    def state_dict(self) -> dict[str, Any]:
        """The clouds that windows are measured against, and the reference diagrams."""
        clouds = {
            name: {
                "first": cloud.first,
                "last": cloud.last,
                "proximity": cloud.proximity,
                "proximity_step": cloud.proximity_step,
            }
            for name, cloud in self._clouds.items()
        }
        return {"clouds": clouds, "topology": self._topology.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._clouds = {name: _Cloud(**cloud) for name, cloud in state["clouds"].items()}
        self._topology.load_state_dict(state["topology"])


def _finite(points: Tensor) -> Tensor:
    """Return the points, or raise naming the neurons that are not finite (one host read a measurement)."""
    bad = ~torch.isfinite(points).all(dim=1)
    if bool(bad.any()):
        named = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, named[:8])) + (", ..." if len(named) > 8 else "")
        raise MeasurementError(
            f"{len(named)} of {len(points)} neurons have NaN or infinite weights (neurons {shown}): the run has "
            "diverged, or an overflow was applied; lower the learning rate"
        )
    return points


def _h0_diagram(deaths: np.ndarray) -> np.ndarray:
    """Births 0, deaths the spanning tree's edges, and the one class that never dies: (n, 2)."""
    return np.column_stack([np.zeros(len(deaths) + 1), np.append(deaths, np.inf)])
