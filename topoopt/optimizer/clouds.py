"""The neuron clouds of a run: each group's points around a measured step, and what is kept of earlier ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from topoopt.config import TopoConfig
from topoopt.errors import MeasurementError
from topoopt.geometry import Cloud, CloudMeasurement, DeviceMeasurement, StoredCloud, collect, measure
from topoopt.homology import last_merges, total_persistence
from topoopt.measurement import GroupMeasurement, MergeTree
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.diagrams import Diagrams
from topoopt.optimizer.faults import Faults
from topoopt.parallel import Ranks
from topoopt.sharding import is_sharded

NOT_KEPT = (math.nan, math.nan)
"""Distortion since a cloud that was not kept."""
ELSEWHERE = "another rank could not gather this group's neurons; its log says why"


class Clouds:
    """Measures the groups around a step; a group that fails is skipped by name and the others go on.

    Between steps nothing is kept of them unless `TopoConfig.keep` says so: "host" and "device" keep the first and the last
    measured cloud of each group, and the one its diagrams belong to, at half the size where that is exact enough.
    """

    def __init__(self, config: TopoConfig, faults: Faults, ranks: Ranks) -> None:
        self._config, self._faults, self._ranks = config, faults, ranks
        self._before: dict[str, Cloud] = {}
        self._first: dict[str, StoredCloud] = {}
        self._last: dict[str, StoredCloud] = {}
        self.diagrams = Diagrams(config, faults)

    @torch.no_grad()
    def before(self, model: nn.Module, groups: list[NeuronGroup]) -> dict[str, str]:
        """Take every group's points before the step; returns what was skipped, with its reason."""
        self._before, skipped = {}, {}
        sharded = self._ranks.active and any(is_sharded(p) for p in model.parameters())
        if sharded and self._ranks.any([g.name for g in groups] != self._ranks.from_zero([g.name for g in groups])):
            return {group.name: ELSEWHERE for group in groups}
        anywhere = self._ranks.any_each if sharded else list
        off = anywhere([bool(self._faults.off(_part(group.name))) for group in groups])
        for group, out in zip(groups, off):
            part = _part(group.name)
            if out:
                skipped[group.name] = self._faults.off(part) or ELSEWHERE
                continue
            try:
                self._before[group.name] = Cloud(group.points(model))
            except Exception as error:
                skipped[group.name] = self._faults.note(part, error)
        for group, lost in zip(groups, anywhere([group.name not in self._before for group in groups])):
            if lost:  # gathering them after the step is for all ranks or for none
                self._before.pop(group.name, None)
                skipped.setdefault(group.name, ELSEWHERE)
        return skipped

    @torch.no_grad()
    def after(
        self, model: nn.Module, groups: list[NeuronGroup], step: int, *, stood: bool = False
    ) -> tuple[dict[str, GroupMeasurement], dict[str, str]]:
        """Compare with the points after the step (`stood`: there was none); what was measured, and what was skipped."""
        self.diagrams.collect()
        pending: list[tuple[str, Cloud, DeviceMeasurement]] = []
        skipped: dict[str, str] = {}
        for group in groups:
            before = self._before.pop(group.name, None)
            if before is None:
                continue  # skipped before the step, with its reason
            try:
                after = before if stood else Cloud(group.points(model))
                pending.append((group.name, after, self._measure(group.name, before, after)))
            except Exception as error:
                skipped[group.name] = self._faults.note(_part(group.name), error)
        measured: dict[str, GroupMeasurement] = {}
        for (name, cloud, device), result in zip(pending, collect(device for _, _, device in pending)):
            if isinstance(result, MeasurementError):
                skipped[name] = self._faults.note(_part(name), result, state=True)
                continue
            try:
                measured[name] = self._finished(name, cloud, device, result, step)
                self._faults.went_well(_part(name))
            except Exception as error:
                skipped[name] = self._faults.note(_part(name), error)
        return measured, skipped

    def _measure(self, name: str, before: Cloud, after: Cloud) -> DeviceMeasurement:
        kept = {"first": self._first.get(name), "last": self._last.get(name), "homology": self.diagrams.cloud(name)}
        windows: dict[str, Any] = {key: cloud for key, cloud in kept.items() if cloud is not None}
        keep = self._config.keep != "none"
        return measure(before, after, windows=windows, keep_distances=self.diagrams.wanted, halve=keep)

    def _finished(
        self, name: str, cloud: Cloud, device: DeviceMeasurement, found: CloudMeasurement, step: int
    ) -> GroupMeasurement:
        stored = self._store(cloud, found)
        since = {key: found.windows.get(key, NOT_KEPT) for key in ("first", "last")}
        if stored is not None:  # a first cloud: its window is the step
            lower, upper = found.distortion.lower, found.distortion.upper
            since |= {
                k: (lower, upper) for k, kept in (("first", self._first), ("last", self._last)) if name not in kept
            }
            self._first.setdefault(name, stored)
            self._last[name] = stored
        group = _of_step(found, since, step)
        return self.diagrams.of(name, group, found, device.distances, cloud, stored)

    def _store(self, cloud: Cloud, found: CloudMeasurement) -> StoredCloud | None:
        if self._config.keep == "none":
            return None
        device = cloud.points.device if self._config.keep == "device" else torch.device("cpu")
        margin = found.merge_margin if math.isfinite(found.merge_margin) else 0.0
        return StoredCloud.of(cloud, margin=margin, device=device, rounding=found.rounding)

    def close(self) -> list[str]:
        """Stop the worker and let go of every cloud; returns what was still on its way, by name."""
        unfinished = self.diagrams.close()
        for held in (self._before, self._first, self._last):
            held.clear()
        return unfinished


def _part(name: str) -> str:
    """What faults in a group's geometry are counted under: one broken group does not cost the others."""
    return f"geometry of {name}"


def _of_step(found: CloudMeasurement, since: dict[str, tuple[float, float]], step: int) -> GroupMeasurement:
    """What the clouds before and after a step say, with homology of degree 0."""
    return GroupMeasurement(
        n=found.n,
        d=found.d,
        gain=found.distortion.gain,
        certified=found.distortion.certified,
        distortion=(found.distortion.lower, found.distortion.upper),
        distortion_window=since["last"],
        distortion_total=since["first"],
        contraction=found.distortion.contraction,
        gain_pair=found.distortion.gain_pair,
        merge_margin=found.merge_margin,
        diameter=found.diameter,
        **vars(found.degeneracy),
        effective_rank=found.effective_rank,
        recomputed=False,
        diagrams=(found.h0,),
        total_persistence=(total_persistence(found.h0),),
        merge_tree=MergeTree(*last_merges(found.edges)),
        diagrams_step=step,
        covering_radius=0.0,
        resolution=math.nan,
    )
