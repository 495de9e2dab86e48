"""The neurons of a run: found, compared around a measured step, and completed by homology that comes later."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.measurement import GroupMeasurement, Measurement, SpectralReading
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.capture import Capture
from topoopt.optimizer.clouds import Clouds
from topoopt.optimizer.faults import Faults
from topoopt.optimizer.groups import Found, Groups
from topoopt.parallel import Ranks

AWAITED = 8
"""Measurements that wait for their homology."""
IN_PART = "this optimizer moves {:.0%} of the group's weights: what the others do to them is not in this step"


@dataclass(frozen=True)
class Compared:
    """What a step did to the neurons."""

    groups: Mapping[str, GroupMeasurement]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Neurons:
    """Measures the neurons of one model.

    Args:
        config: what is asked for.
        given: groups to measure instead of those that are found.
        outer: name of a wrapper that acts after the update rule's step, if there is one.
        faults: where what fails is noted.
        ranks: the processes that train the model together.
    """

    def __init__(
        self, config: TopoConfig, given: list[NeuronGroup] | None, outer: str, faults: Faults, ranks: Ranks
    ) -> None:
        self.groups = Groups(config, given, outer)
        self.clouds = Clouds(config, faults, ranks)
        self.setup_seconds = 0.0
        self._faults = faults
        self._skipped: dict[str, str] = {}
        self._awaited: dict[int, Measurement] = {}

    def find(self, rule: Optimizer, capture: Capture) -> None:
        """Find the neurons, or see that they are still the model's; the time is set-up, no part of measuring."""
        if self._faults.off("discovery"):
            return
        began = time.perf_counter()
        try:
            known = self.groups.look(capture.model, rule, capture.inputs)
            if known and self.groups.complete:
                capture.know_inputs()
            elif not known and capture.inputs is None:
                capture.look_at_inputs()  # the model has become another one: its next forward is looked at
        except Exception as error:
            self.groups.found = Found([], {"groups": self._faults.note("discovery", error)})
        self.setup_seconds += time.perf_counter() - began

    def before(self, model: nn.Module) -> None:
        """Take the points before a step."""
        self._skipped = self.clouds.before(model, self.groups.all)

    def after(self, model: nn.Module, reading: SpectralReading, step: int, *, stood: bool) -> Compared:
        """Compare them with those after it (`stood`: there was none)."""
        found = self.groups.found or Found([])
        measured, left_out = self.clouds.after(model, found.groups, step, stood=stood)
        groups = {name: _told_of(group, name, found, reading) for name, group in measured.items()}
        return Compared(groups, {**found.skipped, **self._skipped, **left_out}, found.notes)

    # -- homology that comes later -----------------------------------------------------------------------------------

    def await_homology(self, measurement: Measurement) -> None:
        """Keep a measurement whose homology is on its way; of too many the oldest are let go."""
        if any(group.pending for group in measurement.groups.values()):
            self._awaited[measurement.step] = measurement
            while len(self._awaited) > AWAITED:
                self._awaited.pop(next(iter(self._awaited)))

    def completed(self, *, wait: bool = False) -> dict[int, Measurement]:
        """Step -> a measurement that homology has completed, in part or whole, since the last call; in their order."""
        found: dict[int, Measurement] = {}
        for step, arrived in sorted(self.clouds.diagrams.arrived(wait=wait).items()):
            awaited = self._awaited.pop(step, None)
            if awaited is None:
                continue
            late = {name: homology.into(awaited.groups[name]) for name, homology in arrived.items()}
            found[step] = replace(awaited, groups={**awaited.groups, **late})
            self.await_homology(found[step])
        return found

    def close(self) -> list[str]:
        """Let go of everything; returns what was still on its way, by name."""
        return self.clouds.close()


def _told_of(group: GroupMeasurement, name: str, found: Found, reading: SpectralReading) -> GroupMeasurement:
    """A group with what the optimizer and the reading have to say of it."""
    share = found.moved_share.get(name, 1.0)
    group = replace(group, moved_share=share)
    if share < 1:
        group = replace(group, notes=(*group.notes, IN_PART.format(share)), certified=False)
    if reading.group is not None and reading.group[0] == name:
        group = replace(group, proximity=reading.group[1], proximity_step=reading.step)
    return group
