"""Step hooks on the innermost torch optimizer: the one place where topoopt touches training.

Whichever object is stepped -- the facade, the bare optimizer, accelerate's wrapper, a scheduler's patched method, a
GradScaler -- ends in the innermost optimizer's own `step`, and torch runs its hooks there exactly once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from topoopt.errors import ConfigError
from topoopt.optimizer.untraced import untraced

_MARK = "_topoopt_hooks"


def innermost(optimizer: Optimizer) -> Optimizer:
    """Follow `.optimizer` through wrappers (accelerate's, our own) down to the optimizer that holds the update rule."""
    seen = {id(optimizer)}
    while True:
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer) or id(inner) in seen:
            return optimizer
        seen.add(id(inner))
        optimizer = inner


Hook = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], None]


def has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the step that a hook was called for has a closure; args[0] is the optimizer."""
    return callable(kwargs.get("closure", args[1] if len(args) > 1 else None))


class StepHooks:
    """Calls `before` and `after` around every step of `base`, as torch calls hooks.

    Raises:
        ConfigError: when another live topoopt is attached to `base`: two factors on one rate would corrupt it.
    """

    def __init__(self, base: Optimizer, before: Hook, after: Hook) -> None:
        attached = getattr(base, _MARK, None)
        if attached is not None and attached() is not None:
            raise ConfigError(
                f"this {type(base).__name__} is already measured by a TopoOptimizer: use that one, or call its "
                "detach() first"
            )
        self._base = base
        # Compiled optimizer steps must not trace into measuring; disabled hooks cost one graph break, not a recompile.
        self._handles = [
            base.register_step_pre_hook(untraced(before)),
            base.register_step_post_hook(untraced(after)),
        ]
        setattr(base, _MARK, weakref.ref(self))

    def remove(self) -> None:
        """Take the hooks off; the optimizer is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if hasattr(self._base, _MARK):
            delattr(self._base, _MARK)
