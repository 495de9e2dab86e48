"""What measures a run: the parts, and what they do together, a reading of r and a measurement of the neurons with it."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.curvature import Tape, recognise
from topoopt.measurement import Cost, Decision, Measurement, SpectralReading
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.attach import acts_after, rule_of
from topoopt.optimizer.cadence import Cadence, Due
from topoopt.optimizer.capture import Capture
from topoopt.optimizer.faults import Faults
from topoopt.optimizer.history import History
from topoopt.optimizer.neurons import Neurons
from topoopt.optimizer.rate import Rates, check_steerable
from topoopt.optimizer.reading import Reader
from topoopt.optimizer.state import described
from topoopt.optimizer.steering import Steering, needed
from topoopt.optimizer.weights import Certifier, Sample, Snapshot
from topoopt.parallel import Ranks


@dataclass
class Step:
    """The step that comes, or is under way."""

    due: Due = Due.NOTHING
    waits: str = ""
    """Why r is not read although it could be: the rule warms up, and the budget is saved for later."""
    reading: SpectralReading | None = None
    sample: Sample | None = None
    compares: bool = False
    """Whether the neurons' points before it have been taken, and those after it are to be held against them."""
    early: bool = False
    """Whether that was done by the first of a rule's two steps."""
    seconds: float = 0.0
    """Time that was spent on it."""
    watched: bool = False
    """Whether it is written down."""
    armed: float | None = None
    """When the step before it was over, where something steers."""


class Instruments:
    """The parts that belong to one optimizer and one model, and the step that is under way.

    Args:
        optimizer: as the user holds it.
        model: whose neurons are measured.
        config: settings.
        loss: a probe of the user's own.
        groups: neuron groups to measure instead of those that are found.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        config: TopoConfig,
        *,
        loss: Callable[[], Any] | None,
        groups: list[NeuronGroup] | None,
    ) -> None:
        rule = rule_of(optimizer)
        self._rule = weakref.ref(rule)
        self.config, self.loss, self.steers = config, loss, config.policy.steers
        declared = check_steerable(rule) if self.steers else ""
        self.faults, self.ranks = Faults(), Ranks(model)
        needs = needed(config.policy) if self.steers else None
        self.cadence = Cadence(config.every, config.largest_share, needs=needs)
        self.capture, self.reader = Capture(model, self.ranks), Reader(rule, config, self.ranks)
        outer = type(optimizer).__name__ if acts_after(optimizer) else ""
        self.neurons = Neurons(config, groups, outer, self.faults, self.ranks)
        self.history = History(described(rule, model, config), config.estimator, self.faults)
        tell = partial(self.history.sinks.tell, "decided")
        self.steering = Steering(
            config.policy, config.every, declared, snapshot=config.snapshot, losses=loss is None, on_change=tell
        )
        self.rate, self.snapshot = Rates(rule), Snapshot(config.snapshot)
        self.certifier = Certifier() if config.strict and self.steers else None
        self.steps, self.measured, self.lr_scale = 0, False, 1.0
        self.closed = False
        self.step = Step()

    @property
    def rule(self) -> Optimizer:
        """The optimizer that holds the update rule."""
        rule = self._rule()
        assert rule is not None
        return rule

    def find_groups(self) -> None:
        """Find the neurons where they are not known yet."""
        self.neurons.find(self.rule, self.capture)
        self.cadence.setup = self.neurons.setup_seconds

    def read(self, tape: Tape | None, rates: tuple[float, ...]) -> SpectralReading:
        """r of the step under way at the user's own rate, or why there is none."""
        off = self.faults.off("spectral")
        if self.ranks.any(bool(off)):
            return SpectralReading(step=self.steps, reason=f"reading r is {off or 'switched off on another rank'}")
        groups = self.neurons.groups.all if self.step.due is Due.MEASUREMENT else None
        foreign = getattr(self.rule, "grad_scale", None) is not None
        try:
            seen = self.reader.read(
                tape, self.loss, self.capture.model, groups, closure_given=foreign, numbers=self.rate.numbers
            )
            self.faults.went_well("spectral")
        except Exception as error:
            seen = SpectralReading(reason=self.faults.note("spectral", error))
        low = self.rate.warming(rates)  # also while the rule warms up: the peak may be past when that is over
        return replace(seen, step=self.steps, lr=rates, warming=seen.warming or low)

    def complete(self, *, stood: bool = False, wait: bool = False) -> Measurement:
        """Complete a measurement of the step under way (`stood`: of the weights as they are) and publish it."""
        began, step = time.perf_counter(), self.step
        reading = step.reading or self._unread()
        seen = self.neurons.after(self.capture.model, reading, self.steps, stood=stood)
        stands = self.history.stand(reading, max((group.gain for group in seen.groups.values()), default=math.nan))
        unread = {"spectral": reading.reason} if reading.reason else {}
        declared = (self.steering.declared,) if self.steering.declared else ()
        seconds = step.seconds + time.perf_counter() - began
        measurement = Measurement(
            step=self.steps,
            lr=self.rate.now(),
            lr_scale=self.lr_scale,
            spectral=reading,
            assessment=stands,
            groups=seen.groups,
            decision=self._decision(),
            cost=Cost(seconds, self.cadence.share_with(seconds), self.neurons.setup_seconds),
            skipped={**seen.skipped, **unread, **stands.skipped},
            notes=(*stands.notes, *reading.notes, *seen.notes, *declared),
            counts=self.counts(),
        )
        return self._publish(measurement, wait=wait or self.config.wait)

    def _unread(self) -> SpectralReading:
        """Stands for the reading of a step at which r was not read, with the reason."""
        rule, edge = recognise(self.rule)
        waits = self.step.waits
        reason = "r is read once the preconditioner is warm" if waits else "r was not read at this step"
        return SpectralReading(self.steps, edge=edge, lr=self.rate.now(), rule=rule, reason=reason, warming=waits)

    def _decision(self) -> Decision:
        decision = self.steering.decision
        return decision if self.certifier is None else self.certifier.explain(decision)

    def counts(self) -> dict[str, int]:
        """Running totals of what has happened."""
        done = {"stretched": self.cadence.stretched, "readings": self.cadence.readings}
        if self.certifier is not None:
            done["shortened_steps"] = self.certifier.shortened
        return {**done, **self.faults.totals(), **self.neurons.clouds.diagrams.counts()}

    def _publish(self, measurement: Measurement, *, wait: bool) -> Measurement:
        """Hand a measurement out, and those before it that homology has completed since."""
        self.neurons.await_homology(measurement)
        completed = self.neurons.completed(wait=wait)
        measurement = completed.pop(measurement.step, measurement)
        for late in completed.values():
            self.history.late(late)
        self.steering.remember(measurement)
        self.history.measured(measurement)
        return measurement
