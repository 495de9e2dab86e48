"""TopoOptimizer: what users hold in their hands."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.measurement import Measurement, Phase
from topoopt.neurons import NeuronGroup
from topoopt.optimizer.arguments import check_arguments
from topoopt.optimizer.hooks import StepHooks, innermost
from topoopt.optimizer.session import Session
from topoopt.optimizer.sinks import Sink

KEY = "topoopt"


class TopoOptimizer(Optimizer):
    """A torch optimizer that measures how close its steps come to the topological critical learning rate.

    It *is* the optimizer it wraps: `param_groups`, `state`, `defaults`, hooks and everything else are the wrapped
    one's, and stepping either object is the same step. In report mode the weights are bit for bit what they would
    have been.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a wrapper around one.
        model: the module whose neurons are measured; its parameters are the optimizer's (or some of them).
        config: settings; keyword `options` are `TopoConfig`'s fields and go over it.
        loss: zero-argument callable that runs a forward pass on the current (or a fixed) batch and returns a scalar
            tensor or an object with `.loss`. Without it there is no spectral estimate of eta*.
        groups: neuron groups to measure instead of those that `topoopt.discover` finds; they are verified all the same.

    Raises:
        PartitionedError: under DeepSpeed and FSDP1, which keep no neuron whole.
        ConfigError: for arguments that cannot work together, each named with what to do.

    Source: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670 (Theorem 1).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        config: TopoConfig | None = None,
        *,
        loss: Callable[[], Any] | None = None,
        groups: Iterable[NeuronGroup] | None = None,
        **options: Any,
    ) -> None:
        # Optimizer.__init__ is not called: it would make a second set of parameter groups and hooks.
        check_arguments(optimizer, model, loss)
        settings = TopoConfig.from_options(config, options)
        base = innermost(optimizer)
        self._session = Session(base, model, settings, loss=loss, groups=None if groups is None else list(groups))
        self._hooks: StepHooks | None = StepHooks(base, self._session.before_step, self._session.after_step)
        self.optimizer = optimizer

    # -- the wrapped optimizer ---------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The wrapped optimizer's parameter groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.param_groups = value

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, value: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.optimizer.defaults = value

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the wrapped optimizer; its hooks measure and steer."""
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimizer's."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the wrapped optimizer's."""
        self.optimizer.add_param_group(param_group)

    def register_step_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register on the wrapped optimizer."""
        return self.optimizer.register_step_pre_hook(*args, **kwargs)

    def register_step_post_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register on the wrapped optimizer."""
        return self.optimizer.register_step_post_hook(*args, **kwargs)

    def register_state_dict_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register on the wrapped optimizer."""
        return self.optimizer.register_state_dict_pre_hook(*args, **kwargs)

    def register_state_dict_post_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register on the wrapped optimizer."""
        return self.optimizer.register_state_dict_post_hook(*args, **kwargs)

    def register_load_state_dict_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register on the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_pre_hook(*args, **kwargs)

    def register_load_state_dict_post_hook(self, *args: Any, **kwargs: Any) -> Any:
        """Register on the wrapped optimizer."""
        return self.optimizer.register_load_state_dict_post_hook(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the wrapped optimizer's."""
        # A GradScaler that believed the facade to be a fused optimizer would hand `found_inf` to the wrong object, and
        # an overflow would be applied: the facade always takes the scaler's plain, unscaling path.
        if name in ("_step_supports_amp_scaling", "optimizer", "_session", "_hooks"):
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        return f"TopoOptimizer({self.config.policy.name}, every={self.config.every}, {self.optimizer!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        """A copy of the wrapped optimizer: hooks, sinks and clouds belong to one run and are not copied."""
        return copy.deepcopy(self.optimizer, memo)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a TopoOptimizer is not pickled as a whole: save its state_dict() instead")

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict, loadable by it alone, plus one key "topoopt"."""
        return {**self.optimizer.state_dict(), KEY: self.topo_state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of the bare optimizer; without "topoopt" measuring simply starts anew."""
        rest = {key: value for key, value in state_dict.items() if key != KEY}
        self.optimizer.load_state_dict(rest)
        if KEY in state_dict:
            self.load_topo_state_dict(state_dict[KEY])

    def topo_state_dict(self) -> dict[str, Any]:
        """Return topoopt's own part: numbers, strings, lists, dicts and tensors only."""
        return self._session.state_dict()

    def load_topo_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `topo_state_dict` gave."""
        self._session.load_state_dict(state)

    # -- measuring ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> TopoConfig:
        """The settings in force."""
        return self._session.config

    @property
    def model(self) -> nn.Module:
        """The module that is measured; set it where something (DDP, accelerate) has wrapped it since."""
        return self._session.observer.model

    @model.setter
    def model(self, value: nn.Module) -> None:
        self._session.observer.model = value

    @property
    def loss(self) -> Callable[[], Any] | None:
        """The probe's loss; may be set at any time."""
        return self._session.observer.loss

    @loss.setter
    def loss(self, value: Callable[[], Any] | None) -> None:
        self._session.observer.loss = value

    @property
    def total_steps(self) -> int | None:
        """Length of the run, for schedules whose keys are fractions; may be set at any time."""
        return self._session.total_steps

    @total_steps.setter
    def total_steps(self, value: int | None) -> None:
        self._session.total_steps = value

    @property
    def steps(self) -> int:
        """Steps taken so far; set it where training resumes without topoopt's own state."""
        return self._session.step

    @steps.setter
    def steps(self, value: int) -> None:
        self._session.step = int(value)

    @property
    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """(args, kwargs) of a forward, for discovery; taken from the model's first forward when not set."""
        return self._session.observer.example_inputs

    @example_inputs.setter
    def example_inputs(self, value: tuple[tuple[Any, ...], dict[str, Any]] | None) -> None:
        self._session.observer.example_inputs = value

    @property
    def groups(self) -> list[NeuronGroup]:
        """The neuron groups that are measured; empty until the first measurement has found them."""
        return list(self._session.observer.groups)

    @property
    def measured(self) -> bool:
        """Whether the step just taken was measured."""
        return self._session.measured

    @property
    def last(self) -> Measurement | None:
        """The latest measurement, or None."""
        return self._session.last

    @property
    def phase(self) -> Phase:
        """Phase at the latest measurement; UNKNOWN before the first."""
        return self.last.phase if self.last else Phase.UNKNOWN

    @property
    def proximity(self) -> float:
        """R = eta / eta* at the latest measurement; NaN before the first."""
        return self.last.proximity if self.last else float("nan")

    @property
    def eta_star(self) -> tuple[float, ...]:
        """eta* for each parameter group at the latest measurement; empty before the first."""
        return self.last.eta_star if self.last else ()

    @property
    def setup_seconds(self) -> float:
        """Time that finding the neurons took: once, and not booked as measuring."""
        return self._session.observer.setup_seconds

    @property
    def lr_scale(self) -> float:
        """The factor on the user's learning rate in force."""
        return self._session.lr_scale

    def add_sink(self, sink: Sink) -> Sink:
        """Send every measurement to `sink`, a callable that takes one (closed by `detach` if it has `close()`)."""
        return self._session.sinks.add(sink)

    def measure(self) -> Measurement:
        """Measure the weights as they stand, now and without a step, and wait for homology. Sinks get it too.

        r is that of the step the optimizer would take next; gain and step distortion are of no step: 0 and (1, 1).
        """
        return self._session.measure_now()

    def detach(self) -> Optimizer:
        """Collect what is still on its way, close the sinks, take the hooks off and return the wrapped optimizer."""
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
            self._session.close()
        return self.optimizer
