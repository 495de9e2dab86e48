"""Hooks that compilers leave alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(hook: F) -> F:
    """Keep a hook out of compiled graphs: it costs one graph break there, not a recompilation at every measurement.

    Outside of them the hook is called as it is: torch's own switch takes microseconds, on every step.
    """
    disabled = torch.compiler.disable(hook)

    @wraps(hook)
    def choose(*args: Any, **kwargs: Any) -> Any:
        return disabled(*args, **kwargs) if torch.compiler.is_compiling() else hook(*args, **kwargs)

    return cast(F, choose)
