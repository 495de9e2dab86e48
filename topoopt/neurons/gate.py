"""The gate: no group is used that has not been verified numerically.

On a copy of the model in float64, with every parameter and statistic random (initial weights hide mistakes: ones, zeros,
zero low-rank factors), a permutation of a true symmetry changes the output by rounding only.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from topoopt.errors import DiscoveryError
from topoopt.neurons.group import NeuronGroup, named_tensors
from topoopt.neurons.propagation import STATISTICS, quiet

logger = logging.getLogger("topoopt")
TOLERANCE = 1e-9
"""Largest relative change of the output that a true symmetry causes in float64."""
SMALL = 4
"""Groups of at most this many units are permuted several times: they have few permutations that move everything."""


@dataclass(frozen=True)
class Verdict:
    """Groups that passed, and for each that did not the reason."""

    passed: list[NeuronGroup]
    rejected: dict[str, str]


class Gate:
    """A random float64 copy of a model, and its output on one input, against which permutations are held."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        try:
            self.model = copy_of(model, torch.float64)
        except Exception as error:
            raise DiscoveryError(
                f"the model cannot be copied for verification ({type(error).__name__}: {error})"
            ) from error
        for p in self.model.parameters():  # what is frozen in training still acts
            p.requires_grad_(p.is_floating_point() or p.is_complex())
        self._args, self._kwargs = tree_map(_host_double, (args, dict(kwargs)))
        self._randomise()
        try:
            self._reference = self._outputs()
        except Exception as error:
            raise DiscoveryError(
                f"the model cannot be run in float64 for verification ({type(error).__name__}: {error})"
            ) from error
        if not all(torch.isfinite(out).all() for out in self._reference):
            raise DiscoveryError("the model's output on random weights is not finite: no group can be verified")

    def _randomise(self) -> None:
        """Weights of a size that keeps activations near 1; statistics and scales positive. Uniform: drawn the fastest."""
        for name, tensor in {id(t): (name, t) for name, t in named_tensors(self.model).items()}.values():
            last = name.rsplit(".", 1)[-1]
            if isinstance(tensor, nn.Parameter):
                scale = 1.0 / math.sqrt(max(1, math.prod(tensor.shape[1:]))) if tensor.ndim > 1 else 0.3
                shift = 1.0 if tensor.ndim == 1 and not last.startswith("bias") else 0.0
                self._fill(tensor.data, shift, math.sqrt(3.0) * scale)
            elif last in STATISTICS:
                self._fill(tensor, 0.0 if last == "running_mean" else 1.0, 0.5)

    def _fill(self, tensor: Tensor, center: float, reach: float) -> None:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if tensor.is_floating_point():
            tensor.uniform_(center - reach, center + reach, generator=self._generator)

    def _outputs(self, grad: bool = False) -> list[Tensor]:
        with quiet(self.model), _reproducible(), torch.set_grad_enabled(grad), _HoldDoubles():
            result = self.model(*self._args, **self._kwargs)
        return [out for out in _tensors_in(result) if out.is_floating_point() or out.is_complex()]

    def change(self, moves: Sequence[tuple[NeuronGroup, Tensor]]) -> float:
        """Largest relative change of the output when groups are permuted.

        The copy is put back after a change; where there is none it has the same function and stays permuted.
        """
        done: list[tuple[NeuronGroup, Tensor]] = []
        change = math.inf
        try:
            for group, perm in moves:
                group.permute(self.model, perm)
                done.append((group, perm))
            changes = [_relative(out, was) for out, was in zip(self._outputs(), self._reference)]
            change = max(changes, default=math.inf)
        except Exception:  # a permutation that cannot even be carried out is no symmetry
            logger.debug("topoopt: a permutation of %s failed", [group.name for group, _ in moves], exc_info=True)
        if change > TOLERANCE:
            for group, perm in reversed(done):
                group.permute(self.model, perm.argsort())
        return change

    def permutation(self, n: int) -> Tensor:
        """A random permutation that leaves nothing where it was."""
        order = torch.randperm(n, generator=self._generator)
        perm = torch.empty_like(order)
        perm[order] = order.roll(1)
        return perm

    def dead(self, groups: Sequence[NeuronGroup]) -> set[str]:
        """Names of groups whose parameters do not act on the output at all: permuting those proves nothing.

        A group's smallest tensor is asked first, all of them only where that does not act: gradients of large weights
        would cost as much memory as the weights.
        """
        outputs = [out for out in self._outputs(grad=True) if out.requires_grad]
        if not outputs:
            return {group.name for group in groups}
        noise = [torch.randn(out.shape, generator=self._generator, dtype=out.dtype) for out in outputs]
        total = torch.stack([(out * n).sum().real for out, n in zip(outputs, noise)]).sum()
        tensors = named_tensors(self.model)
        held = {g.name: sorted({s.tensor for s in g.slices}, key=lambda name: tensors[name].numel()) for g in groups}
        smallest = _acting(total, {names[0]: tensors[names[0]] for names in held.values()})
        silent = {group: names[1:] for group, names in held.items() if names[0] not in smallest}
        others = _acting(total, {name: tensors[name] for names in silent.values() for name in names})
        return {group for group, names in silent.items() if others.isdisjoint(names)}


def _acting(total: Tensor, tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that have a gradient."""
    asked = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    if not asked:
        return set()
    grads = torch.autograd.grad(total, list(asked.values()), retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(asked, grads) if grad is not None and bool(grad.any())}


def judge(gate: Gate, groups: Sequence[NeuronGroup]) -> Verdict:
    """Verify groups together first, and by bisection where they fail together."""
    rejected: dict[str, str] = {}
    try:
        dead = gate.dead(groups)
    except RuntimeError:  # an output without a gradient: nothing can be called dead
        dead = set()
    rejected |= dict.fromkeys(dead, "its parameters have no effect on the output")
    queue = [[group for group in groups if group.name not in dead]]
    passed: list[NeuronGroup] = []
    while queue:
        batch = queue.pop()
        if not batch:
            continue
        change = _largest_change(gate, batch)
        if change <= TOLERANCE:
            passed += batch
        elif len(batch) == 1:
            rejected[batch[0].name] = f"permuting it changes the output by {change:.2g} (relative)"
        else:
            queue += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    order = {group.name: i for i, group in enumerate(groups)}
    return Verdict(sorted(passed, key=lambda group: order[group.name]), rejected)


def _largest_change(gate: Gate, groups: Sequence[NeuronGroup]) -> float:
    tries = 3 if any(group.n <= SMALL for group in groups) else 1
    return max(gate.change([(group, gate.permutation(group.n)) for group in groups]) for _ in range(tries))


def verify(model: nn.Module, group: NeuronGroup, *args: Any, **kwargs: Any) -> float:
    """Largest relative change of the model's output under a random permutation of a group, on random float64 weights.

    A symmetry gives rounding, about 1e-15; anything above 1e-9 is none. The model itself is not touched.

    Raises:
        DiscoveryError: when the model cannot be copied or run on the inputs given.
    """
    from topoopt.neurons.unwrapping import unwrap

    gate = Gate(unwrap(model), args, kwargs)
    return _largest_change(gate, [group])


def copy_of(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A deep copy without gradients, graphs and foreign hooks; with `dtype` on the CPU, floating tensors in that type."""
    copying = _Copying(dtype)
    memo: dict[int, Any] = {  # parameters have a deep copy of their own, which would take their gradients along
        id(p): nn.Parameter(copying.copy(p), requires_grad=p.requires_grad) for p in model.parameters()
    }
    with quiet(model), copying:
        return copy.deepcopy(model, memo)


class _Copying(TorchFunctionMode):
    """Copies tensors detached, also those that no deep copy takes: results that a module holds in the middle of training."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self.copy(tensor)
        return memo[id(tensor)]

    def copy(self, tensor: Tensor) -> Tensor:
        """A detached copy, in the wanted type where the tensor is floating."""
        tensor = tensor.detach()
        if self._dtype is None:
            return tensor.clone()
        return tensor.to(device="cpu", dtype=_wide(tensor, self._dtype), copy=True)


def _host_double(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    return leaf.to(_wide(leaf, torch.float64))


def _wide(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype


def _relative(out: Tensor, reference: Tensor) -> float:
    if out.shape != reference.shape or not torch.isfinite(out).all():
        return math.inf
    scale = reference.abs().max() if reference.numel() else torch.tensor(1.0)
    return float((out - reference).abs().max() / scale.clamp_min(1e-12)) if out.numel() else 0.0


def _tensors_in(result: Any) -> list[Tensor]:
    leaves = tree_leaves(result)
    if len(leaves) == 1 and not isinstance(leaves[0], Tensor):  # an output class that pytrees do not know
        leaves = tree_leaves(dict(vars(leaves[0]))) if hasattr(leaves[0], "__dict__") else leaves
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@contextmanager
def _reproducible() -> Iterator[None]:
    """The same random numbers in every evaluation, new tensors in float64; the user's generator and default are put back."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


class _HoldDoubles(TorchFunctionMode):
    """Keeps float64 where a model casts to a narrower type inside (norms and softmax in float32)."""

    NARROW = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype in (torch.float64, torch.complex128):
            if name in ("float", "half", "bfloat16", "cfloat"):
                return first
            if name in ("to", "type"):
                args = tuple(self._widened(a) for a in args)
        if kwargs.get("dtype") in self.NARROW:
            kwargs["dtype"] = self._widened(kwargs["dtype"])
        return func(*args, **kwargs)

    def _widened(self, argument: Any) -> Any:
        if not isinstance(argument, torch.dtype) or argument not in self.NARROW:
            return argument
        return torch.complex128 if argument.is_complex else torch.float64
