"""One run: what happens around each step of an optimizer."""

from __future__ import annotations

import math
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from topoopt import critical
from topoopt.config import TopoConfig
from topoopt.curvature import Tape, recognise
from topoopt.curvature.closure import EVALUATING
from topoopt.curvature.trial import own_class
from topoopt.device import HostNumbers
from topoopt.errors import MeasurementError
from topoopt.measurement import Assessment, Cost, Decision, Measurement, Phase, SpectralReading
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.attach import FirstInputs, Unpickled, acts_after, has_closure, is_in_stack, rule_of, with_closure
from topoopt.optimizer.cadence import Cadence, Due
from topoopt.optimizer.clouds import Clouds
from topoopt.optimizer.faults import Faults, logger
from topoopt.optimizer.groups import Groups
from topoopt.optimizer.moves import Sample
from topoopt.optimizer.rate import RateScaler, host_rates, peak_rate, read_rates
from topoopt.optimizer.reading import Reader
from topoopt.optimizer.sinks import Sink, Sinks
from topoopt.optimizer.state import Snapshot, State, described, taken_up
from topoopt.optimizer.steerable import check_steerable
from topoopt.optimizer.steering import Steering
from topoopt.optimizer.strict import Certifier
from topoopt.parallel import Ranks
from topoopt.summary import Summary
from topoopt.verdict import Verdict, judge, stalled

KEPT = 10_000
"""Readings that are held on to; of a longer run the earliest are thinned out."""
AWAITED = 8
"""Measurements that wait for their homology."""


class Run:
    """Reads, measures and steers around the steps of one optimizer; lets no exception out into the training."""

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
        self.config = config
        self.steers = config.policy.steers
        declared = check_steerable(rule) if self.steers else ""
        self._rule, self._outer = weakref.ref(rule), weakref.ref(optimizer)
        self._model, self.loss = model, loss
        self.faults = Faults()
        self.sinks = Sinks(self.faults)
        self.ranks = Ranks(model)
        self.cadence = Cadence(config.every, config.budget)
        self.reader = Reader(rule, config, self.ranks)
        self.clouds = Clouds(config, self.faults)
        self.groups_found = Groups(config, groups, type(optimizer).__name__ if acts_after(optimizer) else "")
        self.rate = RateScaler(rule)
        self.snapshot = Snapshot(config.snapshot)
        self.steering = Steering(
            config.policy,
            config.every,
            declared,
            snapshot=config.snapshot,
            losses=loss is None,
            on_change=_weakly(self),
        )
        self.certifier = Certifier() if config.strict and self.steers else None
        self.steps = 0
        self.measured = False
        self.last: Measurement | None = None
        self.lr_scale = 1.0
        self.setup_seconds = 0.0
        self.about = described(rule, model, config)
        self._readings: list[SpectralReading] = []
        self._latest: tuple[SpectralReading, Assessment] | None = None
        self._verdict: Verdict | None = None
        self._awaited: dict[int, Measurement] = {}
        self._base_lr = math.nan
        self._handles: list[Any] = []
        self._closed = False
        self._watched: FirstInputs | None = FirstInputs(model)
        self._inside = False
        self._tape: Tape | None = None
        self._due = Due.NOTHING
        self._busy = False
        self._frame: Any = None
        self._nested = _nests(rule)
        self._forward_seen = True
        self._waits = ""
        self._full_rate = self._going_back = False
        self._rate_before = 0.0
        self._told_plan = False
        # Of the step under way:
        self._reading: SpectralReading | None = None
        self._sample: Sample | None = None
        self._skipped: dict[str, str] | None = None
        self._seconds = 0.0
        self._began_early = False
        self._arm()

    @property
    def rule(self) -> Optimizer:
        """The optimizer that holds the update rule."""
        rule = self._rule()
        assert rule is not None
        return rule

    @property
    def itself(self) -> Run:
        """For `optimizer.topo`."""
        return self

    @property
    def model(self) -> nn.Module:
        """The module that is measured."""
        return self._model

    @model.setter
    def model(self, value: nn.Module) -> None:
        if value is not self._model or self._is_outdated():
            self._disarm()
            self._model, self.ranks = value, Ranks(value)
            self.reader._ranks = self.ranks
            if self._watched is not None:
                self._watched.close()
                self._watched = FirstInputs(value)
            self._arm()

    def _is_outdated(self) -> bool:
        """Whether the weights have been replaced since the coming step began to be watched (`fully_shard` does it in place)."""
        now = {id(p) for group in self.rule.param_groups for p in group["params"]}
        return self._tape is not None and any(id(p) not in now for p in self._tape.parameters)

    # -- what can be asked -------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int | None:
        """Length of the run, when it is known."""
        return self.cadence.total_steps

    @total_steps.setter
    def total_steps(self, value: int | None) -> None:
        self.cadence.total_steps = value
        self.about = replace(self.about, total_steps=value)

    @property
    def readings(self) -> tuple[SpectralReading, ...]:
        """Every reading of r so far."""
        return tuple(self._readings)

    @property
    def groups(self) -> list[NeuronGroup]:
        """The groups that are measured."""
        return list(self.groups_found.all)

    @property
    def phase(self) -> Phase:
        """Phase at the latest reading."""
        return Phase.UNKNOWN if self._latest is None else self._latest[1].phase

    @property
    def proximity(self) -> float:
        """R at the latest reading."""
        return math.nan if self._latest is None else self._latest[1].proximity

    @property
    def eta_star(self) -> tuple[float, ...]:
        """eta* at the latest reading."""
        return () if self._latest is None else self._latest[1].eta_star

    @property
    def verdict(self) -> Verdict:
        """What the readings so far say."""
        return judge(self.readings, total_steps=self.total_steps, groups=self.last.groups if self.last else None)

    # -- attaching ---------------------------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Put the hooks on."""
        rule = self.rule
        if not acts_after(optimizer):
            before, after = _hook(self, "before_step"), _hook(self, "after_step")
            self._handles = [rule.register_step_pre_hook(before), rule.register_step_post_hook(after)]
        self._handles += [
            rule.register_state_dict_pre_hook(_hook(self, "before_saving"), prepend=True),
            rule.register_state_dict_post_hook(_hook(self, "add_state"), prepend=True),
            rule.register_load_state_dict_pre_hook(_hook(self, "before_loading"), prepend=True),
            rule.register_load_state_dict_post_hook(_hook(self, "after_loading"), prepend=True),
        ]

    def add_sink(self, sink: Sink) -> Sink:
        """Add a receiver of measurements."""
        return self.sinks.add(sink, self.about)

    # -- at the end of a step: what the next one is for --------------------------------------------------------------

    def _arm(self) -> None:
        """Decide what is done at the coming step, and watch it from now on where it is to be read."""
        step = self.steps
        readable = self.config.estimator != "pairwise" and not self.faults.off("spectral")
        # What is read while the rule warms up is no phase of the run: a budget is not spent on it, steering must know.
        self._waits = "" if self.config.budget is None or self.steers or not readable else self.reader.warming()
        readable = readable and not self._waits
        self._due = self.cadence.due(step, readable=readable)
        if self.steers:
            wants = self.steering.due(step, host_rates(self.rule.param_groups, self.rate.numbers), self.total_steps)
            if self.steering.looks(step) and self.cadence.affordable(self.cadence.looking_cost, credit=True):
                self._due = Due.MEASUREMENT
            elif (
                wants
                and self._due is Due.NOTHING
                and readable
                and self.cadence.affordable(self.cadence.reading_cost, credit=True)
            ):
                self._due = Due.READING
        if step:  # clocks differ, and what one rank does alone it waits in for the others
            self._due = self.ranks.from_zero(self._due)
        watch = self._due is not Due.NOTHING or (self.steers and self.steering.watches(step))
        if watch and readable and self.loss is None and not self._closed:
            try:
                self._tape = self.reader.tape(self._model, inside=self._inside).start()
            except Exception as error:  # a rule by signs, no parameter that moves: said at the reading
                self._tape = None
                logger.debug("topoopt: the coming step is not watched: %s", error)

    def _disarm(self) -> Tape | None:
        tape, self._tape = self._tape, None
        if tape is not None:
            tape.stop()
            if tape.wrapper is not None:
                self.ranks.found(tape.wrapper)
        return tape

    # -- around a step -----------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook: read and decide what must be seen before the step; a closure is wrapped, so that it is seen after it."""
        if vars(self.rule).get(EVALUATING):
            raise MeasurementError("loss() takes an optimizer step: give a function that only computes the loss")
        if self._nested:
            if self._frame is not None and is_in_stack(self._frame):
                return None  # a subclass's step has called its parent's: one step
            self._frame = _step_frame()
        self.measured, self.lr_scale = False, 1.0
        self._reading, self._skipped, self._sample, self._seconds = None, None, None, 0.0
        if self._due is Due.NOTHING and not self.steers:
            return None  # an ordinary step, on which every microsecond counts
        if self.rate.applied:
            self.rate.restore()
            self.faults.counts["step_raised"] += 1
        self.cadence.start(self.steps)
        if has_closure(args, kwargs):
            return with_closure(args, kwargs, self._seeing)
        self._guarded_before()
        return None

    def _seeing(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, after whose first call the step is looked at: by then its gradients are there."""
        done: list[bool] = []

        def seen() -> Any:
            result = closure()
            if not done:
                done.append(True)
                self._guarded_before()
            return result

        return seen

    def _guarded_before(self) -> None:
        began = time.perf_counter()
        try:
            with torch.no_grad():
                self._before()
        except Exception as error:  # a fault in steering: the user's own rate
            self.lr_scale = 1.0
            self.rate.restore()
            reason = self.faults.note("steering" if self.steers else "measuring", error)
            if self.steers:
                self.steering.release(reason)
        finally:
            self._seconds += time.perf_counter() - began

    def _before(self) -> None:
        tape = self._disarm()
        if self._watched is not None and self._watched.wrapper is not None:
            self.ranks.found(self._watched.wrapper)
        watched = self._watched is None or self._watched.seen
        self._forward_seen = watched or (tape is not None and bool(tape.calls or tape.losses or tape.entries))
        due = self._due
        if due is not Due.NOTHING:
            self._bring_numbers()
        rates = self._rates()
        if not any(rates) and any(group.get("lr") is not None for group in self.rule.param_groups):
            due = Due.NOTHING  # a step of rate 0 is no step to read
        if self.ranks.any(due is not Due.NOTHING and self._overflowed()):
            due = Due.NOTHING
        due = self.ranks.from_zero(due)
        if due is Due.NOTHING and self._due is not Due.NOTHING:
            self.cadence.postpone(self.steps)
        self._due = due
        if due is Due.MEASUREMENT:
            self._find_groups()
        if due is not Due.NOTHING and not (self._waits and self.loss is None):
            self._reading = self._read(tape, self.groups if due is Due.MEASUREMENT else None)
        if due is Due.MEASUREMENT and not self._began_early:
            self._skipped = self.clouds.before(self._model, self.groups)
        if self.steers:
            self._steer(tape, rates)
        if self._reading is not None:
            self._sample = Sample(self.reader_parameters())

    def reader_parameters(self) -> list[Tensor]:
        """The weights that the rule moves."""
        return [
            p for group in self.rule.param_groups for p in group["params"] if p.requires_grad and p.grad is not None
        ]

    def begin_early(self) -> None:
        """A rule that steps twice begins: the step is from here on."""
        if self._due is Due.MEASUREMENT and self.groups_found.all:
            try:
                self._skipped = self.clouds.before(self._model, self.groups)
                self._began_early = True
            except Exception as error:
                self.faults.note("measuring", error)

    def after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Post-hook: take the factor off, measure what the step did, tell the sinks, look ahead."""
        if self._nested:
            if self._frame is not None and self._frame is not _step_frame():
                return  # the parent's step of a subclass's
            self._frame = None
        if self.steers or self._due is not Due.NOTHING:
            self._finish_step()
        if not self._counts_as_step():
            return
        self.steps += 1
        if self._tape is None and (self.steers or self._looks_ahead()):
            self._arm()

    def _looks_ahead(self) -> bool:
        return not self._closed and self.cadence.candidate(self.steps)

    def _counts_as_step(self) -> bool:
        """Whether it was a step of training: a checkpoint tool fills the state by one of rate 0, with no forward before it."""
        return self.steps > 0 or self._forward_seen or any(read_rates(self.rule.param_groups))

    def _finish_step(self) -> None:
        self.rate.restore()
        if self._going_back:  # after the step, whose gradients belong to the run that was lost
            self._going_back = False
            if self.snapshot.back(self.rule):
                self.reader.forget()
        began = time.perf_counter()
        try:
            if self.certifier is not None:
                self._certify()
            if self._reading is not None:
                self._publish_reading()
            if self._skipped is not None:
                self._measure()
                self.measured = True
        except Exception as error:
            self.faults.note("measuring", error)
        self._seconds += time.perf_counter() - began
        self._book()
        self._began_early = False
        self._due = Due.NOTHING

    def _book(self) -> None:
        """The account: what was done at this step, sinks and policy included."""
        if self._reading is not None:
            taken = min(self._reading.seconds, self._seconds)
            self.cadence.read(
                self.steps, taken, warming=bool(self._reading.warming), known=not math.isnan(self._reading.r)
            )
            self._seconds -= taken
        if self.measured:
            self.cadence.measured(self.steps, self._seconds)
        else:
            self.cadence.book(self._seconds)
        if self.last is not None and self.measured:
            cost = Cost(self.last.cost.seconds, self.cadence.share, self.setup_seconds)
            self.last = replace(self.last, cost=cost)
        self._tell_plan()

    def _certify(self) -> None:
        assert self.certifier is not None
        try:
            self.lr_scale *= self.certifier.after(self._model, self.groups)
        except Exception as error:  # a duty of its own: measuring goes on
            self.faults.note("strict", error)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read(self, tape: Tape | None, groups: list[NeuronGroup] | None) -> SpectralReading:
        """r of the step under way at the user's own rate, or why there is none."""
        off = self.faults.off("spectral")
        if self.ranks.any(bool(off)):
            return SpectralReading(step=self.steps, reason=f"reading r is {off or 'switched off on another rank'}")
        foreign = getattr(self.rule, "grad_scale", None) is not None
        try:
            numbers = self.rate.numbers
            seen = self.reader.read(tape, self.loss, self._model, groups, closure_given=foreign, numbers=numbers)
            self.faults.went_well("spectral")
        except Exception as error:
            seen = SpectralReading(reason=self.faults.note("spectral", error))
        if tape is not None and not tape.calls and self._watched is not None and self._watched.seen:
            self._inside = self._watched.whole() is None  # not called as a whole: from now on its parts are watched
        rates = self._rates()
        low = self._rate_warms_up(rates)  # also while the rule warms up: the peak may be past when that is over
        return replace(seen, step=self.steps, lr=rates, warming=seen.warming or low)

    def _rate_warms_up(self, rates: tuple[float, ...]) -> str:
        """Why the rate itself is on its way up, when it is: until it has once reached half of its schedule's peak."""
        peak, now = peak_rate(self.rule.param_groups, self.rate.numbers), max(rates, default=0.0)
        past = now >= 0.5 * peak or now < self._rate_before  # one that falls is past its peak
        self._full_rate, self._rate_before = self._full_rate or past, now
        return "" if self._full_rate else f"the rate stands at {now / peak:.0%} of its schedule's peak"

    def _publish_reading(self) -> None:
        """The reading as the step was taken: the factor and the length of the step are known now."""
        assert self._reading is not None
        scale = self.lr_scale
        moved = {} if self._sample is None else self._sample.lengths()
        scaled = {key: getattr(self._reading, key) * scale for key in ("r", "low", "high", "field")}
        group = self._reading.group
        group = None if group is None else (group[0], group[1] * scale)
        self._reading = replace(self._reading, scale=scale, group=group, **scaled, **moved)
        self._readings.append(self._reading)
        if len(self._readings) > KEPT:
            del self._readings[1 : KEPT // 2 : 2]
        self._latest = (self._reading, self._assess(self._reading, math.nan))
        self.sinks.tell("reading", self._reading)
        self._tell_verdict()

    def _assess(self, reading: SpectralReading, r_pair: float) -> Assessment:
        return critical.assess(
            reading,
            r_pair=r_pair,
            estimator=self.config.estimator,
            stalled=stalled(self._readings if reading in self._readings[-1:] else [*self._readings, reading]),
            previous=self.phase,
        )

    def _tell_verdict(self) -> None:
        now = self.verdict
        if self._verdict is None or now.state != self._verdict.state:
            self._verdict = now
            self.sinks.tell("verdict", self.steps, now)

    def _tell_plan(self) -> None:
        if self._told_plan or self.cadence.readings < 1 or self.steps < 2:
            return
        plan = self.cadence.plan(len(self.groups))
        if plan:
            self._told_plan = True
            logger.info("topoopt: %s", plan)

    def _overflowed(self) -> bool:
        """Whether a gradient scaler has told a fused optimizer to leave this step out: there is no step to measure."""
        found = getattr(self.rule, "found_inf", None)
        return found is not None and bool(self.rate.numbers.plain(found))

    def _rates(self) -> tuple[float, ...]:
        """Each group's rate; the host knows those on a device from the start of the step, or since they were last written."""
        return read_rates(self.rule.param_groups, self.rate.numbers)

    def _bring_numbers(self) -> None:
        """All that this step asks of numbers that the rule keeps on a device, rates and counts of steps: one host read."""
        self.rate.numbers = HostNumbers()
        rule = self.rule
        states = [value for state in list(rule.state.values()) for value in state.values()]
        settings = [value for group in rule.param_groups for key, value in group.items() if key != "params"]
        self.rate.numbers.bring(tree_leaves([states, settings, getattr(rule, "found_inf", None)]))

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _find_groups(self) -> None:
        """Find the neurons, or see that they are still the model's; the time is booked as set-up, not as measuring."""
        if self.faults.off("discovery"):
            return
        began = time.perf_counter()
        try:
            known = self.groups_found.look(self._model, self.rule, self._watched)
            if known and self._watched is not None:
                self._inside = self._watched.whole() is None and self._watched.seen
                self._watched.close()
                self._watched = None
            elif not known and self._watched is None:
                self._watched = FirstInputs(self._model)  # the model has become another one: look at its next forward
        except Exception as error:
            from topoopt.optimizer.groups import Found

            self.groups_found.found = Found([], {"groups": self.faults.note("discovery", error)})
        self.setup_seconds += time.perf_counter() - began
        self.cadence.setup = self.setup_seconds

    def _measure(self, *, stood: bool = False, wait: bool = False) -> Measurement:
        """Complete a measurement and publish it."""
        began, skipped = time.perf_counter(), dict(self._skipped or {})
        found = self.groups_found.found
        groups, left_out = self.clouds.after(self._model, self.groups, self.steps, stood=stood)
        shares = {} if found is None else found.moved_share
        reading = self._reading or self._unread()
        groups = {name: _with_shares(group, shares.get(name, 1.0), reading, name) for name, group in groups.items()}
        r_pair = max((group.gain for group in groups.values()), default=math.nan)
        stands = self._assess(reading, r_pair)
        self._latest = (reading, stands)
        notes = () if found is None else found.notes
        decision, counts = (
            self.steering.decision,
            {"stretched": self.cadence.stretched, "readings": self.cadence.readings},
        )
        if self.certifier is not None:
            counts["shortened_steps"] = self.certifier.shortened
            decision = self.certifier.explain(decision)
        declared = (self.steering.declared,) if self.steering.declared else ()
        measurement = Measurement(
            step=self.steps,
            lr=self._rates(),
            lr_scale=self.lr_scale,
            spectral=reading,
            assessment=stands,
            groups=groups,
            decision=decision,
            cost=Cost(self._seconds + time.perf_counter() - began, self.cadence.share, self.setup_seconds),
            skipped={
                **({} if found is None else found.skipped),
                **({"spectral": reading.reason} if reading.reason else {}),
                **skipped,
                **left_out,
                **stands.skipped,
            },
            notes=(*stands.notes, *reading.notes, *notes, *declared),
            counts={**counts, **self.faults.totals(), **self.clouds.counts()},
        )
        return self._publish(measurement, wait=wait or self.config.wait)

    def _unread(self) -> SpectralReading:
        """Stands for the reading of a step at which r was not read, with the reason."""
        rule, edge = recognise(self.rule)
        reason = "r is read once the preconditioner is warm" if self._waits else "r was not read at this step"
        return SpectralReading(self.steps, edge=edge, lr=self._rates(), rule=rule, reason=reason, warming=self._waits)

    def _publish(self, measurement: Measurement, *, wait: bool = False) -> Measurement:
        """Hand a measurement out, and those before it that homology has completed since."""
        self.last = measurement
        if any(group.pending for group in measurement.groups.values()):
            self._awaited[measurement.step] = measurement
            while len(self._awaited) > AWAITED:
                self._awaited.pop(next(iter(self._awaited)))
        arrived = self._arrived(wait=wait)
        for step in sorted(arrived.keys() - {measurement.step}):
            self.sinks.tell("late", arrived[step])
        self.last = arrived.get(measurement.step, measurement)
        self.steering.remember(self.last)
        self.sinks(self.last)
        return self.last

    def _arrived(self, *, wait: bool = False) -> dict[int, Measurement]:
        """Measurements that late homology has completed."""
        completed: dict[int, Measurement] = {}
        for step, groups in self.clouds.arrived(wait=wait).items():
            awaited = self._awaited.get(step)
            if awaited is None:
                continue
            whole = replace(
                awaited, groups={**awaited.groups, **{n: _joined(awaited.groups[n], g) for n, g in groups.items()}}
            )
            if any(group.pending for group in whole.groups.values()):
                self._awaited[step] = whole
            else:
                del self._awaited[step]
            completed[step] = whole
            if self.last is not None and self.last.step == step:
                self.last = whole
        return completed

    def measure_now(self) -> Measurement:
        """Measure without a step; waits for homology. Errors are the caller's, who asked: they are raised."""
        self.cadence.start(self.steps)
        self._seconds = 0.0
        self.lr_scale = self.steering.decision.scale
        self._find_groups()
        if self.loss is not None:
            self._reading = replace(
                self.reader.read(None, self.loss, self._model, None),
                step=self.steps,
                lr=self._rates(),
            )
        else:
            self._reading = self._readings[-1] if self._readings else None
        self._skipped = self.clouds.before(self._model, self.groups)
        return self._measure(stood=True, wait=True)

    # -- steering ----------------------------------------------------------------------------------------------------

    def _steer(self, tape: Tape | None, rates: tuple[float, ...]) -> None:
        """Choose the coming step's factor and put it on."""
        if self.certifier is not None:
            self._find_groups()
            self.certifier.before(self._model, self.groups)
        if not any(rates):
            return
        if math.isnan(self._base_lr):
            self._base_lr = peak_rate(self.rule.param_groups, self.rate.numbers)
        if self._due is Due.MEASUREMENT and self.steering.looks(self.steps):
            self._measure_before()
        if self._reading is not None:
            decision = self.steering.decide(self._reading, self.steps, max(rates), self._base_lr, self.total_steps)
            self._heed(decision)
            self.lr_scale = self.steering.decision.scale
        elif tape is not None and self.steering.watches(self.steps):
            seen = self.ranks.from_zero(replace(self.reader.loss_alone(tape), step=self.steps, lr=rates))
            self._heed(self.steering.decide(seen, self.steps, max(rates), self._base_lr, self.total_steps))
            self.lr_scale = self.steering.decision.scale
        else:
            self.lr_scale = self.steering.between(self.steps, max(rates))
        self.rate.apply(self.rule.param_groups, self.lr_scale)

    def _measure_before(self) -> None:
        """What a policy that looks at the neurons is shown: the weights before this step, homology waited for."""
        self._measure(stood=True, wait=True)
        self.measured = True
        self._skipped = None

    def _heed(self, decision: Decision) -> None:
        """Remember the weights, or go back to them, as the policy asks."""
        if decision.weights == "keep":
            self.snapshot.keep(self.rule)
        self._going_back = decision.weights == "back"

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def before_saving(self, optimizer: Any) -> None:
        """A checkpoint never holds a steered rate."""
        self.rate.restore()

    def add_state(self, optimizer: Any, state_dict: Any) -> Any:
        """Put topoopt's own part into a state dict; the user's hooks have the last word on it."""
        if isinstance(state_dict, dict):
            state_dict["topoopt"] = self.state_dict()

    def before_loading(self, optimizer: Any, state_dict: Any) -> Any:
        """Take topoopt's own part out of a state dict that is being loaded."""
        self.rate.restore()
        self._loading = state_dict.get("topoopt") if isinstance(state_dict, dict) else None
        if self._loading is not None:
            return {key: value for key, value in state_dict.items() if key != "topoopt"}
        return None

    def after_loading(self, optimizer: Any) -> None:
        """Take topoopt's own part up, once the optimizer's is in place."""
        state, self._loading = getattr(self, "_loading", None), None
        if state is not None:
            self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on: numbers, strings, lists and dicts, no clock and no NaN; equal for equal runs."""
        return State.of(
            step=self.steps,
            phase=self.phase,
            base_lr=self._base_lr,
            full_rate=self._full_rate,
            steering=self.steering.state_dict(),
            reader=self.reader.state_dict(),
            run=self.about,
        )

    def load_state_dict(self, state: Any) -> None:
        """Continue from `state_dict`'s values, whole or not at all; what cannot be used is said once."""
        try:
            found = taken_up(state)
        except ValueError as error:
            logger.warning("topoopt: the state in this checkpoint is not used (%s); measuring starts anew", error)
            self.faults.counts["state_refused"] += 1
            return
        before = self.steering.state_dict(), self.reader.state_dict()
        try:
            self.steering.load_state_dict(found.steering)
            self.reader.load_state_dict(found.reader)
        except Exception as error:
            self.steering.load_state_dict(before[0])
            self.reader.load_state_dict(before[1])
            logger.warning("topoopt: the state in this checkpoint is not used (%s); measuring starts anew", error)
            self.faults.counts["state_refused"] += 1
            return
        self.steps, self._base_lr, self._full_rate = found.step, found.base_lr, found.full_rate
        self.about = replace(self.about, resumed=found.run_id, resumed_at=found.step)
        self.cadence.resumed(found.step)
        self._disarm()
        self._arm()

    # -- the end -----------------------------------------------------------------------------------------------------

    def summary(self, unfinished: list[str]) -> Summary:
        """What is said of the run now."""
        return Summary(
            run=self.about,
            verdict=self.verdict,
            steps=self.steps,
            readings=self.cadence.readings,
            measurements=self.cadence.measurements,
            seconds=self.cadence.wall,
            share=self.cadence.share,
            setup_seconds=self.setup_seconds,
            counts={**self.faults.totals(), **self.clouds.counts()},
            unfinished=tuple(unfinished),
        )

    def close(self) -> None:
        """Wait for late homology, publish it, end the sinks, take everything off and let go of everything.

        Interrupted while it waits it still closes the sinks; a second call goes on where the first was stopped.
        """
        if self._closed:
            return
        self.rate.restore()
        self._disarm()
        if self._watched is not None:
            self._watched.close()
        try:
            for late in self._arrived(wait=True).values():
                self.sinks.tell("late", late)
        except Exception as error:
            self.faults.note("homology", error)
        finally:
            self._end()

    def _end(self) -> None:
        unfinished: list[str] = []
        try:
            unfinished = self.clouds.close()
        except Exception as error:
            self.faults.note("homology", error)
        self.sinks.tell("end", self.summary(unfinished))
        self.sinks.close()
        self._closed = True
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.reader.forget()
        self.snapshot.forget()
        if self._readings:
            logger.info("topoopt: %s", str(self.verdict).replace("\n", " "))


def _step_frame() -> Any:
    """The frame of the step that our hook was called from."""
    frame: Any = sys._getframe(2)
    return frame.f_back if frame.f_code is Unpickled.__call__.__code__ else frame


def _hook(run: Run, method: str) -> Any:
    """A method of the run as a hook that neither pickles with the optimizer nor is traced by compilers."""
    return Unpickled(getattr(run, method))


def _weakly(run: Run) -> Callable[[int, Decision], None]:
    """Tells the sinks of a change of the factor, without keeping the run alive."""
    known = weakref.ref(run)

    def decided(step: int, decision: Decision) -> None:
        found = known()
        if found is not None:
            found.sinks.tell("decided", step, decision)

    return decided


def _nests(rule: Optimizer) -> bool:
    """Whether a step may call its parent class's, which torch hooks as well."""
    return sum("step" in vars(kind) for kind in own_class(rule).__mro__) > 2


def _with_shares(group: Any, share: float, reading: SpectralReading, name: str) -> Any:
    changes: dict[str, Any] = {"moved_share": share}
    if share < 1:
        note = (
            f"this optimizer moves {share:.0%} of the group's weights: what the others do to them is not in this step"
        )
        changes |= {"notes": (*group.notes, note), "certified": False}
    if reading.group is not None and reading.group[0] == name:
        changes |= {"proximity": reading.group[1], "proximity_step": reading.step}
    return replace(group, **changes)


def _joined(awaited: Any, completed: Any) -> Any:
    """A group with its late homology, and what was added to it since."""
    return replace(
        completed,
        moved_share=awaited.moved_share,
        certified=awaited.certified,
        proximity=awaited.proximity,
        proximity_step=awaited.proximity_step,
        notes=(*awaited.notes, *(n for n in completed.notes if n not in awaited.notes)),
    )
