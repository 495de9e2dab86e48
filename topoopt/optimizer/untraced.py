"""Hooks that compilers leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(hook: F) -> F:
    """Keep a hook out of compiled graphs: it costs one graph break, not a recompilation at every measurement."""
    return torch.compiler.disable(hook)  # type: ignore[return-value]
