"""The model's inputs, taken from its first forward, so that discovery needs no example from the user."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from topoopt.optimizer.untraced import untraced


class InputCapture:
    """Holds the arguments of the first forward of `model` until `take` is called; costs one dict look-up a forward."""

    def __init__(self, model: nn.Module) -> None:
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._handle = model.register_forward_pre_hook(untraced(self._see), with_kwargs=True)

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inputs is None:
            self._inputs = tree_map(_detach, (args, dict(kwargs)))

    @property
    def ready(self) -> bool:
        """Whether a forward has been seen."""
        return self._inputs is not None

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return (args, kwargs) of the first forward and stop watching; None, and go on watching, if none ran yet."""
        if self._inputs is None:
            return None
        inputs, self._inputs = self._inputs, None
        self.close()
        return inputs

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf
