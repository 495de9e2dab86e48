"""One measurement: before the step what needs the weights as they were, after it what the step did to the neurons."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt import critical
from topoopt.config import TopoConfig
from topoopt.errors import NotDefinedError
from topoopt.measurement import Decision, GroupMeasurement, Measurement, Phase, SpectralReading
from topoopt.neurons import NeuronGroup
from topoopt.optimizer import distributed
from topoopt.optimizer.capture import InputCapture
from topoopt.optimizer.clouds import Clouds
from topoopt.optimizer.discovering import Found, find_groups
from topoopt.optimizer.faults import Faults
from topoopt.optimizer.rate import read_rates
from topoopt.optimizer.spectral import Spectral

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Before:
    """What was seen before the step of a measurement under way."""

    rates: tuple[float, ...]
    spectral: SpectralReading
    skipped: Mapping[str, str]
    seconds: float


class Observer:
    """Knows the run's model and optimizer and how to measure them; a part that fails is left out by name."""

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        config: TopoConfig,
        faults: Faults,
        groups: list[NeuronGroup] | None,
    ) -> None:
        self.base, self.model, self.config = base, model, config
        self.loss: Callable[[], Any] | None = None
        self.example_inputs: Inputs | None = None
        self.setup_seconds = 0.0
        self._faults = faults
        self._given = groups
        self._found: Found | None = None
        self._capture = InputCapture(model)
        self._spectral = Spectral(base, config)
        self._clouds = Clouds(config, faults)
        self._phase = Phase.UNKNOWN

    @property
    def groups(self) -> list[NeuronGroup]:
        """The groups that are measured; empty until they have been found."""
        return [] if self._found is None else self._found.groups

    @property
    def has_spectral(self) -> bool:
        """Whether r can be read before a step."""
        return self.loss is not None and self.config.estimator != "pairwise"

    # -- before the step ---------------------------------------------------------------------------------------------

    def before(self, *, closure_given: bool) -> Before:
        """Measure what must be seen before the step: r of the coming step, and where the neurons stand."""
        self.find_groups()
        began = time.perf_counter()
        found = {} if self._found is None else self._found.skipped
        spectral = self.glance(closure_given=closure_given, groups=self.groups)
        missing = {"spectral": spectral.reason} if spectral.reason else {}
        clouds = self._clouds.before(self.model, self.groups)
        rates = read_rates(self.base.param_groups)
        return Before(rates, spectral, {**found, **missing, **clouds}, time.perf_counter() - began)

    def glance(self, *, closure_given: bool, groups: list[NeuronGroup] | None = None) -> SpectralReading:
        """Read r of the coming step alone: what steering needs between measurements."""
        # A fused optimizer unscales its gradients inside the step: what lies in .grad is larger by the scaler's factor.
        foreign = closure_given or getattr(self.base, "grad_scale", None) is not None
        try:
            with distributed.together():
                return self._spectral.read(self.loss, self.model, groups, closure_given=foreign)
        except NotDefinedError as error:
            return SpectralReading(reason=str(error))
        except Exception as error:
            return SpectralReading(reason=self._faults.note("spectral", error))

    def find_groups(self) -> None:
        """Discover once, as soon as a forward has been seen; the time is booked as set-up, not as measuring."""
        if self._found is not None and self._found.final:
            return
        began = time.perf_counter()
        inputs = self.example_inputs or self._capture.take()
        try:
            self._found = find_groups(self.model, self.base, self.config, self._given, inputs)
        except Exception as error:
            self._found = Found.failed(self._faults.note("discovery", error), final=inputs is not None)
        self.setup_seconds += time.perf_counter() - began

    # -- after it ----------------------------------------------------------------------------------------------------

    def after(
        self,
        before: Before,
        *,
        step: int,
        scale: float,
        decision: Decision,
        counts: Mapping[str, int],
        wait: bool = False,
    ) -> Measurement:
        """Compare the neurons with where they stood, and put everything together.

        `scale` is the factor at which the step was taken: r at the user's own rate times it is r of the step. The time
        that it all took, `seconds` and `share`, is the caller's to fill in.
        """
        estimate = before.spectral
        groups, skipped = self._clouds.after(self.model, self.groups, step, estimate.group, wait=wait)
        r_pair = max((group.gain for group in groups.values()), default=math.nan)
        verdict = critical.assess(
            r_spec=estimate.r * scale,
            r_pair=r_pair,
            edge=2.0 if estimate.edge is None else estimate.edge,
            lr=[lr * scale for lr in before.rates],
            estimator=self.config.estimator,
            previous=self._phase,
        )
        self._phase = verdict.phase
        coverage = self._found.coverage if self._found else ()
        scaled = {key: getattr(estimate, key) * scale for key in ("r", "low", "high", "field")}
        return Measurement(
            step=step,
            lr=before.rates,
            lr_scale=scale,
            spectral=replace(estimate, step=step, lr=before.rates, scale=scale, **scaled),
            assessment=verdict,
            groups=groups,
            decision=decision,
            skipped={**before.skipped, **skipped, **verdict.skipped},
            notes=(*verdict.notes, *estimate.notes, *coverage),
            counts={**counts, **self._faults.totals(), **self._clouds.counts()},
        )

    def finish(self, last: Measurement | None) -> dict[str, GroupMeasurement]:
        """Stop watching; return the groups of `last` that late homology completes."""
        self._capture.close()
        return self._clouds.finish({} if last is None else last.groups)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and tensors."""
        return {
            "phase": self._phase.value,
            "spectral": self._spectral.state_dict(),
            "clouds": self._clouds.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self._phase = Phase(state["phase"])
        self._spectral.load_state_dict(state["spectral"])
        self._clouds.load_state_dict(state["clouds"])
