"""The gate: no group is used that has not been verified numerically.

On a copy of the model in float64, with every parameter and statistic random (initial weights hide mistakes: ones, zeros,
zero low-rank factors), a permutation of a true symmetry changes the output by rounding only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from topoopt.errors import DiscoveryError
from topoopt.neurons.group import NeuronGroup, named_tensors
from topoopt.neurons.quieting import STATISTICS, quiet
from topoopt.neurons.twin import HoldDoubles, copy_of, on_host, reproducible

logger = logging.getLogger("topoopt")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative change of the output that a true symmetry causes, by the precision of the gate's copy."""


class _FedByAnother(Exception):
    """Ends a forward in which there is nothing more to see."""


class Gate:
    """A random copy of a model, and its output on one input, against which permutations are held.

    Raises:
        DiscoveryError: when the model cannot be copied, or not run in `dtype`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype, self.tolerance = dtype, TOLERANCE[dtype]
        try:
            self.model = copy_of(model, dtype)
        except Exception as error:
            raise DiscoveryError(
                f"the model cannot be copied for verification ({type(error).__name__}: {error})"
            ) from error
        for p in self.model.parameters():  # what is frozen in training still acts
            p.requires_grad_(p.is_floating_point() or p.is_complex())
        self._args, self._kwargs = tree_map(lambda leaf: on_host(leaf, dtype), (args, dict(kwargs)))
        self._randomise()
        name = str(dtype).removeprefix("torch.")
        try:
            self._reference = self._outputs()
        except Exception as error:
            raise DiscoveryError(
                f"the model cannot be run in {name} for verification ({type(error).__name__}: {error})"
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
        with quiet(self.model), self._running(), torch.set_grad_enabled(grad):
            result = self.model(*self._args, **self._kwargs)
        return [out for out in _tensors_in(result) if out.is_floating_point() or out.is_complex()]

    @contextmanager
    def _running(self) -> Iterator[None]:
        with reproducible(self._dtype), HoldDoubles() if self._dtype is torch.float64 else nullcontext():
            yield

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
        if change > self.tolerance:
            for group, perm in reversed(done):
                group.permute(self.model, perm.argsort())
        return change

    def in_a_row(self, names: Sequence[str]) -> bool:
        """Whether what one of these modules is fed was made from another's result: layers of a stack, not units abreast."""
        made: set[Any] = set()
        clear: set[Any] = set()

        def see(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            waiting = [t.grad_fn for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            while waiting:
                node = waiting.pop()
                if node in made:
                    raise _FedByAnother
                if node is not None and node not in clear:
                    clear.add(node)
                    waiting.extend(before for before, _ in node.next_functions)
            made.update(t.grad_fn for t in _tensors_in(result) if t.grad_fn is not None)

        with quiet(self.model), self._running(), torch.enable_grad():
            handles = [self.model.get_submodule(n).register_forward_hook(see, with_kwargs=True) for n in names]
            try:
                self.model(*self._args, **self._kwargs)
            except _FedByAnother:  # seen at the second layer of a stack: the rest need not be run
                return True
            finally:
                for handle in handles:
                    handle.remove()
        return False

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
        held = {
            g.name: sorted({t for s in g.slices for t in s.tensors}, key=lambda name: tensors[name].numel())
            for g in groups
        }
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
