"""The class that a measured optimizer is given, made on the fly: the user's own, with topoopt's names and bracketed steps."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.curvature.trial import SESSION
from topoopt.errors import ConfigError
from topoopt.optimizer.attach import acts_after, check_arguments
from topoopt.optimizer.endings import ends_with
from topoopt.optimizer.run import Run

logger = logging.getLogger("topoopt")
LEFT = "_topoopt_left"
"""Names of what `detach` left on an optimizer: the next run's take their place."""


def run_of(optimizer: Any) -> Run:
    """What belongs to the run of a measured optimizer."""
    run = vars(optimizer).get(SESSION)
    if run is None:
        raise AttributeError(f"this {type(optimizer).__name__} is not measured (any more)")
    return run


class _Own:
    """A name that was an attribute of the user's own object before it was measured, and goes on being that."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type) -> Any:
        if optimizer is None:
            return self
        try:
            return vars(optimizer)[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, optimizer: Any, value: Any) -> None:
        vars(optimizer)[self._name] = value

    def __delete__(self, optimizer: Any) -> None:
        del vars(optimizer)[self._name]


class Dressing(type):
    """Calling `TopoOptimizer` dresses an optimizer instead of making one."""

    _dressed: ClassVar[weakref.WeakValueDictionary[tuple[type, type, bool, tuple[str, ...]], type]] = (
        weakref.WeakValueDictionary()
    )

    if not TYPE_CHECKING:  # type checkers take the call from `TopoOptimizer.__init__`

        def __call__(cls, *args: Any, **options: Any) -> Any:
            """Measure an optimizer; see the class. Calling the class of a measured one makes a bare one."""
            bare = vars(cls).get("_topoopt_rule")
            return bare(*args, **options) if bare is not None else cls._dress(*args, **options)

    def _dress(cls, optimizer: Any, model: Any, config: TopoConfig | None = None, **options: Any) -> Any:
        loss, groups = options.pop("loss", None), options.pop("groups", None)
        if SESSION in getattr(optimizer, "__dict__", {}):
            raise ConfigError(
                f"this {type(optimizer).__name__} is measured already: use it as it is, or call its detach() first"
            )
        check_arguments(optimizer, model, loss)
        settings = TopoConfig.from_options(config, options)
        run = Run(optimizer, model, settings, loss=loss, groups=None if groups is None else list(groups))
        bare = type(optimizer)
        for name in vars(optimizer).pop(LEFT, ()):  # of an earlier run
            vars(optimizer).pop(name, None)
        try:
            optimizer.__class__ = cls._class_for(optimizer, settings.policy.steers)
        except TypeError as error:
            run.close()
            raise ConfigError(
                f"{bare.__name__} cannot be given another class ({error}): it has __slots__, or is not written in Python"
            ) from error
        vars(optimizer)[SESSION] = run
        run.attach(optimizer)
        ends_with(optimizer, run)
        return optimizer

    def _class_for(cls, optimizer: Optimizer, steers: bool) -> type:
        """The class of a measured optimizer; names of ours that it uses itself stay its own."""
        rule = type(optimizer)
        public = [n for kind in cls.__mro__ if isinstance(kind, Dressing) for n in vars(kind) if not n.startswith("_")]
        taken = tuple(name for name in public if name in vars(optimizer) or hasattr(rule, name))
        known = Dressing._dressed.get((cls, rule, steers, taken))
        if known is not None:
            return known
        if taken:
            logger.info("topoopt: %s has its own %s: topoopt's are found at .topo", rule.__name__, ", ".join(taken))
        space: dict[str, Any] = {"_topoopt_rule": rule, "__module__": rule.__module__, "__doc__": rule.__doc__}
        for name in taken:
            space[name] = _Own(name) if name in vars(optimizer) else _static(rule, name)
        space |= _steps(rule, steers=steers, outer=acts_after(optimizer))
        made = type.__new__(Dressing, f"Topo{rule.__name__}", (cls, rule), space)
        Dressing._dressed[cls, rule, steers, taken] = made
        return made


def _static(rule: type, name: str) -> Any:
    return next(vars(kind)[name] for kind in rule.__mro__ if name in vars(kind))


def _steps(rule: type, *, steers: bool, outer: bool) -> dict[str, Any]:
    """The methods of a measured optimizer that are bracketed, because hooks on the inner rule would not do.

    A steered one takes the factor off whatever is raised, before anyone can see it. A wrapper that acts after the inner step
    (Lookahead) is measured around its own; one that steps twice (SAM) from its first step to the end of its second.
    """
    if outer and hasattr(rule, "first_step") and hasattr(rule, "second_step"):
        return {"first_step": _bracketed(rule, "first_step", end=False), "second_step": _bracketed(rule, "second_step")}
    if outer:
        return {"step": _bracketed(rule, "step")}
    return {"step": _restoring(rule)} if steers else {}


def _restoring(rule: type) -> Callable[..., Any]:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return rule.step(self, *args, **kwargs)  # type: ignore[attr-defined]
        finally:
            run = vars(self).get(SESSION)
            if run is not None:
                run.give_back()

    return _as_torch_knows_it(step, rule.step)  # type: ignore[attr-defined]


def _bracketed(rule: type, name: str, *, end: bool = True) -> Callable[..., Any]:
    inner = getattr(rule, name)

    def bracketed(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = vars(self).get(SESSION)
        if run is None:
            return inner(self, *args, **kwargs)
        if end:
            args, kwargs = run.before_step(self, (self, *args), kwargs) or ((self, *args), kwargs)
            args = args[1:]
        else:
            run.begin_early()
        try:
            result = inner(self, *args, **kwargs)
        finally:
            run.give_back()
        if end:
            run.after_step(self, (), {})
        return result

    return _as_torch_knows_it(bracketed, inner)


def _as_torch_knows_it(method: Callable[..., Any], inner: Any) -> Callable[..., Any]:
    method.hooked = True  # type: ignore[attr-defined]  # torch wraps the rule's own, which runs the hooks
    method.__wrapped__ = getattr(inner, "__wrapped__", inner)  # type: ignore[attr-defined]
    return method
