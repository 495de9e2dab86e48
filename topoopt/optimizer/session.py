"""One run's measuring: before the step, after the step, and what is kept in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt import critical
from topoopt.config import TopoConfig
from topoopt.control import Reading
from topoopt.measurement import Decision, GroupMeasurement, Measurement, Phase
from topoopt.neurons import NeuronGroup
from topoopt.optimizer import distributed
from topoopt.optimizer.capture import InputCapture
from topoopt.optimizer.clouds import Clouds
from topoopt.optimizer.discovering import Found, find_groups
from topoopt.optimizer.faults import Faults
from topoopt.optimizer.pacing import Pacing
from topoopt.optimizer.rate import RateScaler, host_rates, read_rates
from topoopt.optimizer.spectral import Spectral, SpectralReading
from topoopt.optimizer.steering import Steering
from topoopt.optimizer.strict import Certifier

Sink = Callable[[Measurement], None]


@dataclass
class _Pending:
    """What was seen before the step of a measurement under way."""

    rates: tuple[float, ...]
    spectral: SpectralReading
    skipped: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class _Seen:
    """What a policy may know of the last measurement; plain numbers, so that it survives a checkpoint."""

    gain: float = math.nan
    gain_per_rate: float = math.nan
    vanishing: int = 0
    twins: int = 0
    total_persistence: float = math.nan

    @classmethod
    def of(cls, last: Measurement) -> _Seen:
        rate = max(last.lr, default=0.0) * last.lr_scale
        persistence = [
            sum(group.total_persistence[1:]) for group in last.groups.values() if group.total_persistence[1:]
        ]
        return cls(
            gain=last.r_pair,
            gain_per_rate=last.r_pair / rate if rate > 0 else math.nan,
            vanishing=sum(group.vanishing for group in last.groups.values()),
            twins=sum(group.twins for group in last.groups.values()),
            total_persistence=sum(persistence) if persistence else math.nan,
        )


class Session:
    """Measures around each step of `base` and steers it; never lets an exception out into the training loop."""

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        config: TopoConfig,
        *,
        loss: Callable[[], Any] | None,
        groups: list[NeuronGroup] | None,
    ) -> None:
        self.base, self.model, self.config, self.loss = base, model, config, loss
        self.total_steps: int | None = None
        self.example_inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.step = 0
        self.measured = False
        self.last: Measurement | None = None
        self.faults = Faults()
        self.pacing = Pacing(config.every, config.budget)
        self.steering = Steering(config.policy)
        self.rate = RateScaler()
        self.spectral = Spectral(base, config)
        self.clouds = Clouds(config, self.faults)
        self.certifier = Certifier() if config.strict and config.policy.steers else None
        self._given = groups
        self._found: Found | None = None
        self._capture = InputCapture(model)
        self._pending: _Pending | None = None
        self._sinks: list[Sink] = []
        self._scale = 1.0
        self._base_lr = math.nan
        self._phase = Phase.UNKNOWN
        self._seen = _Seen()

    # -- around a step --------------------------------------------------------------------------------------------------

    def before_step(self, closure_given: bool) -> None:
        """Pre-hook: measure what must be seen before the step, decide the factor, put it on."""
        self.measured, self._pending, self._scale = False, None, 1.0
        if self.rate.applied:  # the last step raised before its post-hook could run
            self.rate.restore()
            self.faults.counts["step_raised"] += 1
        self.pacing.start()
        try:
            if self._due():
                self._pending = self._observe_before(closure_given)
            if self.config.policy.steers:
                self._scale = self._factor()
                self.rate.apply(self.base.param_groups, self._scale)
                if self.certifier is not None:
                    self.certifier.before(self.model, self.groups)
        except Exception as error:  # a fault in steering: the user's own rate
            self._scale = 1.0
            self.rate.restore()
            self.steering.release(self.faults.note("steering", error))

    def after_step(self) -> None:
        """Post-hook: take the factor off, measure what the step did, tell the sinks."""
        self.rate.restore()
        pending, self._pending = self._pending, None
        try:
            if self.certifier is not None and self.config.policy.steers:
                self.certifier.after(self.model, self.groups)
            if pending is not None:
                began = time.perf_counter()
                measurement = self._observe_after(pending)
                seconds = pending.seconds + time.perf_counter() - began
                self.pacing.measured(self.step, seconds, self._interval())
                self._publish(replace(measurement, seconds=seconds, share=self.pacing.share))
                self.measured = True
        except Exception as error:
            self.faults.note("measuring", error)
            self.pacing.postpone(self.step, self._interval())
        self.step += 1

    @property
    def groups(self) -> list[NeuronGroup]:
        """The groups that are measured."""
        return [] if self._found is None else self._found.groups

    @property
    def lr_scale(self) -> float:
        """The factor of the latest step."""
        return self._scale

    def _interval(self) -> int:
        wish = getattr(self.config.policy, "interval", None)
        return self.config.every if wish is None else min(self.config.every, int(wish))

    def _due(self) -> bool:
        if self.config.policy.steers:
            rates = host_rates(self.base.param_groups)
            if rates is not None and self.steering.watch(rates):
                return True  # steering never acts on a stale measurement, whatever the budget says
        if not self.pacing.candidate(self.step):
            return False
        if distributed.any_rank(not self.pacing.affordable()):
            self.pacing.postpone(self.step, self._interval())
            return False
        return True

    def _factor(self) -> float:
        if self._pending is None:
            rates = host_rates(self.base.param_groups)
            return self.steering.decision.scale if rates is None else self.steering.between(self.step, max(rates))
        scale = self.steering.decide(self._reading(self._pending)).scale
        return distributed.from_rank_zero(scale)

    # -- a measurement --------------------------------------------------------------------------------------------------

    def _observe_before(self, closure_given: bool) -> _Pending:
        self._find_groups()
        began = time.perf_counter()
        skipped: dict[str, str] = {} if self._found is None else dict(self._found.skipped)
        rates = read_rates(self.base.param_groups)
        if math.isnan(self._base_lr):
            self._base_lr = max(group.get("initial_lr", lr) for group, lr in zip(self.base.param_groups, rates))
        try:
            spectral = self.spectral.read(self.loss, self.model, self.groups, closure_given=closure_given)
        except Exception as error:
            spectral = SpectralReading(reason=self.faults.note("spectral", error))
        if spectral.reason:
            skipped["spectral"] = spectral.reason
        skipped |= self.clouds.before(self.model, self.groups)
        return _Pending(rates, spectral, skipped, time.perf_counter() - began)

    def _observe_after(self, pending: _Pending) -> Measurement:
        groups, skipped = self.clouds.after(self.model, self.groups, self.step, pending.spectral.group)
        return self._assemble(pending, groups, pending.skipped | skipped)

    def _assemble(self, pending: _Pending, groups: dict[str, GroupMeasurement], skipped: dict[str, str]) -> Measurement:
        estimate, scale = pending.spectral, self._scale
        r_pair = max((group.gain for group in groups.values()), default=math.nan)
        verdict = critical.assess(
            r_spec=estimate.r * scale,
            r_pair=r_pair,
            edge=estimate.edge,
            lr=[lr * scale for lr in pending.rates],
            estimator=self.config.estimator,
            previous=self._phase,
        )
        self._phase = verdict.phase
        coverage = self._found.coverage if self._found else ()
        return Measurement(
            step=self.step,
            phase=verdict.phase,
            proximity=verdict.proximity,
            edge=estimate.edge,
            eta_star=tuple(verdict.eta_star),
            eta_star_bracket=tuple(verdict.eta_star_bracket),
            estimator=verdict.estimator,
            lr=pending.rates,
            lr_scale=scale,
            groups=groups,
            seconds=0.0,
            share=0.0,
            skipped=skipped | dict(verdict.skipped),
            r_spec=estimate.r * scale,
            r_pair=r_pair,
            r_field=estimate.field * scale,
            loss=estimate.loss,
            rule=estimate.rule,
            engine=estimate.engine,
            decision=self.steering.decision if self.config.policy.steers else Decision(1.0, "report", "none"),
            notes=(*verdict.notes, *estimate.notes, *coverage),
            spectrum=(estimate.low * scale, estimate.high * scale),
            products=estimate.products,
            probe=estimate.probe,
            counts=self._counts(),
        )

    def _counts(self) -> dict[str, int]:
        counts = {"stretched": self.pacing.stretched, **self.faults.totals(), **self.clouds.counts()}
        if self.certifier is not None:
            counts["shortened_steps"] = self.certifier.shortened
        return counts

    def _find_groups(self) -> None:
        """Discover once, at the first measurement at which a forward has been seen; booked as set-up, not as measuring."""
        if self._found is not None and self._found.final:
            return
        began = time.perf_counter()
        inputs = self.example_inputs or self._capture.take()
        try:
            self._found = find_groups(self.model, self.base, self.config, self._given, inputs)
        except Exception as error:
            self._found = Found.failed(self.faults.note("discovery", error), final=inputs is not None)
        self.pacing.setup += time.perf_counter() - began

    def _reading(self, pending: _Pending) -> Reading:
        seen, estimate, lr = self._seen, pending.spectral, max(pending.rates)
        # Without a spectral end the last measured step's gain stands in, per unit of rate: a lower bound on r.
        r = estimate.r if not math.isnan(estimate.r) else seen.gain_per_rate * lr
        return Reading(
            step=self.step,
            r=r,
            edge=estimate.edge,
            lr=lr,
            base_lr=self._base_lr,
            scale=self.steering.decision.scale,
            loss=estimate.loss,
            total_steps=self.total_steps,
            gain=seen.gain,
            vanishing=seen.vanishing,
            twins=seen.twins,
            total_persistence=seen.total_persistence,
            finite=not estimate.nonfinite,
            reason=estimate.reason,
        )

    def measure_now(self) -> Measurement:
        """Measure without a step; waits for homology. Errors are the caller's, who asked: they are raised."""
        self.pacing.start()
        self._scale = self.steering.decision.scale if self.config.policy.steers else 1.0
        pending = self._observe_before(closure_given=False)
        began = time.perf_counter()
        groups, skipped = self.clouds.after(self.model, self.groups, self.step, pending.spectral.group, wait=True)
        measurement = self._assemble(pending, groups, pending.skipped | skipped)
        seconds = pending.seconds + time.perf_counter() - began
        self.pacing.measured(self.step, seconds)
        self._publish(replace(measurement, seconds=seconds, share=self.pacing.share))
        assert self.last is not None
        return self.last

    # -- results --------------------------------------------------------------------------------------------------------

    def add_sink(self, sink: Sink) -> Sink:
        """Add a receiver of measurements."""
        if not callable(sink):
            raise TypeError(f"a sink is called with each measurement; {sink!r} is not callable")
        self._sinks.append(sink)
        return sink

    def _publish(self, measurement: Measurement) -> None:
        self.last = measurement
        self._seen = _Seen.of(measurement)
        for sink in self._sinks:
            try:
                sink(measurement)
            except Exception as error:
                self.faults.note(f"sink {type(sink).__name__}", error)

    def close(self) -> None:
        """Wait for late homology, publish it, and close everything that was opened."""
        self.rate.restore()
        self._capture.close()
        try:
            groups = dict(self.last.groups) if self.last is not None else {}
            late = self.clouds.finish(groups)
            if self.last is not None and late:
                self._publish(replace(self.last, groups=groups | late, counts=self._counts()))
        except Exception as error:
            self.faults.note("homology", error)
        for sink in self._sinks:
            close = getattr(sink, "close", None)
            if callable(close):
                try:
                    close()
                except Exception as error:
                    self.faults.note(f"sink {type(sink).__name__}", error)

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and tensors: what a resumed run needs to go on as the unbroken one."""
        return {
            "version": 1,
            "step": self.step,
            "base_lr": self._base_lr,
            "phase": self._phase.value,
            "seen": asdict(self._seen),
            "pacing": self.pacing.state_dict(),
            "steering": self.steering.state_dict(),
            "spectral": self.spectral.state_dict(),
            "clouds": self.clouds.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self.step = int(state["step"])
        self._base_lr = float(state["base_lr"])
        self._phase = Phase(state["phase"])
        self._seen = _Seen(**state["seen"])
        self.pacing.load_state_dict(state["pacing"])
        self.steering.load_state_dict(state["steering"])
        self.spectral.load_state_dict(state["spectral"])
        self.clouds.load_state_dict(state["clouds"])
