"""One run: what can be asked of it, what a checkpoint keeps of it, its beginning and its end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt.measurement import Measurement
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.attach import Unpickled, acts_after
from topoopt.optimizer.cadence import Due
from topoopt.optimizer.faults import logger
from topoopt.optimizer.instruments import Step
from topoopt.optimizer.sinks import Sink
from topoopt.optimizer.state import State, taken_up
from topoopt.optimizer.step import Stepper
from topoopt.summary import Run as About
from topoopt.summary import Summary


def shown(path: str, doc: str) -> Any:
    """A property that shows something of a part."""
    return property(attrgetter(path), doc=doc)


class Run(Stepper):
    """What belongs to the run of a measured optimizer: found at its `.topo`, with every name that `TopoOptimizer` shows."""

    _handles: tuple[Any, ...] = ()
    _loading: Any = None

    last = shown("history.last", "The latest measurement, or None.")
    readings = shown(
        "history.readings", "Every reading of r so far, measurements' included; a tuple of SpectralReading."
    )
    phase = shown("history.phase", "Phase of the latest reading; UNKNOWN before the first.")
    proximity = shown("history.proximity", "r = eta / eta* of the latest reading; NaN before the first.")
    eta_star = shown("history.eta_star", "eta* for each parameter group at the latest reading; empty before the first.")
    verdict = shown("history.verdict", "What the readings so far say of the learning rate, in words.")
    setup_seconds = shown(
        "neurons.setup_seconds", "Time that finding the neurons took: once, and not booked as measuring."
    )
    clouds = shown("neurons.clouds", "What is kept of the neurons.")

    @property
    def model(self) -> nn.Module:
        """The module that is measured."""
        return self.capture.model

    @model.setter
    def model(self, value: nn.Module) -> None:
        if value is not self.model or self.capture.outdated(self.rule):
            self.ranks.move_to(value)
            self.capture.move_to(value)
            self.arm()

    @property
    def about(self) -> About:
        """Which run it is."""
        return self.history.about

    @about.setter
    def about(self, value: About) -> None:
        self.history.about = value

    @property
    def total_steps(self) -> int | None:
        """Length of the run, when it is known."""
        return self.cadence.total_steps

    @total_steps.setter
    def total_steps(self, value: int | None) -> None:
        self.cadence.total_steps = value
        self.about = replace(self.about, total_steps=value)

    @property
    def groups(self) -> list[NeuronGroup]:
        """The neuron groups that are measured; empty until they have been found."""
        return list(self.neurons.groups.all)

    def add_sink(self, sink: Sink) -> Sink:
        """Add a receiver of measurements."""
        return self.history.sinks.add(sink, self.about)

    def measure(self) -> Measurement:
        """Measure without a step; waits for homology. Errors are the caller's, who asked: they are raised."""
        self.cadence.start(self.steps)
        self.lr_scale = self.steering.decision.scale
        coming, self.step = self.step, Step(Due.MEASUREMENT)
        try:
            self.find_groups()
            self.step.reading = self.history.readings[-1] if self.history.readings else None
            if self.loss is not None:
                seen = self.reader.read(None, self.loss, self.model, None)
                self.step.reading = replace(seen, step=self.steps, lr=self.rate.now())
            self.neurons.before(self.model)
            return self.complete(stood=True, wait=True)
        finally:
            self.step = coming

    # -- attaching ---------------------------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Put the hooks on: neither pickled with the optimizer nor traced by compilers."""
        rule, hooks = self.rule, Unpickled
        handles: list[Any] = []
        if not acts_after(optimizer):
            handles += [
                rule.register_step_pre_hook(hooks(self.before_step)),
                rule.register_step_post_hook(hooks(self.after_step)),
            ]
        handles += [
            rule.register_state_dict_pre_hook(hooks(self.before_saving), prepend=True),
            rule.register_state_dict_post_hook(hooks(self.add_state), prepend=True),
            rule.register_load_state_dict_pre_hook(hooks(self.before_loading), prepend=True),
            rule.register_load_state_dict_post_hook(hooks(self.after_loading), prepend=True),
        ]
        self._handles = tuple(handles)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def before_saving(self, optimizer: Any) -> None:
        """A checkpoint never holds a steered rate."""
        self.give_back()

    def add_state(self, optimizer: Any, state_dict: Any) -> Any:
        """Put topoopt's own part into a state dict; the user's hooks have the last word on it."""
        if isinstance(state_dict, dict):
            state = self._guarded("state", self.state_dict, None)
            if state is not None:
                state_dict["topoopt"] = state

    def before_loading(self, optimizer: Any, state_dict: Any) -> Any:
        """Take topoopt's own part out of a state dict that is being loaded."""
        self.give_back()
        self._loading = state_dict.get("topoopt") if isinstance(state_dict, dict) else None
        if self._loading is not None:
            return {key: value for key, value in state_dict.items() if key != "topoopt"}
        return None

    def after_loading(self, optimizer: Any) -> None:
        """Take topoopt's own part up, once the optimizer's is in place."""
        state, self._loading = self._loading, None
        if state is not None:
            self._guarded("state", partial(self.load_state_dict, state), None)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on: numbers, strings, lists and dicts, no clock and no NaN; equal for equal runs."""
        return State(
            step=self.steps,
            phase=self.phase,
            base_lr=self.rate.base,
            full_rate=self.rate.full,
            steering=self.steering.state_dict(),
            reader=self.reader.state_dict(),
            run=self.about.resumed,
        ).saved()

    def load_state_dict(self, state: Any) -> None:
        """Continue from `state_dict`'s values, whole or not at all; what cannot be used is said once."""
        before = self.steering.state_dict(), self.reader.state_dict()
        try:
            found = taken_up(state)
            try:
                self._go_on(found.steering, found.reader)
            except Exception as error:
                self._go_on(*before)
                raise ValueError(str(error)) from error
        except ValueError as error:
            if self.faults.first("state_refused", str(error)):
                logger.warning("topoopt: the state in this checkpoint is not used (%s); measuring starts anew", error)
            self.faults.counts["state_refused"] += 1
            return
        self.steps, self.rate.base, self.rate.full = found.step, found.base_lr, found.full_rate
        self.about = replace(self.about, resumed=found.run, resumed_at=found.step)
        self.cadence.resumed(found.step)
        self.capture.stop()
        self.arm()

    def _go_on(self, steering: dict[str, Any], reader: dict[str, Any]) -> None:
        self.steering.load_state_dict(steering)
        self.reader.load_state_dict(reader)

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
            counts={**self.faults.totals(), **self.clouds.diagrams.counts()},
            unfinished=tuple(unfinished),
        )

    def close(self) -> None:
        """Wait for late homology, publish it, end the sinks, take everything off and let go of everything.

        Interrupted while it waits it still closes the sinks; a second call goes on where the first was stopped.
        """
        if self.closed:
            return
        self.give_back()
        self._guarded("reading", self.capture.close, None)
        try:
            self._guarded("homology", self._publish_late, None)
        finally:
            self._end()

    def _publish_late(self) -> None:
        for late in self.neurons.completed(wait=True).values():
            self.history.late(late)

    def _end(self) -> None:
        unfinished = self._guarded("homology", self.clouds.close, [])
        summary = self._guarded("summary", partial(self.summary, unfinished), None)
        if summary is not None:
            self.history.sinks.tell("end", summary)
        self.history.sinks.close()
        self.closed = True
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        self.reader.forget()
        self.snapshot.forget()
        if self.readings:
            self._guarded("summary", self._say_verdict, None)

    def _say_verdict(self) -> None:
        logger.info("topoopt: %s", str(self.verdict).replace("\n", " "))
