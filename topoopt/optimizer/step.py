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
from functools import partial
from typing import Any, TypeVar

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
from topoopt.optimizer.weights import Certifier, Sample

T = TypeVar("T")


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
        due = self._guarded("measuring", partial(self._wanted, readable), Due.NOTHING)
        watch = self._guarded("steering", self._watches, False)
        if self.steps:  # clocks differ, and what one rank does alone it waits in for the others
            due, watch = self.ranks.from_zero((due, watch))
        if due is Due.NOTHING:
            self.cadence.refused(self.steps)
        self.step = Step(due, waits)
        if (due is not Due.NOTHING or watch) and readable and self.loss is None and not self.closed:
            self._guarded("reading", partial(self.capture.start, self.reader), None)
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
            self.give_back()
            self.faults.counts["step_raised"] += 1
        self._guarded("measuring", partial(self.cadence.start, self.steps), None)
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
        finally:
            self.step.seconds += time.perf_counter() - began

    def _before(self, step: Step) -> None:
        """Duty by duty, each under a guard of its own: a fault in one costs none of the others, and has its own name."""
        step.reading, step.sample, step.compares = None, None, False  # of one that raised and is taken again
        tape = self._guarded("reading", self.capture.taken, None)
        rates = self._guarded("measuring", partial(self._agree, step), None)
        if step.due is Due.MEASUREMENT:
            self._guarded("discovery", self.find_groups, None)
        if rates is not None and step.due is not Due.NOTHING and not (step.waits and self.loss is None):
            step.reading = self._guarded("reading", partial(self.read, tape, rates), None)
        if step.due is Due.MEASUREMENT:
            step.compares = step.early or self._guarded("measuring", self._take_points, False)
        if self.certifier is not None:
            self._guarded("strict", partial(self._begin_certificate, self.certifier), None)
        if self.steers:
            self._guarded_steering(step, tape, rates)
        if step.reading is not None:
            step.sample = self._guarded("reading", self._sampled, None)

    def _agree(self, step: Step) -> tuple[float, ...]:
        """Settle on all ranks what is done at this step; returns its rates."""
        due, step.due = step.due, Due.NOTHING  # which stands where this fails
        if due is not Due.NOTHING:
            self.rate.bring()
        rates = self.rate.now()
        step.due = self._agreed(due, rates)
        return rates

    def _take_points(self) -> bool:
        self.neurons.before(self.capture.model)
        return True

    def _sampled(self) -> Sample:
        groups = self.rule.param_groups
        return Sample([p for g in groups for p in g["params"] if p.requires_grad and p.grad is not None])

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
            self.step.early = self._guarded("measuring", self._take_points, False)

    # -- steering ----------------------------------------------------------------------------------------------------

    def _begin_certificate(self, certifier: Certifier) -> None:
        self.find_groups()
        groups = self.neurons.groups.all
        failed = self._guarded("strict", partial(certifier.before, self.capture.model, groups), True)
        if self.ranks.any(bool(failed)):
            certifier.forget()

    def _guarded_steering(self, step: Step, tape: Tape | None, rates: tuple[float, ...] | None) -> None:
        """Steer; after a fault on any rank, and where the rates could not be read, the user's own rate is in force."""
        reason = "the rates could not be read" if rates is None else ""
        try:
            if rates is not None:
                self._steer(step, tape, rates)
        except Exception as error:
            self.give_back()
            reason = self.faults.note("steering", error)
        if not self._guarded("steering", partial(self.ranks.any, bool(reason)), True):
            return
        self.lr_scale = 1.0
        self.give_back()
        release = partial(self.steering.release, reason or "another rank could not steer; its log says why")
        self._guarded("steering", release, None)

    def _steer(self, step: Step, tape: Tape | None, rates: tuple[float, ...]) -> None:
        """Choose the coming step's factor and put it on."""
        if not any(rates):
            return
        self.rate.begin()
        if step.compares and self.steering.looks(self.steps):
            self._guarded("measuring", partial(self._look, step), None)
        if step.reading is not None:
            self._decide(step.reading, rates)
        elif tape is not None and self.steering.watches(self.steps):
            seen = self._guarded("reading", partial(self.reader.loss_alone, tape), None) or self._unread()
            seen = replace(seen, step=self.steps, lr=rates)
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
        counts = self.steps > 0 or self._guarded("measuring", self._counts_as_step, True)
        try:
            if self.steers or self.step.due is not Due.NOTHING:
                self._finish(self.step)
        finally:  # it was one, also where Ctrl-C or a signal's handler of the user's ends what is done after it
            self.steps += counts
        if not counts:
            return
        try:
            self._arm_next()
        except Exception as error:
            self.step = Step()
            self.faults.note("measuring", error)

    def _arm_next(self) -> None:
        """Look ahead: at every step where something steers, and on its account."""
        if self.steers:
            began = time.perf_counter()
            self.arm()
            self.step.armed = time.perf_counter()
            self.cadence.book(self.step.armed - began)
        elif not self.closed and self.cadence.candidate(self.steps):
            self.arm()

    def _counts_as_step(self) -> bool:
        """Whether it was a step of training: a checkpoint tool fills the state by one of rate 0, with no forward before it."""
        return self.capture.forward_seen or any(self.rate.now())

    def _finish(self, step: Step) -> None:
        self.give_back()
        self._guarded("reading", self.capture.stop, None)  # still on where a closure was not called
        if self._going_back:  # after the step, whose gradients belong to the run that was lost
            self._going_back = False
            self._guarded("steering", self._go_back, None)
        began = time.perf_counter()
        if self.certifier is not None:
            self._guarded("strict", partial(self._certify, self.certifier), None)
        if step.reading is not None:
            self._guarded("reading", self._tell_reading, None)
        if step.compares:
            self._guarded("measuring", self._measure, None)
        step.seconds += time.perf_counter() - began
        self._guarded("measuring", partial(self._book, step), None)
        if not self._told_plan and self.cadence.readings and self.steps >= 2:
            self._guarded("measuring", self._tell_plan, None)
        if self.steers and step.reading is not None and not self._told_short:
            self._guarded("steering", self._tell_short, None)
        self.step = Step()

    def give_back(self) -> None:
        """Take the factor off the rates, whatever has happened."""
        self._guarded("steering", self.rate.restore, None)

    def _guarded(self, part: str, duty: Callable[[], T], otherwise: T) -> T:
        """One duty, and what stands in for its result where it fails: the others are done all the same."""
        try:
            return duty()
        except Exception as error:
            self.faults.note(part, error)
            return otherwise

    def _go_back(self) -> None:
        if self.snapshot.back(self.rule):
            self.reader.forget()

    def _certify(self, certifier: Certifier) -> None:
        """Shorten the step where it must be, on all ranks by the same factor or on none."""
        seen = partial(certifier.gain, self.capture.model, self.neurons.groups.all)
        gain = self._guarded("strict", seen, math.nan)
        if self.ranks.any(math.isnan(gain)):
            certifier.forget()
            return
        self.lr_scale *= self._guarded("strict", partial(certifier.shorten, self.ranks.from_zero(gain)), 1.0)

    def _tell_reading(self) -> None:
        step = self.step
        assert step.reading is not None
        lengths = self._guarded("reading", step.sample.lengths, ()) if step.sample is not None else ()
        step.reading = step.reading.at(self.lr_scale, *lengths)
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

    def _tell_plan(self) -> None:
        plan = self.cadence.plan(len(self.neurons.groups.all))
        self._told_plan = bool(plan)
        if plan:
            logger.info("topoopt: %s", plan)

    def _tell_short(self) -> None:
        short = self.cadence.shortfall()
        if short:
            self._told_short = True
            logger.warning("topoopt: %s", short)
            self.steering.say(self.steps, short)
