"""Trying an optimizer's step on the side: a copy takes it, and what an unknown rule is like is told from what it did."""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from topoopt import sharding
from topoopt.errors import MeasurementError, NotDefinedError

SESSION = "_topoopt"
"""Where a measured optimizer keeps what belongs to the run; no part of the optimizer."""
HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def displacement(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    *,
    at: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """What the optimizer's own next step would move `parameters` by, given these gradients; nothing is changed.

    With `at` the weights are these, and not those that stand there.

    The step is taken by a copy, on copies of the weights and of the state, without hooks. Weights of the optimizer that
    are not among `parameters` have no gradient in it, so the copy leaves them alone. It is taken in float64 where the
    optimizer lets it, since differences of moves that are small beside the weights would be rounding in float32; a rule
    that casts to 16 bits on its way (Muon's orthogonalisation) is followed without the cast.

    Raises:
        MeasurementError: when the step needs a closure, or something that the optimizer holds cannot be copied.
    """
    step = bare_step(optimizer)

    def moves(*, precise: bool) -> list[Tensor]:
        replica, replaced = _replica(optimizer, precise)
        for parameter, grad in zip(parameters, grads):
            own = replaced[id(parameter)]
            own.grad = None if grad is None else grad.detach().clone().to(own.dtype)
        start = [p.detach() for p in parameters] if at is None else list(at)
        with torch.no_grad():
            for parameter, value in zip(parameters, at or ()):
                replaced[id(parameter)].copy_(value)
        with _AsPrecise() if precise else nullcontext():
            step(replica)
        return [(replaced[id(p)] - x).detach() for p, x in zip(parameters, start)]

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


def own_class(optimizer: Any) -> Any:
    """The class that the user made the optimizer with: a measured one has a class of its own in front of it."""
    return getattr(type(optimizer), "_topoopt_rule", None) or type(optimizer)


def bare_step(optimizer: Optimizer) -> Callable[[Any], Any]:
    """The class's step without torch's profiling wrapper, whose hooks (global ones too) are not ours to fire."""
    step: Any = own_class(optimizer).step
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
    replaced = {
        id(p): (_wide(p) if precise else p.detach().clone()).requires_grad_(p.requires_grad)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    replica = replica_of(optimizer, dict(replaced))
    for state in replica.state.values() if precise else ():
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Tensor) and value.ndim:  # scalars are step counts, whose type kernels insist on
                state[key] = _wide(value)
    return replica, replaced


def replica_of(optimizer: Optimizer, memo: dict[int, Any]) -> Any:
    """An object of the same class with copies of all it holds but hooks; `memo` says what takes the place of the weights.

    Raises:
        MeasurementError: when something that the optimizer holds cannot be copied.
    """
    replica = object.__new__(own_class(optimizer))
    memo[id(optimizer)] = replica
    skipped = {"step", SESSION, "_topoopt_rates", *HOOKS}  # `step`: patched by schedulers
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
    return replica


def _wide(tensor: Tensor) -> Tensor:
    """A copy, in float64 if it holds real numbers."""
    return tensor.detach().clone().to(torch.float64 if tensor.is_floating_point() else tensor.dtype)


ENOUGH = 8
"""Fewest changed entries that can show that all have one length."""
SAME = 1e-6
"""Moves that differ by less, relative to the largest, are the same."""


class Behaviour(StrEnum):
    """How a step depends on the gradient."""

    SIGNS = "signs"
    """Through signs alone: it has no Lipschitz constant in it."""
    COORDINATE_WISE = "coordinate-wise"
    """Each weight's move depends on its own gradient alone."""
    ANY = "any"
    """In any way."""
    UNKNOWN = "unknown"
    """The step is not finite, which tells nothing."""


def behaviour(optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Behaviour:
    """Try the next step with this gradient, with another one, and with a mixture of the two.

    In the other one every entry is larger, by its own factor, and half of them are turned over. Decay cancels; what is left
    of a step by signs is 0 or one length, the same all over a tensor (so is Adam's very first step). A coordinate-wise
    step moves each weight by the mixture as by the gradient that its entry came from.
    """
    pairs = [(p, g) for p, g in zip(parameters, gradients) if g is not None]
    parameters, gradient = [p for p, _ in pairs], [g for _, g in pairs]
    generator = torch.Generator().manual_seed(0)
    other, chosen = [], []
    for g in gradient:
        sizes = 10 ** (2 * torch.rand(g.shape, generator=generator, device="cpu"))  # enough to turn an average over
        flips = torch.randint(0, 2, g.shape, generator=generator, device="cpu") * 2 - 1
        other.append(g * _as(g, (sizes * flips).to(g.dtype)))
        chosen.append(_as(g, _half(g.shape, generator)))
    mixed = [torch.where(c, o, g) for c, o, g in zip(chosen, other, gradient)]
    here, there, between = (displacement(optimizer, parameters, grads) for grads in (gradient, other, mixed))
    if not math.isfinite(sharding.total_norm(here)):
        return Behaviour.UNKNOWN
    if _one_length([a - b for a, b in zip(here, there)]):
        return Behaviour.SIGNS
    expected = [torch.where(c, b, a) for c, a, b in zip(chosen, here, there)]
    return Behaviour.COORDINATE_WISE if all(map(_near, between, expected)) else Behaviour.ANY


def _half(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A random half of the entries, never none and never all where there are two: what is not mixed shows no coupling."""
    count = shape.numel()
    order = torch.randperm(count, generator=generator, device="cpu")
    return (
        (order < max(1, count // 2)).view(shape)
        if count > 1
        else torch.rand(shape, generator=generator, device="cpu") < 0.5
    )


def _as(gradient: Tensor, values: Tensor) -> Tensor:
    """The values where the gradient is, and sharded as it is."""
    return sharding.whole(sharding.part(values.to(gradient.device), gradient), gradient)


def _one_length(changes: Sequence[Tensor]) -> bool:
    sizes = [sharding.full(change.detach()).abs().flatten() for change in changes]
    sizes = [size[size > 1e-3 * size.max()] for size in sizes if size.numel()]
    lengths = torch.cat(
        [(size / size.median()).double() for size in sizes if len(size) > 1] or [torch.ones(0, device="cpu")]
    )
    return len(lengths) >= ENOUGH and float(((lengths - 1).abs() < 0.01).double().mean()) > 0.95


def _near(move: Tensor, expected: Tensor) -> bool:
    difference, size = (sharding.full(t.detach()).abs() for t in (move - expected, expected))
    return not difference.numel() or bool(difference.max() <= SAME * size.max())
