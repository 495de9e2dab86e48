"""Products with the Hessian of a step's loss: H v, from a field of gradients, by whichever way it allows.

`Gradients` gives them at any weights: a taped step's shadow, or a loss that the user gave. Exact products come by double
backward on a graph that is kept for all products of a reading (with math attention where fused attention has no second
derivative), others by forward differences of the gradient. Sharded weights, which are not in the graph themselves, are
differentiated through `.grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm

from topoopt.errors import MeasurementError
from topoopt.sharding import is_sharded, total_norm

Reduce = Callable[[Sequence[Tensor]], Sequence[Tensor]]
STEP = {torch.float64: 1e-5}
"""Length of a difference along a unit vector; 1e-3 for every other type."""


class Gradients(Protocol):
    """The gradient of one step's loss as a function of the weights, at fixed data and fixed noise."""

    parameters: list[Tensor]
    size: int
    """Size of the batch, 0 when unknown."""

    def gradient(self, point: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """(loss, gradient) at the weights `point`; None: at the weights as they stand."""
        ...

    def graph(self) -> tuple[Tensor, Sequence[Tensor | None], Sequence[Tensor]]:
        """(loss, gradient with a graph, the leaves that it hangs on) at the weights as they stand."""
        ...


class Engine:
    """Loss and gradient at the weights as they stand, and products with the Hessian there."""

    name = ""
    loss: Tensor
    gradient: list[Tensor]

    def __init__(self, source: Gradients, reduce: Reduce | None) -> None:
        self.source, self._reduce = source, reduce
        self._parameters = list(source.parameters)
        self.products = 0
        self.known_loss: float | None = None
        """The loss on the host, where it came along with another number."""
        self._missing: frozenset[int] = frozenset()

    @property
    def step_gradient(self) -> list[Tensor | None]:
        """The gradient as a step would find it."""
        return self.as_in_a_step(self.gradient)

    def as_in_a_step(self, gradient: Sequence[Tensor]) -> list[Tensor | None]:
        """With None for a parameter that the loss does not depend on.

        Averaged over ranks it is known for all: another rank may have used what this one did not.
        """
        missing = self._missing if self._reduce is None else frozenset()
        return [None if i in missing else g for i, g in enumerate(gradient)]

    def product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """H v for v given parameter by parameter."""
        self.products += 1
        return self._average(self._product(vectors))

    def verify(self) -> None:
        """Raise where products would be formed, but wrong."""

    def _product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def _average(self, tensors: list[Tensor]) -> list[Tensor]:
        if self._reduce is not None:
            self._reduce(tensors)
        return tensors

    def _dense(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        return [torch.zeros_like(p) if g is None else _plain(g.detach()) for p, g in zip(self._parameters, grads)]

    def _note_missing(self, grads: Sequence[Tensor | None]) -> None:
        self._missing = frozenset(i for i, grad in enumerate(grads) if grad is None)
        if len(self._missing) == len(grads):
            raise MeasurementError("the loss does not depend on the optimizer's parameters")


class DoubleBackward(Engine):
    """One graph, kept: exact up to rounding."""

    name = "double backward"

    def __init__(self, source: Gradients, reduce: Reduce | None) -> None:
        super().__init__(source, reduce)
        with self._spelled_out():
            loss, grads, self._leaves = source.graph()
        self._note_missing(grads)
        self._graph = [(grad, i) for i, grad in enumerate(grads) if grad is not None and grad.requires_grad]
        self.loss = loss.detach()
        self.gradient = self._average([g.clone() for g in self._dense(grads)])

    def _spelled_out(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def verify(self) -> None:
        """Refuse a graph in which something can be differentiated only once.

        torch marks the place by a node that raises; but it lies on no path to the weights, so that `autograd.grad` prunes
        it, and products would silently lack a part of H.
        """
        waiting: list[Any] = [grad.grad_fn for grad, _ in self._graph]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            if node.name().rsplit("::", 1)[-1] in ("Error", "DelayedError"):
                raise MeasurementError("a function in the model can be differentiated only once")
            fresh = {following for following, _ in node.next_functions} - seen
            seen |= fresh
            waiting.extend(fresh)

    def _product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        if not self._graph:  # a loss that is linear in the weights
            return [torch.zeros_like(p) for p in self._parameters]
        outputs = [grad for grad, _ in self._graph]
        along = [vectors[i] for _, i in self._graph]
        with getattr(self.source, "quiet", nullcontext)():
            second = torch.autograd.grad(outputs, list(self._leaves), along, retain_graph=True, allow_unused=True)
        return self._dense(second)


class MathAttention(DoubleBackward):
    """The same, with attention spelled out in the forward."""

    name = "double backward, math attention"

    def _spelled_out(self) -> AbstractContextManager[Any]:
        return sdpa_kernel(SDPBackend.MATH)  # type: ignore[return-value]


class FiniteDifferences(Engine):
    """(grad(x + h v) - grad(x)) / h: works with every kernel, sees the kinks that autograd does not.

    Args:
        base: (loss, gradient) at the weights as they stand, where the step has computed them itself: one evaluation less.
    """

    name = "finite differences"

    def __init__(
        self, source: Gradients, reduce: Reduce | None, base: tuple[Tensor, Sequence[Tensor | None]] | None = None
    ) -> None:
        super().__init__(source, reduce)
        _refuse_coarse(p.dtype for p in self._parameters)
        if base is None:
            self.loss, self.gradient = self.at(None)
            if getattr(source, "low_precision", False):
                raise MeasurementError("a finite difference is lost in the rounding of a forward in 16 bits (autocast)")
        else:
            self._note_missing(base[1])
            self.loss, self.gradient = base[0], self._dense(base[1])
        self.ahead: Tensor | None = None
        """Loss at the end of the last difference."""
        self.known_rounding: Tensor | None = None
        """(parameters,) sizes of the rounding in each gradient, once they have been measured."""

    def at(self, point: Sequence[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradient, averaged over ranks, at the weights `point`."""
        loss, grads = self.source.gradient(point)
        self._note_missing(grads)
        return loss.detach(), self._average(self._dense(grads))

    @torch.no_grad()
    def moved(self, vectors: Sequence[Tensor], step: float | Tensor) -> list[Tensor]:
        """The weights shifted by step * vectors: tensors of their own."""
        size = step if isinstance(step, Tensor) else torch.tensor(step, device="cpu")
        return [p.detach() + size.to(p) * v.to(p.dtype) for p, v in zip(self._parameters, vectors)]

    def product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """H v, from gradients that are averaged over ranks already."""
        self.products += 1
        return self._product(vectors)

    def _product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        step = STEP.get(self._parameters[0].dtype, 1e-3) / _length(vectors)
        self.ahead, ahead = self.at(self.moved(vectors, step))
        return [(a - g).div_(step.to(a)) for a, g in zip(ahead, self.gradient)]

    def rounding(self) -> list[Tensor]:
        """How the gradient changes when every weight goes to one of its next numbers: by rounding, and hardly by H."""
        here = [p.detach() for p in self._parameters]
        _, ahead = self.at(self.moved(here, torch.finfo(self.gradient[0].dtype).eps))
        return [a - g for a, g in zip(ahead, self.gradient)]


class ThroughGrad(FiniteDifferences):
    """Finite differences of what backward leaves in `.grad`, which is put back after: for shards, which are moved in place."""

    name = "finite differences through .grad"

    def __init__(
        self, source: Gradients, reduce: Reduce | None, base: tuple[Tensor, Sequence[Tensor | None]] | None = None
    ) -> None:
        through = getattr(source, "through_grad", None)
        if through is None:
            raise MeasurementError("this step is replayed with weights of its own: there is no .grad to go through")
        super().__init__(through(), reduce, base)
        _refuse_coarse(getattr(source, "weight_types", ()))


def _length(vectors: Sequence[Tensor]) -> Tensor:
    """The norm, never 0, on the device: no host read where nothing is sharded."""
    if any(is_sharded(v) for v in vectors):
        return torch.tensor(max(total_norm(vectors), 1e-30), device="cpu")
    return get_total_norm(list(vectors)).clamp_min(1e-30)


def _plain(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _refuse_coarse(types: Iterable[torch.dtype]) -> None:
    coarse = next((t for t in types if t in (torch.bfloat16, torch.float16)), None)
    if coarse is not None:
        raise MeasurementError(
            f"a finite difference is lost in the rounding of {coarse} weights: keep them, and run them, in float32"
        )
