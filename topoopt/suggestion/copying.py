"""Copies of a model and its optimizer that belong together, and what keeps the originals as they were meanwhile."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.curvature.trial import replica_of
from topoopt.errors import MeasurementError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PART_OF_THE_MODEL = ("torch.nn.utils.", "transformers.")
"""Whose hooks compute weights, or hand one part's states to another. Any other hook is the user's: it does not see a copy."""


def copies(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    """Copies of both, without gradients, the user's hooks, or what schedulers patched into the optimizer.

    Raises:
        MeasurementError: when something in them cannot be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in (*model.parameters(), *(p for group in optimizer.param_groups for p in group["params"])):
        memo[id(parameter)] = _parameter(parameter)
    for module in model.modules():
        for name in HOOKS:
            hooks = getattr(module, name)
            memo[id(hooks)] = OrderedDict((key, hook) for key, hook in hooks.items() if _is_part(hook))
        for value in vars(module).values():  # results that a module keeps: no deep copy takes a tensor with a graph
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo), replica_of(optimizer, memo)
    except (TypeError, RuntimeError) as error:
        raise MeasurementError(f"{type(model).__name__} cannot be copied ({error}), so no rate can be tried") from error


def _parameter(parameter: Tensor) -> Tensor:
    copied = parameter.detach().clone()
    if isinstance(parameter, nn.Parameter):
        return nn.Parameter(copied, parameter.requires_grad)
    return copied.requires_grad_(parameter.requires_grad)


def _is_part(hook: Any) -> bool:
    """A function's own module counts, and a callable object's class's."""
    home = getattr(hook, "__module__", "") if hasattr(hook, "__name__") else type(hook).__module__
    return f"{home}.".startswith(PART_OF_THE_MODEL)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The random generators are at the end where they were, and so are the model's buffers should a forward have met them."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the user's legacy state is kept
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters()} - {torch.device("cpu"), torch.device("meta")}
    host, states = torch.get_rng_state(), [(device, _state(device)) for device in devices]
    try:
        yield
    finally:
        torch.set_rng_state(host)
        for device, state in states:
            _set_state(device, state)
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _state(device: torch.device) -> Tensor:
    module = torch.get_device_module(device)
    try:
        return module.get_rng_state(device)
    except TypeError:  # a kind of device of which there is one (mps)
        return module.get_rng_state()


def _set_state(device: torch.device, state: Tensor) -> None:
    module = torch.get_device_module(device)
    try:
        module.set_rng_state(state, device)
    except TypeError:
        module.set_rng_state(state)


def runs_through(loss: Tensor, parameters: set[int]) -> bool:
    """Whether a backward pass of the loss would leave gradients in any of these parameters (ids)."""
    waiting: list[Any] = [loss.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if id(getattr(node, "variable", None)) in parameters:
            return True
        fresh = {following for following, _ in node.next_functions} - seen
        seen |= fresh
        waiting.extend(fresh)
    return False
