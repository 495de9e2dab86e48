"""Evaluating the loss on the side: whatever it changes is put back, bit for bit, and each evaluation sees the same noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoopt.errors import MeasurementError
from topoopt.sharding import is_sharded

Loss = Callable[[], Any]


class Probe:
    """Runs a loss repeatedly without leaving a trace: random generators, buffers and autocast are as they were.

    Modules run without autocast: a weight moved by a finite difference would be rounded back to where it was. Dropout
    draws the same mask at every evaluation. BatchNorm stays in the mode it is in; its running statistics are saved and
    put back. Data-parallel wrappers are told not to expect a backward pass.
    """

    def __init__(self, loss: Loss, model: nn.Module | None = None, seed: int = 0) -> None:
        self._loss, self.model, self._seed = loss, model, seed
        self.size = 0
        """First dimension of the first tensor that enters the model: the probe's batch size."""
        self.weight_types: set[torch.dtype] = set()
        """Types of sharded weights as the forward sees them: FSDP2 may hand out other ones than it keeps."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """All evaluations of one estimate happen inside."""
        with ExitStack() as stack:
            stack.enter_context(_random_state())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_full_precision(self.model))
            if self.model is not None:
                stack.enter_context(_buffers(self.model))
                stack.enter_context(self._batch_size(self.model))
                stack.enter_context(self._types_of_shards(self.model))
                for module in self.model.modules():
                    if hasattr(module, "require_backward_grad_sync"):
                        stack.enter_context(module.no_sync())  # type: ignore[operator]
            else:
                stack.enter_context(_buffers_of_whoever_runs())
            yield

    def evaluate(self) -> Tensor:
        """Run the forward and return the scalar loss with its graph.

        Raises:
            MeasurementError: when the loss is no scalar tensor with a graph.
        """
        torch.manual_seed(self._seed)
        result = self._loss()
        loss = result if isinstance(result, Tensor) else getattr(result, "loss", result)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise MeasurementError(
                f"loss() returned a {type(result).__name__}: return a scalar tensor or an object with .loss"
            )
        if not loss.requires_grad:
            raise MeasurementError(
                "loss() has no graph to the weights: run the forward inside it, without torch.no_grad()"
            )
        return loss.reshape(())

    @contextmanager
    def _batch_size(self, model: nn.Module) -> Iterator[None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim), None)
            self.size = self.size if first is None else int(first.shape[0])

        hook: Any = torch.compiler.disable(see)
        handle = model.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _types_of_shards(self, model: nn.Module) -> Iterator[None]:
        def see(module: nn.Module, args: Any) -> None:
            self.weight_types.update(p.dtype for p in module.parameters(recurse=False) if p.is_floating_point())

        owners = [m for m in model.modules() if any(is_sharded(p) for p in m.parameters(recurse=False))]
        with ExitStack() as stack:
            for module in owners:
                stack.callback(module.register_forward_pre_hook(torch.compiler.disable(see)).remove)  # type: ignore[arg-type]
            yield


@contextmanager
def _random_state() -> Iterator[None]:
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the user's legacy state is kept
    devices = (
        list(range(torch.cuda.device_count())) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    )
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002


@contextmanager
def _full_precision(model: nn.Module | None) -> Iterator[None]:
    """Autocast off, around the probe and again in each module that is run inside an autocast block of the loss's own.

    Of a compiled model only the outside is watched: hooks on what is compiled would have it compiled anew.
    """
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    def switch_off(module: nn.Module, args: Any) -> None:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                torch.set_autocast_enabled(kind, False)  # the block puts back what it found, when it ends

    hook: Any = torch.compiler.disable(switch_off)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if model is None:
            stack.callback(nn.modules.module.register_module_forward_pre_hook(hook).remove)
        else:
            for module in [model] if _is_compiled(model) else model.modules():
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules())


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        _put_back(saved)


@contextmanager
def _buffers_of_whoever_runs() -> Iterator[None]:
    """Without a model at hand: save each module's buffers when its forward is first called."""
    saved: dict[int, tuple[Tensor, Tensor]] = {}

    def save(module: nn.Module, args: Any) -> None:
        for buffer in module.buffers(recurse=False):
            saved.setdefault(id(buffer), (buffer, buffer.detach().clone()))

    handle = nn.modules.module.register_module_forward_pre_hook(save)
    try:
        yield
    finally:
        handle.remove()
        _put_back(list(saved.values()))


@torch.no_grad()
def _put_back(saved: Sequence[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in saved:
        buffer.copy_(value)
