"""The neuron clouds of a run: each group's points around a measured step, its homology, and what is kept of earlier ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoopt.config import TopoConfig
from topoopt.errors import MeasurementError
from topoopt.geometry import Cloud, CloudMeasurement, DeviceMeasurement, StoredCloud, collect, measure
from topoopt.homology import (
    Finished,
    HomologyWorker,
    Persistence,
    Watch,
    largest_loop,
    log_persistence,
    total_persistence,
)
from topoopt.homology.worker import DROPPED, FORKED, GIVEN_UP
from topoopt.measurement import GroupMeasurement
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.faults import Faults

FINISH_SECONDS = 60.0
"""How long the end of a run, or a policy that looks, waits for homology that is on its way."""
NO_FAULT = (GIVEN_UP, FORKED, DROPPED)
"""How the errors of jobs begin that nothing went wrong with: there was no time for them."""
NOT_KEPT = (math.nan, math.nan)
"""Distortion since a cloud that was not kept."""


@dataclass
class _Reference:
    """The cloud that a group's diagrams above degree 0 belong to, and how far their certificate reaches."""

    cloud: StoredCloud
    step: int
    diagrams: tuple[np.ndarray, ...]
    covering_radius: float
    watch: Watch
    notes: tuple[str, ...]


class Clouds:
    """Measures the groups around a step; a group that fails is skipped by name and the others go on.

    Between steps nothing is kept of them unless `TopoConfig.keep` says so: "host" and "device" keep the first and the last
    measured cloud of each group, and the one its diagrams belong to, at half the size where that is exact enough.
    """

    def __init__(self, config: TopoConfig, faults: Faults) -> None:
        self._config, self._faults = config, faults
        self._before: dict[str, Cloud] = {}
        self._first: dict[str, StoredCloud] = {}
        self._last: dict[str, StoredCloud] = {}
        self._references: dict[str, _Reference] = {}
        self._asked: dict[tuple[str, int], tuple[GroupMeasurement, StoredCloud | None]] = {}
        self._failed: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._worker: HomologyWorker | None = None
        self._done: list[tuple[str, int, GroupMeasurement]] = []
        self.patience = FINISH_SECONDS

    # -- around a step -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before(self, model: nn.Module, groups: list[NeuronGroup]) -> dict[str, str]:
        """Take every group's points before the step; returns what was skipped, with its reason."""
        self._before, skipped = {}, {}
        for group in groups:
            part = _part(group.name)
            if self._faults.off(part):
                skipped[group.name] = self._faults.off(part)
                continue
            try:
                self._before[group.name] = Cloud(group.points(model))
            except Exception as error:
                skipped[group.name] = self._faults.note(part, error)
        return skipped

    @torch.no_grad()
    def after(
        self, model: nn.Module, groups: list[NeuronGroup], step: int, *, stood: bool = False
    ) -> tuple[dict[str, GroupMeasurement], dict[str, str]]:
        """Compare with the points after the step (`stood`: there was none); what was measured, and what was skipped."""
        self._collect()
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
        windows: dict[str, Any] = {}
        for key, kept in (("first", self._first), ("last", self._last)):
            if name in kept:
                windows[key] = kept[name]
        if name in self._references:
            windows["homology"] = self._references[name].cloud
        keep = self._config.keep != "none"
        return measure(before, after, windows=windows, keep_distances=self._config.homology >= 1, halve=keep)

    def _finished(
        self, name: str, cloud: Cloud, device: DeviceMeasurement, found: CloudMeasurement, step: int
    ) -> GroupMeasurement:
        stored = self._store(cloud, found)
        step_window = (found.distortion.lower, found.distortion.upper)
        group = GroupMeasurement(
            n=found.n,
            d=found.d,
            gain=found.distortion.gain,
            certified=found.distortion.certified,
            distortion=step_window,
            distortion_window=found.windows.get("last", step_window if name not in self._last and stored else NOT_KEPT),
            distortion_total=found.windows.get(
                "first", step_window if name not in self._first and stored else NOT_KEPT
            ),
            contraction=found.distortion.contraction,
            gain_pair=found.distortion.gain_pair,
            merge_margin=found.merge_margin,
            diameter=found.diameter,
            vanishing=found.degeneracy.vanishing,
            twins=found.degeneracy.twins,
            unresolved_twins=found.degeneracy.unresolved_twins,
            vanishing_tolerance=found.degeneracy.vanishing_tolerance,
            twin_tolerance=found.degeneracy.twin_tolerance,
            effective_rank=found.effective_rank,
            recomputed=False,
            diagrams=(found.h0,),
            total_persistence=(total_persistence(found.h0),),
            diagrams_step=step,
            covering_radius=0.0,
            resolution=math.nan,
            notes=(self._failed.pop(name),) if name in self._failed else (),
        )
        group = self._homology(name, cloud, device.distances, found, group, step, stored)
        if stored is not None:
            self._first.setdefault(name, stored)
            self._last[name] = stored
        return group

    def _store(self, cloud: Cloud, found: CloudMeasurement) -> StoredCloud | None:
        if self._config.keep == "none":
            return None
        device = cloud.points.device if self._config.keep == "device" else torch.device("cpu")
        margin = found.merge_margin if math.isfinite(found.merge_margin) else 0.0
        return StoredCloud.of(cloud, margin=margin, device=device, rounding=found.rounding)

    # -- homology above degree 0 -------------------------------------------------------------------------------------

    def _homology(
        self,
        name: str,
        cloud: Cloud,
        distances: Tensor | None,
        found: CloudMeasurement,
        group: GroupMeasurement,
        step: int,
        stored: StoredCloud | None,
    ) -> GroupMeasurement:
        """Diagrams that are certified unchanged, or a request for new ones."""
        if self._config.homology < 1 or found.n < 3:
            return group
        if self._faults.off("homology"):
            return replace(group, notes=(*group.notes, f"homology above degree 0 is {self._faults.off('homology')}"))
        reference = self._references.get(name)
        if reference is not None and "homology" in found.windows:
            reference.watch = reference.watch.observe(*found.windows["homology"])
            if not reference.watch.stale:
                self._counts["homology_certified"] += 1
                return _with_diagrams(
                    group, (group.diagrams[0], *reference.diagrams[1:]), reference.step, reference.covering_radius,
                    reference.watch.resolution, reference.notes,
                )  # fmt: skip
        if any(key[0] == name for key in self._asked):
            return replace(
                group, notes=(*group.notes, "homology of an earlier step is still on its way: none was asked for")
            )
        try:
            self._start().submit(
                name, step, distances if distances is not None else cloud.distances, deaths=found.deaths, trusted=True
            )
        except Exception as error:
            return replace(group, notes=(*group.notes, f"homology: {self._faults.note('homology', error)}"))
        self._counts["homology_computed"] += 1
        group = replace(group, recomputed=True, pending=True)
        self._asked[name, step] = (group, stored)
        return group

    def _start(self) -> HomologyWorker:
        if self._worker is None:
            self._worker = HomologyWorker(degree=self._config.homology, max_points=self._config.max_points)
        return self._worker

    def arrived(self, *, wait: bool = False) -> dict[int, dict[str, GroupMeasurement]]:
        """Step -> groups of that step's measurement which homology has completed since the last call."""
        self._collect(wait=wait)
        done, self._done = self._done, []
        steps: dict[int, dict[str, GroupMeasurement]] = {}
        for name, step, group in done:
            steps.setdefault(step, {})[name] = group
        return steps

    def _collect(self, *, wait: bool = False) -> None:
        if self._worker is not None:
            for finished in self._worker.collect(wait=wait, timeout=self.patience if wait else None):
                self._take(finished)

    def _take(self, finished: Finished) -> None:
        asked = self._asked.pop((finished.group, finished.step), None)
        if asked is None:
            return
        group, stored = asked
        try:
            if finished.persistence is None:
                group = self._without(group, finished, finished.error)
                if not finished.error.startswith(NO_FAULT):
                    self._faults.note("homology", MeasurementError(finished.error), said=True)
            else:
                group = self._completed(group, finished, finished.persistence, stored)
                self._faults.went_well("homology")
        except Exception as error:
            group = self._without(group, finished, self._faults.note("homology", error))
        self._done.append((finished.group, finished.step, group))

    def _completed(
        self, group: GroupMeasurement, finished: Finished, result: Persistence, stored: StoredCloud | None
    ) -> GroupMeasurement:
        diagrams, notes, radius = tuple(result.diagrams), tuple(result.notes), result.covering_radius
        watch = Watch.of(diagrams)
        completed = _with_diagrams(group, diagrams, finished.step, radius, watch.resolution, notes)
        if stored is not None:
            self._references[finished.group] = _Reference(stored, finished.step, diagrams, radius, watch, notes)
        return completed

    def _without(self, group: GroupMeasurement, finished: Finished, why: str) -> GroupMeasurement:
        self._counts["homology_failed"] += 1
        note = f"homology of step {finished.step} failed: {why}"
        self._failed[finished.group] = note
        return replace(group, pending=False, notes=(*group.notes, note))

    # -- the end, and checkpoints ------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """Stop the worker and let go of everything; returns what was still on its way, by name."""
        given_up: list[str] = []
        if self._worker is not None:
            for finished in self._worker.close():
                if finished.persistence is None:
                    given_up.append(f"homology of {finished.group} at step {finished.step}: {finished.error}")
                self._take(finished)
            self._counts["homology_restarts"] += self._worker.restarts
            self._worker = None
        given_up += [f"homology of {name} at step {step}" for name, step in self._asked]
        self.forget()
        return given_up

    def forget(self) -> None:
        """Let go of every cloud."""
        for held in (self._before, self._first, self._last, self._references, self._asked, self._failed):
            held.clear()

    def counts(self) -> Mapping[str, int]:
        """Running totals: computed, certified unchanged, failed, worker restarts."""
        if self._config.homology < 1:
            return {}
        restarts = self._counts["homology_restarts"] + (self._worker.restarts if self._worker else 0)
        return {**self._counts, "homology_restarts": restarts}


def _part(name: str) -> str:
    """What faults in a group's geometry are counted under: one broken group does not cost the others."""
    return f"geometry of {name}"


def _with_diagrams(
    group: GroupMeasurement,
    diagrams: tuple[np.ndarray, ...],
    step: int,
    covering_radius: float,
    resolution: float,
    notes: tuple[str, ...],
) -> GroupMeasurement:
    diagrams = (group.diagrams[0], *diagrams[1:])
    loops = diagrams[1] if len(diagrams) > 1 else np.zeros((0, 2))
    longest = largest_loop(loops)
    return replace(
        group,
        diagrams=diagrams,
        diagrams_step=step,
        covering_radius=covering_radius,
        resolution=resolution,
        total_persistence=tuple(total_persistence(d) for d in diagrams),
        largest_loop=longest / group.diameter if group.diameter > 0 else math.nan,
        log_persistence=log_persistence(loops),
        pending=False,
        notes=(*group.notes, *notes),
    )
