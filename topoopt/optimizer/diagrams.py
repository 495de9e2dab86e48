"""A group's persistence diagrams above degree 0: certified unchanged from earlier ones, or asked anew of a process of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from topoopt.config import TopoConfig
from topoopt.errors import MeasurementError
from topoopt.geometry import Cloud, CloudMeasurement, StoredCloud
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
from topoopt.optimizer.faults import Faults

FINISH_SECONDS = 60.0
"""How long the end of a run, or a policy that looks, waits for homology that is on its way."""
NO_FAULT = (GIVEN_UP, FORKED, DROPPED)
"""How the errors of jobs begin that nothing went wrong with: there was no time for them."""
ON_ITS_WAY = "homology of an earlier step is still on its way: none was asked for"


@dataclass(frozen=True)
class Homology:
    """What homology has found of a group's neurons after a step, or, without diagrams, a note of why it has not."""

    step: int
    notes: tuple[str, ...]
    diagrams: tuple[np.ndarray, ...] = ()
    covering_radius: float = 0.0
    resolution: float = math.nan

    def into(self, group: GroupMeasurement) -> GroupMeasurement:
        """The group with these diagrams above its own of degree 0."""
        notes = (*group.notes, *(note for note in self.notes if note not in group.notes))
        if not self.diagrams:
            return replace(group, pending=False, notes=notes)
        diagrams = (group.diagrams[0], *self.diagrams[1:])
        loops = diagrams[1] if len(diagrams) > 1 else np.zeros((0, 2))
        return replace(
            group,
            diagrams=diagrams,
            diagrams_step=self.step,
            covering_radius=self.covering_radius,
            resolution=self.resolution,
            total_persistence=tuple(total_persistence(d) for d in diagrams),
            largest_loop=largest_loop(loops) / group.diameter if group.diameter > 0 else math.nan,
            log_persistence=log_persistence(loops),
            pending=False,
            notes=notes,
        )


@dataclass
class _Reference:
    """The cloud that a group's diagrams belong to, and how far their certificate reaches."""

    cloud: StoredCloud
    found: Homology
    watch: Watch


class Diagrams:
    """The diagrams above degree 0 of a run's groups."""

    def __init__(self, config: TopoConfig, faults: Faults) -> None:
        self._config, self._faults = config, faults
        self.wanted = config.homology >= 1
        self._references: dict[str, _Reference] = {}
        self._asked: dict[tuple[str, int], StoredCloud | None] = {}
        self._failed: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._worker: HomologyWorker | None = None
        self._done: list[tuple[str, Homology]] = []
        self.patience = FINISH_SECONDS

    def cloud(self, name: str) -> StoredCloud | None:
        """The cloud that the group's latest diagrams belong to, where it is kept."""
        return self._references[name].cloud if name in self._references else None

    def of(
        self,
        name: str,
        group: GroupMeasurement,
        found: CloudMeasurement,
        distances: Tensor | None,
        cloud: Cloud,
        stored: StoredCloud | None,
    ) -> GroupMeasurement:
        """The group with diagrams that are certified unchanged, or with a request for new ones."""
        if name in self._failed:
            group = _noted(group, self._failed.pop(name))
        if not self.wanted or found.n < 3:
            return group
        if off := self._faults.off("homology"):
            return _noted(group, f"homology above degree 0 is {off}")
        known = self._certified(name, found)
        if known is not None:
            return known.into(group)
        if any(asked == name for asked, _ in self._asked):
            return _noted(group, ON_ITS_WAY)
        try:
            points = distances if distances is not None else cloud.distances
            self._started().submit(name, group.diagrams_step, points, deaths=found.deaths, trusted=True)
        except Exception as error:
            return _noted(group, f"homology: {self._faults.note('homology', error)}")
        self._counts["homology_computed"] += 1
        self._asked[name, group.diagrams_step] = stored
        return replace(group, recomputed=True, pending=True)

    def _certified(self, name: str, found: CloudMeasurement) -> Homology | None:
        reference = self._references.get(name)
        if reference is None or "homology" not in found.windows:
            return None
        reference.watch = reference.watch.observe(*found.windows["homology"])
        if reference.watch.stale:
            return None
        self._counts["homology_certified"] += 1
        return replace(reference.found, resolution=reference.watch.resolution)

    def _started(self) -> HomologyWorker:
        if self._worker is None:
            self._worker = HomologyWorker(degree=self._config.homology, max_points=self._config.max_points)
        return self._worker

    # -- what arrives ------------------------------------------------------------------------------------------------

    def arrived(self, *, wait: bool = False) -> dict[int, dict[str, Homology]]:
        """Step -> group -> what has been found of it since the last call."""
        self.collect(wait=wait)
        done, self._done = self._done, []
        steps: dict[int, dict[str, Homology]] = {}
        for name, found in done:
            steps.setdefault(found.step, {})[name] = found
        return steps

    def collect(self, *, wait: bool = False) -> None:
        """Take in what is done; the next measurements are held against it."""
        if self._worker is not None:
            for finished in self._worker.collect(wait=wait, timeout=self.patience if wait else None):
                self._take(finished)

    def _take(self, finished: Finished) -> None:
        name, key = finished.group, (finished.group, finished.step)
        if key not in self._asked:
            return
        stored, result = self._asked.pop(key), finished.persistence
        try:
            found = self._unfound(finished) if result is None else self._found(finished, result, stored)
        except Exception as error:  # an answer that is no diagram
            found = self._failure(finished, self._faults.note("homology", error))
        self._done.append((name, found))

    def _found(self, finished: Finished, result: Persistence, stored: StoredCloud | None) -> Homology:
        diagrams = tuple(result.diagrams)
        watch = Watch.of(diagrams)
        found = Homology(finished.step, tuple(result.notes), diagrams, result.covering_radius, watch.resolution)
        for diagram in diagrams:
            total_persistence(diagram)  # refuses what is none here, where it costs this group alone
        if stored is not None:
            self._references[finished.group] = _Reference(stored, found, watch)
        self._faults.went_well("homology")
        return found

    def _unfound(self, finished: Finished) -> Homology:
        if not finished.error.startswith(NO_FAULT):  # the worker has logged it
            self._faults.note("homology", MeasurementError(finished.error), said=True)
        return self._failure(finished, finished.error)

    def _failure(self, finished: Finished, why: str) -> Homology:
        self._counts["homology_failed"] += 1
        self._failed[finished.group] = f"homology of step {finished.step} failed: {why}"
        return Homology(finished.step, (self._failed[finished.group],))

    # -- the end -----------------------------------------------------------------------------------------------------

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
        for held in (self._references, self._asked, self._failed):
            held.clear()
        return given_up

    def counts(self) -> Mapping[str, int]:
        """Running totals: computed, certified unchanged, failed, worker restarts."""
        if not self.wanted:
            return {}
        restarts = self._counts["homology_restarts"] + (self._worker.restarts if self._worker else 0)
        return {**self._counts, "homology_restarts": restarts}


def _noted(group: GroupMeasurement, note: str) -> GroupMeasurement:
    return replace(group, notes=(*group.notes, note))
