"""A copy of an optimizer that can be stepped without the original noticing."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from topoopt.errors import MeasurementError, NotDefinedError

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def displacement(optimizer: Optimizer, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """What the optimizer's own next step would move `parameters` by, given these gradients; nothing is changed.

    The step is taken by a copy, on copies of the weights and of the state, without hooks. Weights of the optimizer that
    are not among `parameters` have no gradient in it, so the copy leaves them alone. It is taken in float64 where the
    optimizer lets it, since differences of moves that are small beside the weights would be rounding in float32; a rule
    that casts to 16 bits on its way (Muon's orthogonalisation) is followed without the cast.

    Raises:
        MeasurementError: when the step needs a closure, or something that the optimizer holds cannot be copied.
    """
    step = _bare_step(optimizer)

    def moves(*, precise: bool) -> list[Tensor]:
        replica, replaced = _replica(optimizer, precise)
        for parameter, grad in zip(parameters, grads):
            own = replaced[id(parameter)]
            own.grad = None if grad is None else grad.detach().clone().to(own.dtype)
        with _AsPrecise() if precise else nullcontext():
            step(replica)
        return [(replaced[id(p)] - p).detach() for p in parameters]

    try:
        return moves(precise=True)
    except (RuntimeError, TypeError, AssertionError, ValueError):  # a kernel or a device that knows no float64
        return moves(precise=False)


class _AsPrecise(TorchFunctionMode):
    """Casts to 16 bits give a copy in the precision that the tensor has: the rule is followed, not its rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in (Tensor.bfloat16, Tensor.half):
            return args[0].clone()
        if func in (Tensor.to, Tensor.type) and any(_is_coarse(a) for a in (*args[1:], *named.values())):
            own = args[0].dtype
            args = (args[0], *(own if _is_coarse(a) else a for a in args[1:]))
            named = {key: own if _is_coarse(value) else value for key, value in named.items()}
            cast = func(*args, **named)
            return cast.clone() if cast is args[0] else cast  # what follows may work in its place
        return func(*args, **named)


def _is_coarse(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in (torch.bfloat16, torch.float16)


def _bare_step(optimizer: Optimizer) -> Callable[[Any], Any]:
    """The class's step without torch's profiling wrapper, whose hooks (global ones too) are not ours to fire."""
    step: Any = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise NotDefinedError(
            f"{type(optimizer).__name__}.step needs a closure and evaluates the loss as often as it likes: its step is "
            "no function of one gradient, so it has no Jacobian of this kind"
        )
    return step


@torch.no_grad()
def _replica(optimizer: Optimizer, precise: bool) -> tuple[Any, dict[int, Tensor]]:
    """An object of the same class with copies of all it holds; weights are replaced wherever they are referred to."""
    replica = object.__new__(type(optimizer))
    replaced = {
        id(p): (_wide(p) if precise else p.detach().clone()).requires_grad_(p.requires_grad)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    memo: dict[int, Any] = {id(optimizer): replica, **replaced}
    skipped = {"step", "_topoopt_hooks", *HOOKS}  # `step`: patched by schedulers
    for name, value in vars(optimizer).items():
        if name in skipped:
            continue
        try:
            replica.__dict__[name] = copy.deepcopy(value, memo)
        except (TypeError, RuntimeError) as error:
            raise MeasurementError(
                f"{type(optimizer).__name__}.{name} cannot be copied ({error}), so its step cannot be tried on the side"
            ) from error
    for name in HOOKS:
        replica.__dict__[name] = OrderedDict()
    for state in replica.state.values() if precise else ():
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Tensor) and value.ndim:  # scalars are step counts, whose type kernels insist on
                state[key] = _wide(value)
    return replica, replaced


def _wide(tensor: Tensor) -> Tensor:
    """A copy, in float64 if it holds real numbers."""
    return tensor.detach().clone().to(torch.float64 if tensor.is_floating_point() else tensor.dtype)
