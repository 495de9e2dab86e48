"""The probe: the last training batch and its loss again, for loops that keep neither where topoopt could see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from topoopt.errors import MeasurementError

LossOf = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class BatchProbe:
    """A zero-argument loss for `TopoOptimizer(loss=...)`: the model's own, on the batch of its last training forward.

    The batch is seen by a forward pre-hook; forwards in evaluation mode or without gradients leave it alone. With
    gradient accumulation it is the last micro-batch. The forward is taken in the parameters' own precision, autocast
    switched off: curvature read through half-precision activations is mostly rounding.

    Args:
        model: the module that training calls, wrapped or not.
        loss: `loss(module, args, kwargs)` runs the unwrapped module and returns a scalar tensor. Default: call the
            module and take its output's `loss`, or first element.

    Raises:
        MeasurementError: when called before any training forward, or when the output holds no loss.
    """

    def __init__(self, model: nn.Module, loss: LossOf | None = None) -> None:
        self._module = innermost_module(model)
        self._loss = loss or loss_of_output
        self._batch: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._running = False
        see: Any = torch.compiler.disable(self._see)
        self._handle = model.register_forward_pre_hook(see, with_kwargs=True)

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled() and not self._running:
            self.keep(args, kwargs)

    def keep(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take this batch as the last one; its tensors are kept by reference."""
        # The number of items of all accumulated micro-batches would scale the loss of one of them down.
        kwargs = {key: value for key, value in kwargs.items() if key != "num_items_in_batch"}
        self._batch = tree_map(_detach, (args, kwargs))

    def __call__(self) -> Tensor:
        """Run the model on the last batch and return its loss."""
        if self._batch is None:
            raise MeasurementError("the probe has seen no training forward yet: no batch to take the loss of")
        args, kwargs = self._batch
        self._running = True
        try:
            with full_precision(self._module):
                return self._loss(self._module, args, dict(kwargs))
        finally:
            self._running = False

    def close(self) -> None:
        """Remove the hook and let go of the batch."""
        self._handle.remove()
        self._batch = None


def loss_of_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Call the module and return the loss that its output carries: `.loss`, `["loss"]` or the first element."""
    output = module(*args, **kwargs)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None and isinstance(output, tuple):
        loss = output[0]
    if loss is None and isinstance(output, Tensor):
        loss = output
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise MeasurementError(
            f"the output of {type(module).__name__} ({type(output).__name__}) holds no scalar loss: give the model "
            "labels, or topoopt a loss of its own"
        )
    return loss.reshape(())


def innermost_module(model: nn.Module) -> nn.Module:
    """Follow DDP's `.module` and torch.compile's `._orig_mod` down to the module that was written by the user."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def full_precision(module: nn.Module) -> Iterator[None]:
    """Switch autocast off, the one that accelerate has wrapped around `module.forward` included."""
    device = next((p.device.type for p in module.parameters()), "cpu")
    patched = module.__dict__.get("forward")
    original = module.__dict__.get("_original_forward")
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device, enabled=False))
        if patched is not None and original is not None:
            module.forward = original  # type: ignore[method-assign]
            stack.callback(setattr, module, "forward", patched)
        yield


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
