"""One run: what happens around each step, and what a checkpoint keeps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.measurement import Cost, Measurement, SpectralReading
from topoopt.neurons import NeuronGroup
from topoopt.optimizer import distributed
from topoopt.optimizer.faults import Faults
from topoopt.optimizer.hooks import has_closure
from topoopt.optimizer.observer import Before, Observer
from topoopt.optimizer.pacing import Pacing
from topoopt.optimizer.rate import RateScaler, host_rates, peak_rate, read_rates
from topoopt.optimizer.sinks import Sinks
from topoopt.optimizer.steerable import check_steerable
from topoopt.optimizer.steering import Steering
from topoopt.optimizer.strict import Certifier


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
        self.base, self.config = base, config
        self.total_steps: int | None = None
        self.step = 0
        self.measured = False
        self.last: Measurement | None = None
        self.lr_scale = 1.0
        self.steers = config.policy.steers
        self.faults = Faults()
        self.sinks = Sinks(self.faults)
        self.pacing = Pacing(config.every, config.budget)
        self.steering = Steering(config.policy, config.every, check_steerable(base) if self.steers else "")
        self.rate = RateScaler()
        self.observer = Observer(base, model, config, self.faults, groups)
        self.observer.loss = loss
        self.certifier = Certifier() if config.strict and self.steers else None
        self._pending: Before | None = None
        self._base_lr = math.nan

    # -- around a step -----------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook: measure what must be seen before the step, decide the factor, put it on."""
        self.measured, self._pending, self.lr_scale = False, None, 1.0
        if not self.steers and not self.pacing.candidate(self.step):
            return  # an ordinary step, on which every microsecond counts
        closure_given = has_closure(args, kwargs)
        if self.rate.applied:  # the last step raised before its post-hook could run
            self.rate.restore()
            self.faults.counts["step_raised"] += 1
        self.pacing.start()
        try:
            if self.steers:
                self._steer(closure_given)
            elif self._due():
                self._pending = self.observer.before(closure_given=closure_given)
        except Exception as error:  # a fault in steering: the user's own rate
            self.lr_scale = 1.0
            self.rate.restore()
            reason = self.faults.note("steering" if self.steers else "measuring", error)
            self.steering.release(reason)

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Post-hook: take the factor off, measure what the step did, tell the sinks."""
        if self._pending is not None or self.steers:
            self._finish_step()
        self.step += 1

    def _finish_step(self) -> None:
        self.rate.restore()
        pending, self._pending = self._pending, None
        try:
            if self.certifier is not None:
                self.lr_scale *= self.certifier.after(self.observer.model, self.observer.groups)
            if pending is not None:
                self._measure(pending)
                self.measured = True
        except Exception as error:
            self.faults.note("measuring", error)
            self.pacing.postpone(self.step)

    def _due(self) -> bool:
        if not self.pacing.candidate(self.step) or distributed.any_rank(self._overflowed()):
            return False
        if distributed.any_rank(not self.pacing.affordable()):
            self.pacing.postpone(self.step)
            return False
        return True

    def _overflowed(self) -> bool:
        """Whether a gradient scaler has told a fused optimizer to leave this step out: there is no step to measure."""
        found = getattr(self.base, "found_inf", None)
        return found is not None and bool(found)

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self, pending: Before, *, wait: bool = False) -> Measurement:
        """Complete a measurement, book its time and publish it."""
        began = time.perf_counter()
        counts = {"stretched": self.pacing.stretched, "readings": self.steering.readings}
        decision = self.steering.decision
        if self.certifier is not None:
            counts["shortened_steps"] = self.certifier.shortened
            decision = self.certifier.explain(decision)
        measurement = self.observer.after(
            pending, step=self.step, scale=self.lr_scale, decision=decision, counts=counts, wait=wait
        )
        if self.steering.declared:
            measurement = replace(measurement, notes=(*measurement.notes, self.steering.declared))
        seconds = pending.seconds + time.perf_counter() - began
        self.pacing.setup = self.observer.setup_seconds
        self.pacing.measured(self.step, seconds)
        self.last = replace(measurement, cost=Cost(seconds, self.pacing.share, self.observer.setup_seconds))
        self.steering.remember(self.last)
        self.sinks(self.last)
        return self.last

    def measure_now(self) -> Measurement:
        """Measure without a step; waits for homology. Errors are the caller's, who asked: they are raised."""
        self.pacing.start()
        self.lr_scale = self.steering.decision.scale
        return self._measure(self.observer.before(closure_given=False), wait=True)

    # -- steering ----------------------------------------------------------------------------------------------------

    def _steer(self, closure_given: bool) -> None:
        """Choose the coming step's factor, on a fresh reading where the last one is stale or old, and put it on."""
        rates = host_rates(self.base.param_groups)
        due = self.steering.due(self.step, rates, self.total_steps)
        if self._due() or (due and not self.observer.has_spectral):
            self._pending = self.observer.before(closure_given=closure_given)
            self.lr_scale = self._decide(self._pending.spectral)
        elif due:
            began = time.perf_counter()
            self.lr_scale = self._decide(self.observer.glance(closure_given=closure_given))
            self.pacing.spent += time.perf_counter() - began
        else:
            self.lr_scale = self.steering.between(self.step, None if rates is None else max(rates))
        self.rate.apply(self.base.param_groups, self.lr_scale)
        if self.certifier is not None:
            self.observer.find_groups()
            self.certifier.before(self.observer.model, self.observer.groups)

    def _decide(self, seen: SpectralReading) -> float:
        rates = read_rates(self.base.param_groups)
        if math.isnan(self._base_lr):
            self._base_lr = peak_rate(self.base.param_groups)
        # Rank 0's reading, so that the policies of all ranks remember the same and agree between readings too.
        seen = distributed.from_rank_zero(seen)
        return self.steering.decide(seen, self.step, max(rates), self._base_lr, self.total_steps).scale

    # -- the end, and checkpoints ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for late homology, publish it, and close everything that was opened."""
        self.rate.restore()
        try:
            late = self.observer.finish(self.last)
            if self.last is not None and late:
                self.last = replace(self.last, groups={**self.last.groups, **late})
                self.sinks(self.last)
        except Exception as error:
            self.faults.note("homology", error)
        self.sinks.close()

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and tensors: what a resumed run needs to go on as the unbroken one."""
        return {
            "version": 1,
            "step": self.step,
            "base_lr": self._base_lr,
            "pacing": self.pacing.state_dict(),
            "steering": self.steering.state_dict(),
            "observer": self.observer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values."""
        self.step = int(state["step"])
        self._base_lr = float(state["base_lr"])
        self.pacing.load_state_dict(state["pacing"])
        self.steering.load_state_dict(state["steering"])
        self.observer.load_state_dict(state["observer"])
