"""TopoOptimizer: what users hold in their hands, which is the optimizer that they made."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig, TopoOptions
from topoopt.curvature.trial import SESSION
from topoopt.measurement import Measurement
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.dressing import LEFT, Dressing, run_of
from topoopt.optimizer.endings import has_ended
from topoopt.optimizer.run import Run
from topoopt.optimizer.sinks import Sink
from topoopt.summary import Suggested

_Base: Any = object
if TYPE_CHECKING:
    _Base = Optimizer


class _Shown:
    """A name that shows something of the run; what a user sets under it on the object is the user's, and shows instead."""

    def __init__(self, name: str, doc: str) -> None:
        self._name, self.__doc__ = name, doc

    def __get__(self, optimizer: Any, owner: type) -> Any:
        return self if optimizer is None else getattr(run_of(optimizer), self._name)


def _new(rule: type, *args: Any) -> Any:
    """An empty object of the rule's own class, for a copy or a pickle to fill."""
    return rule.__new__(rule, *args)


class TopoOptimizer(_Base, metaclass=Dressing):
    """A torch optimizer that measures how close its steps come to the topological critical learning rate.

    `TopoOptimizer(optimizer, model)` gives back the object it was given, with a class made on the fly
    (`TopoAdamW(TopoOptimizer, AdamW)`): whatever is set, hooked, scheduled, pickled or stepped is the user's own. In report
    mode the weights are bit for bit what they would have been. `detach()` gives the class back; a copy or a pickle of it is
    the bare optimizer.

    r is read from the step that the user takes: no `loss=` is needed.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a wrapper around one.
        model: the module whose neurons are measured; its parameters are the optimizer's (or some of them).
        config: settings; keyword `options` are `TopoConfig`'s fields and go over it.
        loss: zero-argument callable that runs a forward pass on a probe of the user's own and returns a scalar tensor or an
            object with `.loss`; r is then of that loss instead of the step's own.
        groups: neuron groups to measure instead of those that `topoopt.discover` finds; they are verified all the same.

    Raises:
        PartitionedError: under DeepSpeed and FSDP1, which keep no neuron whole.
        ConfigError: for arguments that cannot work together, each named with what to do.

    Source: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670 (Theorem 1).
    """

    _topoopt_rule: ClassVar[type]

    if TYPE_CHECKING:

        def __init__(
            self,
            optimizer: Optimizer,
            model: nn.Module,
            config: TopoConfig | None = None,
            *,
            loss: Callable[[], Any] | None = None,
            groups: Iterable[NeuronGroup] | None = None,
            **options: Unpack[TopoOptions],
        ) -> None: ...

    measured = _Shown("measured", "Whether the step just taken was measured.")
    last = _Shown("last", "The latest measurement, or None.")
    readings = _Shown("readings", "Every reading of r so far, measurements' included; a tuple of SpectralReading.")
    phase = _Shown("phase", "Phase of the latest reading; UNKNOWN before the first.")
    proximity = _Shown("proximity", "r = eta / eta* of the latest reading; NaN before the first.")
    eta_star = _Shown("eta_star", "eta* for each parameter group at the latest reading; empty before the first.")
    verdict = _Shown("verdict", "What the readings so far say of the learning rate, in words.")
    lr_scale = _Shown("lr_scale", "The factor on the user's learning rate in the last step.")
    setup_seconds = _Shown("setup_seconds", "Time that finding the neurons took: once, and not booked as measuring.")
    groups = _Shown("groups", "The neuron groups that are measured; empty until they have been found.")
    config = _Shown("config", "The settings in force.")

    @property
    def topo(self) -> Run:
        """The run: every name of this class, also where the optimizer has one of its own."""
        return run_of(self)

    @property
    def model(self) -> nn.Module:
        """The module that is measured; set it where something (DDP, accelerate) has wrapped it since."""
        return run_of(self).model

    @model.setter
    def model(self, value: nn.Module) -> None:
        run_of(self).model = value

    @property
    def loss(self) -> Callable[[], Any] | None:
        """The probe's loss, where one was given; may be set at any time."""
        return run_of(self).loss

    @loss.setter
    def loss(self, value: Callable[[], Any] | None) -> None:
        run_of(self).loss = value

    @property
    def total_steps(self) -> int | None:
        """Length of the run, for the budget's plan and for schedules whose keys are fractions; may be set at any time."""
        return run_of(self).total_steps

    @total_steps.setter
    def total_steps(self, value: int | None) -> None:
        run_of(self).total_steps = value

    @property
    def suggested(self) -> Suggested | None:
        """The rate that was looked for before the run, for the record; set it before sinks are added."""
        return run_of(self).about.suggested

    @suggested.setter
    def suggested(self, value: Suggested | None) -> None:
        run = run_of(self)
        run.about = replace(run.about, suggested=value)

    @property
    def steps(self) -> int:
        """Steps taken so far; set it where training resumes without topoopt's own state."""
        return run_of(self).steps

    @steps.setter
    def steps(self, value: int) -> None:
        run_of(self).steps = int(value)

    @property
    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """(args, kwargs) of a forward, for discovery; taken from the model's first forward when not set."""
        return run_of(self).neurons.groups.example_inputs

    @example_inputs.setter
    def example_inputs(self, value: tuple[tuple[Any, ...], dict[str, Any]] | None) -> None:
        run_of(self).neurons.groups.example_inputs = value

    def add_sink(self, sink: Sink) -> Sink:
        """Send every measurement to `sink`, a callable that takes one (closed by `detach` if it has `close()`).

        It may also have `begin(run)`, `reading(reading)`, `decided(step, decision)`, `verdict(step, verdict)` and
        `end(summary)`; see `topoopt.summary`.
        """
        return run_of(self).add_sink(sink)

    def measure(self) -> Measurement:
        """Measure the weights as they stand, now and without a step, and wait for homology. Sinks get it too.

        r is that of the step the optimizer would take next where `loss=` was given, else the last reading's; gain and step
        distortion are of no step: 0 and (1, 1).
        """
        return run_of(self).measure()

    def topo_state_dict(self) -> dict[str, Any]:
        """Return topoopt's own part of a checkpoint: numbers, strings, lists and dicts, the same for equal runs."""
        return run_of(self).state_dict()

    def load_topo_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `topo_state_dict` gave, whole or not at all: what is unusable is said once, and measuring starts anew."""
        run_of(self).load_state_dict(state)

    def detach(self) -> Any:
        """Collect what is still on its way, close the sinks, take the hooks off and give the optimizer its class back.

        `last`, `readings` and `verdict` stay on it as plain attributes, with what they hold at the end.
        """
        run, own = run_of(self), self.__dict__
        run.close()
        has_ended(run)
        left = {"last": run.last, "readings": run.readings, "verdict": run.verdict}
        rule = type(self)._topoopt_rule
        del own[SESSION]
        self.__class__ = rule  # type: ignore[assignment]
        free = {name: value for name, value in left.items() if not hasattr(self, name)}
        own |= {**free, LEFT: tuple(free)}
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy or a pickle is the bare optimizer's."""
        rule = type(self)._topoopt_rule
        make, args, *rest = super().__reduce_ex__(protocol)  # type: ignore[misc]
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]  # which pickle takes for objects of its class alone
            make, args = _new, (rule, *args[1:])
        if rest and isinstance(rest[0], dict) and SESSION in rest[0]:
            rest[0] = {key: value for key, value in rest[0].items() if key != SESSION}
        return (make, args, *rest)
