"""Products with the Hessian of the loss: H v, by whichever way the model allows.

In this order, chosen by trying once: double backward on a graph that is kept for all products; the same with math
attention (fused attention has no second derivative); forward finite differences of the gradient; the same with gradients
taken through `.grad`, for models whose parameters are not in the graph themselves (sharded, reentrant checkpointing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from topoopt.curvature.probe import Probe
from topoopt.errors import ConfigError, MeasurementError
from topoopt.sharding import reshard, total_norm

Reduce = Callable[[Sequence[Tensor]], Sequence[Tensor]]
STEP = {torch.float64: 1e-5}
"""Length of a finite-difference step along a unit vector; 1e-3 for every other type."""


class Engine:
    """Loss and gradient at the weights as they stand, and products with the Hessian there."""

    name = ""
    loss: Tensor
    gradient: list[Tensor]

    def __init__(self, probe: Probe, parameters: Sequence[Tensor], reduce: Reduce | None) -> None:
        self._probe, self._parameters, self._reduce = probe, list(parameters), reduce
        self.products = 0
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
        return [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(self._parameters, grads)]

    def _note_missing(self, grads: Sequence[Tensor | None]) -> None:
        self._missing = frozenset(i for i, grad in enumerate(grads) if grad is None)
        if len(self._missing) == len(grads):
            raise MeasurementError("the loss does not depend on the optimizer's parameters")


class DoubleBackward(Engine):
    """One graph, kept: exact up to rounding, 1.4 to 2.2 forward-backward passes a product."""

    name = "double backward"

    def __init__(self, probe: Probe, parameters: Sequence[Tensor], reduce: Reduce | None) -> None:
        super().__init__(probe, parameters, reduce)
        with self._forward():
            loss = probe.evaluate()
        grads = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        self._note_missing(grads)
        self._graph = [(grad, i) for i, grad in enumerate(grads) if grad is not None and grad.requires_grad]
        self.loss = loss.detach()
        self.gradient = self._average([g.clone() for g in self._dense(grads)])

    def _forward(self) -> AbstractContextManager[None]:
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
        second = torch.autograd.grad(outputs, self._parameters, along, retain_graph=True, allow_unused=True)
        return self._dense(second)


class MathAttention(DoubleBackward):
    """The same, with attention spelled out in the probe's forward."""

    name = "double backward, math attention"

    def _forward(self) -> AbstractContextManager[None]:
        return sdpa_kernel(SDPBackend.MATH)  # type: ignore[return-value]


class FiniteDifferences(Engine):
    """(grad(x + h v) - grad(x)) / h: works with every kernel, sees the kinks that autograd does not."""

    name = "finite differences"

    def __init__(self, probe: Probe, parameters: Sequence[Tensor], reduce: Reduce | None) -> None:
        super().__init__(probe, parameters, reduce)
        _refuse_coarse(p.dtype for p in parameters)
        loss, self.gradient = self.at()
        _refuse_coarse(probe.weight_types)
        self.loss = loss

    def at(self) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradient at the weights as they stand."""
        loss = self._probe.evaluate()
        return loss.detach(), self._average(self._gradient(loss))

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self._note_missing(grads)
        return self._dense(grads)

    def _product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        norm = total_norm(vectors)
        if norm == 0:
            return [torch.zeros_like(p) for p in self._parameters]
        step = STEP.get(self._parameters[0].dtype, 1e-3) / norm
        with moved(self._parameters, vectors, step):
            _, ahead = self.at()
        return [(a - g).div_(step) for a, g in zip(ahead, self.gradient)]

    def rounding(self) -> list[Tensor]:
        """How the gradient changes when every weight goes to one of its next numbers: by rounding, and hardly by H."""
        with moved(self._parameters, [p.detach() for p in self._parameters], torch.finfo(self.gradient[0].dtype).eps):
            _, ahead = self.at()
        return [a - g for a, g in zip(ahead, self.gradient)]

    def product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """H v, from gradients that are averaged over ranks already."""
        self.products += 1
        return self._product(vectors)


class ThroughGrad(FiniteDifferences):
    """Finite differences of what backward leaves in `.grad`, which is put back after."""

    name = "finite differences through .grad"

    def at(self) -> tuple[Tensor, list[Tensor]]:
        """As above, with sharded weights gathered anew."""
        if self._probe.model is not None:
            reshard(self._probe.model)
        return super().at()

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        saved = [parameter.grad for parameter in self._parameters]
        try:
            for parameter in self._parameters:
                parameter.grad = None
            loss.backward()
            grads = [parameter.grad for parameter in self._parameters]
            self._note_missing(grads)
            return self._dense(grads)
        finally:
            for parameter, grad in zip(self._parameters, saved):
                parameter.grad = grad


def _refuse_coarse(types: Iterable[torch.dtype]) -> None:
    coarse = next((t for t in types if t in (torch.bfloat16, torch.float16)), None)
    if coarse is not None:
        raise MeasurementError(
            f"a finite difference is lost in the rounding of {coarse} weights: keep them, and run them, in float32"
        )


class moved:
    """The parameters shifted by step * vectors inside the block, and exactly what they were after it."""

    def __init__(self, parameters: Sequence[Tensor], vectors: Sequence[Tensor], step: float) -> None:
        self._parameters, self._vectors, self._step = parameters, vectors, step

    def __enter__(self) -> None:
        self._saved = [p.detach().clone() for p in self._parameters]
        for parameter, vector in zip(self._parameters, self._vectors):
            parameter.data.add_(vector.to(parameter.dtype), alpha=self._step)

    def __exit__(self, *_: object) -> None:
        for parameter, value in zip(self._parameters, self._saved):
            parameter.data.copy_(value)


ENGINES: dict[str, type[Engine]] = {
    kind.name: kind for kind in (DoubleBackward, MathAttention, FiniteDifferences, ThroughGrad)
}


def open_engine(
    name: str, probe: Probe, parameters: Sequence[Tensor], reduce: Reduce | None, trial: Sequence[Tensor] | None = None
) -> Engine:
    """Start the engine of that name, or with "auto" the first that can form a product.

    Raises:
        ConfigError: for an unknown name.
        MeasurementError: when none works, with each one's reason.
    """
    if name != "auto":
        if name not in ENGINES:
            raise ConfigError(f"engine={name!r} is not known: give auto, {', '.join(ENGINES)}")
        named = ENGINES[name](probe, parameters, reduce)
        named.verify()
        return named
    reasons: list[str] = []
    together = getattr(
        reduce, "together", None
    )  # ranks go on to the next engine together: what one meets, all have met
    failures = (RuntimeError, NotImplementedError) if together is None else Exception
    for kind in ENGINES.values():
        try:
            with nullcontext() if together is None else together():
                engine = kind(probe, parameters, reduce)
                engine.verify()
                engine.product(trial if trial is not None else engine.gradient)
            engine.products = 0
            return engine
        except failures as error:  # MeasurementError, torch's refusals, another rank's
            reasons.append(f"{kind.name}: {str(error).splitlines()[0][:120]}")
    raise MeasurementError("; ".join(dict.fromkeys(reasons)))
