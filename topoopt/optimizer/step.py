"""What happens around each step of an optimizer, in its order.

    arm             at the end of the step before: what the coming one is for, and its tape where it is to be read
    before_step     the step's pre-hook, or after the first call of its closure: r is read, the neurons' points are taken,
                    the policy is asked, its factor put on the rates
    after_step      the factor comes off, the points are compared with where they were, sinks are told, time is booked

A step on which nothing is due passes through two tests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.curvature import Tape
from topoopt.curvature.replaying.closure import EVALUATING
from topoopt.errors import MeasurementError
from topoopt.measurement import SpectralReading
from topoopt.optimizer.attach import Nesting, has_closure, seen_within
from topoopt.optimizer.cadence import Due
from topoopt.optimizer.faults import logger
from topoopt.optimizer.instruments import Instruments, Step
from topoopt.optimizer.weights import Sample


class Stepper(Instruments):
    """Reads, measures and steers around the steps of one optimizer; lets no exception out into the training."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, config: TopoConfig, **given: Any) -> None:
        super().__init__(optimizer, model, config, **given)
        self._nesting = Nesting.of(self.rule)
        self._going_back = self._told_plan = self._told_short = False
        self.arm()

    # -- at the end of a step: what the next one is for --------------------------------------------------------------

    def arm(self) -> None:
        """Decide what is done at the coming step, and watch it from now on where it is to be read."""
        readable = self.config.estimator != "pairwise" and not self.faults.off("spectral")
        # What is read while the rule warms up is no phase of the run: a budget is not spent on it, steering must know.
        saves = self.config.budget is not None and not self.steers and readable
        waits = self.reader.warming() if saves else ""
        readable = readable and not waits
        due, watch = self._wanted(readable), self._watches()
        if self.steps:  # clocks differ, and what one rank does alone it waits in for the others
            due, watch = self.ranks.from_zero((due, watch))
        self.step = Step(due, waits)
        if (due is not Due.NOTHING or watch) and readable and self.loss is None and not self.closed:
            self.capture.start(self.reader)
            self.step.watched = self.capture.running

    def _wanted(self, readable: bool) -> Due:
        """What is wanted at the coming step, by the cadence or by the policy, and can be afforded.

        A budget is the policy's first: a look that it wants is saved for, and takes a reading along.
        """
        due = self.cadence.due(self.steps, readable=readable)
        if not self.steers:
            return due
        cadence, rates = self.cadence, self.rate.host()
        wants = self.steering.due(self.steps, rates, self.history.about.total_steps) and readable
        looks = self.steering.looks(self.steps)
        if due is Due.MEASUREMENT or (looks and cadence.affordable(cadence.looking_cost)):
            return Due.MEASUREMENT
        if cadence.unlimited:
            return Due.READING if wants else due
        saves = looks or cadence.saves
        paid = not saves and cadence.affordable(cadence.reading_cost)
        # While a preconditioner warms up r is of no phase of the run, and not worth the little credit there is.
        lent = wants and not paid and cadence.in_credit(self.steps) and not self.reader.warming()
        return Due.READING if wants and (paid or lent) else Due.NOTHING

    def _watches(self) -> bool:
        """Whether the loss of the coming step is to be seen, for which it is written down, and can be afforded."""
        watches = self.steers and self.steering.watches(self.steps)
        return watches and self.cadence.affordable(self.cadence.watching_cost)

    # -- before a step -----------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook: read and decide what must be seen before the step; a closure is wrapped, so that it is seen after it."""
        if vars(self.rule).get(EVALUATING):
            raise MeasurementError("loss() takes an optimizer step: give a function that only computes the loss")
        if self._nesting is not None and not self._nesting.begins():
            return None
        self.measured, self.lr_scale = False, 1.0
        if self.step.due is Due.NOTHING and not self.steers:
            return None  # an ordinary step, on which every microsecond counts
        if self.rate.applied:
            self.rate.restore()
            self.faults.counts["step_raised"] += 1
        self.cadence.start(self.steps)
        if has_closure(args, kwargs):
            return seen_within(args, kwargs, self._guarded_before)
        self._guarded_before()
        return None

    def _guarded_before(self) -> None:
        began = time.perf_counter()
        if self.step.armed is not None:
            self.cadence.passed(began - self.step.armed, watched=self.step.watched)
        try:
            with torch.no_grad():
                self._before(self.step)
        except Exception as error:  # a fault in steering: the user's own rate
            self.lr_scale = 1.0
            self.rate.restore()
            reason = self.faults.note("steering" if self.steers else "measuring", error)
            if self.steers:
                self.steering.release(reason)
        finally:
            self.step.seconds += time.perf_counter() - began

    def _before(self, step: Step) -> None:
        step.reading, step.sample, step.compares = None, None, False  # of one that raised and is taken again
        tape = self.capture.taken()
        if step.due is not Due.NOTHING:
            self.rate.bring()
        rates = self.rate.now()
        step.due = self._agreed(step.due, rates)
        if step.due is Due.MEASUREMENT:
            self.find_groups()
        if step.due is not Due.NOTHING and not (step.waits and self.loss is None):
            step.reading = self.read(tape, rates)
        if step.due is Due.MEASUREMENT:
            if not step.early:
                self.neurons.before(self.capture.model)
            step.compares = True
        if self.steers:
            self._steer(step, tape, rates)
        if step.reading is not None:
            groups = self.rule.param_groups
            step.sample = Sample([p for g in groups for p in g["params"] if p.requires_grad and p.grad is not None])

    def _agreed(self, due: Due, rates: tuple[float, ...]) -> Due:
        """What is done after all, on all ranks: nothing at a step of rate 0, or one that a gradient scaler leaves out."""
        now = Due.NOTHING if self.rate.are_zero(rates) else due
        if self.ranks.any(now is not Due.NOTHING and self.rate.overflowed()):
            now = Due.NOTHING
        now = self.ranks.from_zero(now)
        if now is Due.NOTHING and due is not Due.NOTHING:
            self.cadence.postpone(self.steps)
        return now

    def begin_early(self) -> None:
        """A rule that steps twice begins: the step is from here on."""
        if self.step.due is Due.MEASUREMENT and self.neurons.groups.all:
            try:
                self.neurons.before(self.capture.model)
                self.step.early = True
            except Exception as error:
                self.faults.note("measuring", error)

    # -- steering ----------------------------------------------------------------------------------------------------

    def _steer(self, step: Step, tape: Tape | None, rates: tuple[float, ...]) -> None:
        """Choose the coming step's factor and put it on."""
        if self.certifier is not None:
            self.find_groups()
            self.certifier.before(self.capture.model, self.neurons.groups.all)
        if not any(rates):
            return
        self.rate.begin()
        if step.compares and self.steering.looks(self.steps):
            self._look(step)
        if step.reading is not None:
            self._decide(step.reading, rates)
        elif tape is not None and self.steering.watches(self.steps):
            seen = replace(self.reader.loss_alone(tape), step=self.steps, lr=rates)
            self._decide(self.ranks.from_zero(seen), rates)
        else:
            self.lr_scale = self.steering.between(self.steps, max(rates))
        self.rate.scale(self.lr_scale)

    def _look(self, step: Step) -> None:
        """Measure the weights as they are, homology waited for, with r at the factor that has been in force until now."""
        unscaled, self.lr_scale = step.reading, self.steering.decision.scale
        if unscaled is not None:
            step.reading = unscaled.at(self.lr_scale)
        try:
            self.complete(stood=True, wait=True)
        finally:
            step.reading = unscaled
        self.measured, step.compares = True, False

    def _decide(self, seen: SpectralReading, rates: tuple[float, ...]) -> None:
        """Let the policy see a reading; remember the weights, or go back to them, as it asks."""
        decision = self.steering.decide(seen, self.steps, max(rates), self.rate.base, self.history.about.total_steps)
        if decision.weights == "keep":
            self.snapshot.keep(self.rule, self.capture.model.buffers())
        self._going_back = decision.weights == "back"
        self.lr_scale = self.steering.decision.scale

    # -- after a step ------------------------------------------------------------------------------------------------

    def after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Post-hook: take the factor off, measure what the step did, tell the sinks, look ahead."""
        if self._nesting is not None and not self._nesting.ends():
            return
        counts = self._counts_as_step()
        try:
            if self.steers or self.step.due is not Due.NOTHING:
                self._finish(self.step)
        finally:  # it was one, also where Ctrl-C or a signal's handler of the user's ends what is done after it
            self.steps += counts
        if not counts:
            return
        if self.steers:
            began = time.perf_counter()
            self.arm()
            self.step.armed = time.perf_counter()
            self.cadence.book(self.step.armed - began)
        elif not self.closed and self.cadence.candidate(self.steps):
            self.arm()

    def _counts_as_step(self) -> bool:
        """Whether it was a step of training: a checkpoint tool fills the state by one of rate 0, with no forward before it."""
        return self.steps > 0 or self.capture.forward_seen or any(self.rate.now())

    def _finish(self, step: Step) -> None:
        self.rate.restore()
        self.capture.stop()  # still on where a closure was not called
        if self._going_back:  # after the step, whose gradients belong to the run that was lost
            self._going_back = False
            self._guarded("steering", self._go_back)
        began = time.perf_counter()
        if self.certifier is not None:
            self._guarded("strict", self._certify)
        if step.reading is not None:
            self._guarded("reading", self._tell_reading)
        if step.compares:
            self._guarded("measuring", self._measure)
        step.seconds += time.perf_counter() - began
        self._book(step)
        self.step = Step()

    def _guarded(self, part: str, duty: Callable[[], None]) -> None:
        """One duty: where it fails, the others are done all the same."""
        try:
            duty()
        except Exception as error:
            self.faults.note(part, error)

    def _go_back(self) -> None:
        if self.snapshot.back(self.rule):
            self.reader.forget()

    def _certify(self) -> None:
        assert self.certifier is not None
        self.lr_scale *= self.certifier.after(self.capture.model, self.neurons.groups.all)

    def _tell_reading(self) -> None:
        step = self.step
        assert step.reading is not None
        step.reading = step.reading.at(self.lr_scale, *(step.sample.lengths() if step.sample else ()))
        self.history.read(step.reading)

    def _measure(self) -> None:
        self.complete()
        self.measured = True

    def _book(self, step: Step) -> None:
        """The account: what was done at this step, sinks and policy included."""
        rest = step.seconds
        if step.reading is not None:
            taken = min(step.reading.seconds, rest)
            known = not math.isnan(step.reading.r)
            self.cadence.read(self.steps, taken, warming=bool(step.reading.warming), known=known)
            rest -= taken
        if self.measured:
            self.cadence.measured(self.steps, rest)
        else:
            self.cadence.book(rest)
        if not self._told_plan and self.cadence.readings and self.steps >= 2:
            plan = self.cadence.plan(len(self.neurons.groups.all))
            self._told_plan = bool(plan)
            if plan:
                logger.info("topoopt: %s", plan)
        if self.steers and step.reading is not None and not self._told_short and (short := self.cadence.shortfall()):
            self._told_short = True
            logger.warning("topoopt: %s", short)
            self.steering.say(self.steps, short)
