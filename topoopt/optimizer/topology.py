"""Homology of the run's clouds above degree 0: recomputed only when its certificate is used up, off the thread."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topoopt.config import TopoConfig
from topoopt.geometry import distances as pairwise
from topoopt.geometry import ratios
from topoopt.homology import Finished, HomologyWorker, Persistence, Watch, total_persistence
from topoopt.measurement import GroupMeasurement

FINISH_SECONDS = 60.0
"""How long the end of a run waits for homology that is still on its way."""


@dataclass
class _Reference:
    """One group's reference: the points its diagrams belong to, and how far the certificate reaches from there."""

    points: Tensor
    step: int
    diagrams: tuple[np.ndarray, ...]
    covering_radius: float
    watch: Watch
    notes: tuple[str, ...] = ()


@dataclass
class Topology:
    """Asks the worker for homology when a group's certificate has run out, and files the answers."""

    config: TopoConfig
    _references: dict[str, _Reference] = field(default_factory=dict)
    _requested: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _worker: HomologyWorker | None = None

    @property
    def _active(self) -> bool:
        return self.config.homology >= 1

    def look(self, name: str, step: int, points: Tensor, distances: Tensor) -> bool:
        """Hold the group's certificate against its points of now; ask for homology when it no longer covers them.

        Returns whether homology was requested at this step.
        """
        if not self._active or points.shape[0] < 3:
            return False
        self._collect(wait=False)
        if name in self._requested:
            return False
        reference = self._references.get(name)
        if reference is not None:
            reference.points = reference.points.to(points.device)  # after a resume they are where they were loaded
            reference.watch = reference.watch.observe(*ratios(reference.points, points, distances=distances))
            if not reference.watch.stale:
                self._counts["homology_certified"] += 1
                return False
        self._requested[name] = (step, points)
        self._counts["homology_computed"] += 1
        self._start().submit(name, step, distances)
        return True

    def _start(self) -> HomologyWorker:
        if self._worker is None:
            self._worker = HomologyWorker(degree=self.config.homology, max_points=self.config.max_points)
        return self._worker

    def _collect(self, *, wait: bool, timeout: float | None = None) -> set[str]:
        """File every result that has arrived; returns the names of the groups that got one."""
        if self._worker is None:
            return set()
        return {done.group for done in self._worker.collect(wait=wait, timeout=timeout) if self._file(done)}

    def _file(self, done: Finished) -> bool:
        step, points = self._requested.pop(done.group, (done.step, None))
        if done.persistence is None or points is None:
            self._counts["homology_failed"] += 1
            self._failed[done.group] = f"homology of step {done.step} failed: {done.error}"
            return False
        result: Persistence = done.persistence
        self._failed.pop(done.group, None)
        diagrams = tuple(result.diagrams)
        self._references[done.group] = _Reference(
            points, step, diagrams, result.covering_radius, Watch.of(diagrams), tuple(result.notes)
        )
        return True

    def complete(self, groups: dict[str, GroupMeasurement], *, wait: bool) -> dict[str, GroupMeasurement]:
        """Fill in what is known of the groups' homology; with `wait`, what was just requested too."""
        self._collect(wait=wait or self.config.wait, timeout=FINISH_SECONDS)
        return {name: self._fill(name, group) for name, group in groups.items()}

    def _fill(self, name: str, group: GroupMeasurement) -> GroupMeasurement:
        reference = self._references.get(name)
        notes = (self._failed[name],) if name in self._failed else ()
        diagrams = group.diagrams[:1] if reference is None else (*group.diagrams[:1], *reference.diagrams[1:])
        changes: dict[str, Any] = {
            "diagrams": diagrams,
            "total_persistence": tuple(total_persistence(diagram) for diagram in diagrams),
            "notes": (*group.notes, *notes),
        }
        if reference is not None:
            changes |= {
                "diagrams_step": reference.step,
                "covering_radius": reference.covering_radius,
                "resolution": reference.watch.resolution,
                "notes": (*group.notes, *reference.notes, *notes),
            }
        return replace(group, **changes)

    def finish(self, groups: dict[str, GroupMeasurement]) -> dict[str, GroupMeasurement]:
        """Wait (bounded) for what is on its way, return the groups that it completes, and stop the worker."""
        late = self._collect(wait=True, timeout=FINISH_SECONDS)
        if self._worker is not None:
            self._worker.close()
            self._counts["homology_restarts"] += self._worker.restarts
            self._worker = None
        return {name: self._fill(name, group) for name, group in groups.items() if name in late}

    def counts(self) -> dict[str, int]:
        """Running totals: computed, certified unchanged, failed, worker restarts."""
        restarts = self._counts["homology_restarts"] + (self._worker.restarts if self._worker else 0)
        return {**self._counts, "homology_restarts": restarts} if self._active else {}

    def state_dict(self) -> dict[str, Any]:
        """References as tensors and numbers, and what is on its way: a checkpoint does not wait for it."""
        self._collect(wait=self.config.wait, timeout=FINISH_SECONDS)
        references = {
            name: {
                "points": reference.points,
                "step": reference.step,
                "diagrams": [torch.from_numpy(np.ascontiguousarray(diagram)) for diagram in reference.diagrams],
                "covering_radius": reference.covering_radius,
                "window": list(reference.watch.window),
                "notes": list(reference.notes),
            }
            for name, reference in self._references.items()
        }
        requested = {name: {"step": step, "points": points} for name, (step, points) in self._requested.items()}
        return {"references": references, "requested": requested, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values; what was on its way is asked for again."""
        self._requested.clear()
        self._counts = Counter(state["counts"])
        for name, saved in state["references"].items():
            diagrams = tuple(diagram.cpu().numpy() for diagram in saved["diagrams"])
            lower, upper = saved["window"]
            self._references[name] = _Reference(
                saved["points"],
                int(saved["step"]),
                diagrams,
                float(saved["covering_radius"]),
                Watch.of(diagrams).observe(lower, upper),
                tuple(saved["notes"]),
            )
        for name, saved in state["requested"].items():
            self._requested[name] = int(saved["step"]), saved["points"]
            self._start().submit(name, int(saved["step"]), pairwise(saved["points"]))
