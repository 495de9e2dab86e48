"""A warm reading: a few products from the direction that the last one left, in as few passes over the weights as it takes.

The operator is that of `jacobian.symmetric`, A = +-w^1/2 P H P w^1/2 + shift, and r is read off a model of it as `krylov` does.
Here products are formed parameter by parameter and in place, since on a large model the passes over the weights cost as much
as a product. Weights whose gradients are rounding are left out as the last full reading found them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt.curvature.hessian import STEP, Reduce
from topoopt.curvature.krylov import BREAKDOWN, SEEN, following
from topoopt.curvature.passage import Passage
from topoopt.curvature.rates import Moment
from topoopt.curvature.remembering import Remembered
from topoopt.curvature.rules import spec_of
from topoopt.curvature.shadow import Shadow
from topoopt.curvature.space import Layout
from topoopt.curvature.spectrum import leaning
from topoopt.device import wide

Read = Callable[[Tensor], list[float]]


@dataclass(frozen=True)
class WarmEstimate:
    """Both ends as far as one product shows them, and what the next reading starts from."""

    r: float
    low: float
    high: float
    memory: Remembered


def possible(optimizer: Optimizer, passage: Passage, layout: Layout) -> bool:
    """Whether the operator is the symmetric one, of plain weights and a passage that is a factor and a projection."""
    signs = {bool(group.get("maximize")) for group in layout.owners}
    plain = all(
        p.dtype in (torch.float32, torch.float64) and not (p.grad is not None and p.grad.is_sparse)
        for p in layout.parameters
    )
    return (
        spec_of(optimizer) is not None
        and passage.uniform is not None
        and not passage.centred
        and len(signs) == 1
        and plain
    )


class _Operator:
    """Products with A, in place, on flat vectors."""

    def __init__(
        self,
        optimizer: Optimizer,
        shadow: Shadow,
        layout: Layout,
        passage: Passage,
        lost: dict[int, Tensor] | None,
        reduce: Reduce | None,
    ) -> None:
        assert passage.uniform is not None
        self._shadow, self._layout, self._passage, self._reduce = shadow, layout, passage, reduce
        self._factor = passage.uniform
        self._roots, self._shifts = _roots(optimizer, layout, self._factor)
        if lost is not None:
            _leave_out(self._roots, lost, layout.parameters)
        self._gradient = [p.grad for p in layout.parameters]
        self._sign = -1.0 if layout.owners[0].get("maximize") else 1.0

    def pulled(self) -> Tensor:
        """The step's gradient in the operator's coordinates."""
        return self._layout.flatten([0.0 if g is None else g * root for g, root in zip(self._gradient, self._roots)])

    def __call__(self, q: Tensor) -> Tensor:
        parameters, directions = self._layout.parameters, self._layout.unflatten(q)
        along = [d * root for d, root in zip(directions, self._roots)]
        _project(along, self._gradient, self._passage)
        step = STEP.get(self._layout.dtype, 1e-3) / torch.nn.utils.get_total_norm(along).clamp_min(1e-30)
        for p, vector in zip(parameters, along):
            vector.mul_(step.to(vector)).add_(p)
        _, ahead = self._shadow.gradient(along)
        del along
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, ahead)]
        if self._reduce is not None:
            self._reduce(found)
        for h, g in zip(found, self._gradient):
            if g is not None:
                h.sub_(g, alpha=1 / self._factor)
        _project(found, self._gradient, self._passage)
        for h, root, shift, d in zip(found, self._roots, self._shifts, directions):
            h.mul_(root).mul_((self._sign / step).to(h))
            h.addcmul_(shift, d) if isinstance(shift, Tensor) else h.add_(d, alpha=shift)
        return self._layout.flatten(found)


@torch.no_grad()
def warm_products(
    optimizer: Optimizer,
    shadow: Shadow,
    layout: Layout,
    passage: Passage,
    memory: Remembered,
    lost: dict[int, Tensor] | None,
    reduce: Reduce | None,
    products: int,
    read: Read = Tensor.tolist,
) -> WarmEstimate:
    """Take a few products, the first along `memory`'s direction leaning to the step's own gradient: Lanczos' recurrence.

    Args:
        optimizer: a recognised rule; `.grad` holds the step's gradient.
        shadow: the taped step.
        layout: of the weights.
        passage: from backward's gradient to `.grad`.
        memory: of the last reading.
        lost: places in each parameter of weights to leave out; None for none.
        reduce: averages over ranks in place.
        products: how many.
        read: brings the products' numbers over; what else is wanted from the device can come with them.

    Holds 3 + `products` copies of the weights, and one replay's activations. All of it is queued; one host read, at the end.
    """
    operator = _Operator(optimizer, shadow, layout, passage, lost, reduce)
    basis = [leaning(memory.recall_flat().to(layout.dtype), operator.pulled(), layout.dot)]
    own: list[Tensor] = []
    beyond: list[Tensor] = []
    for k in range(products):
        w = operator(basis[k])
        if k:
            w.addcmul_(basis[k - 1], beyond[k - 1], value=-1)
        own.append(basis[k] @ w)
        w.addcmul_(basis[k], own[k], value=-1)
        beyond.append(w.norm())
        basis.append(following(w, beyond[k], torch.stack(own)))
    numbers = read(wide(torch.stack([*own, *beyond])))
    if not all(map(math.isfinite, numbers)):
        return WarmEstimate(math.nan, math.nan, math.nan, memory)
    return _estimate(basis, numbers[:products], numbers[products:])


def _estimate(basis: list[Tensor], own: list[float], beyond: list[float]) -> WarmEstimate:
    """Read the model off: the tridiagonal matrix of the products, 0 where nothing was tried (as `krylov._Model.ends`)."""
    ends = [
        k for k, b in enumerate(beyond) if b <= BREAKDOWN * max(map(abs, own[: k + 1]))
    ]  # beyond it all is rounding
    tried = ends[0] + 1 if ends else len(own)
    size = tried if ends else tried + 1
    basis, own = basis[:size], own[:tried]
    model = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    model[range(tried), range(tried)] = torch.tensor(own, dtype=torch.float64, device="cpu")
    for i in range(size - 1):
        model[i, i + 1] = model[i + 1, i] = beyond[i]
    values, vectors = torch.linalg.eigh(model)
    seen = values[vectors[:tried].square().sum(0) >= SEEN]
    ritz = torch.linalg.eigvalsh(model[:tried, :tried])
    norm = float(torch.linalg.matrix_norm(model[:, :tried], 2))
    low, high = (float(f(torch.cat([ritz, seen]))) for f in (torch.min, torch.max))
    low, high = (low, max(high, norm)) if high >= -low else (min(low, -norm), high)
    top = vectors[:, values.abs().argmax()]
    dominant = torch.zeros_like(basis[0])
    for c, q in zip(top.tolist(), basis):
        dominant.add_(q, alpha=c)
    r = max(abs(low), abs(high))
    return WarmEstimate(r, low, high, Remembered.of_flat(dominant, r) if r > 0 else Remembered.of_flat(basis[0], 0.0))


def _roots(optimizer: Optimizer, layout: Layout, factor: float) -> tuple[list[Tensor], list[Tensor | float]]:
    """w^1/2 and the shift of each parameter, 0 where there is no gradient."""
    spec = spec_of(optimizer)
    assert spec is not None
    roots: list[Tensor] = []
    shifts: list[Tensor | float] = []
    for p, (state, group) in zip(layout.parameters, layout.settings(optimizer)):
        if p.grad is None:
            roots.append(p.new_zeros(()))
            shifts.append(0.0)
            continue
        grad = -p.grad if group.get("maximize") else p.grad
        coupled = spec.coupled(group)
        moment = Moment.of(p, state, group, grad.add(p, alpha=coupled) if coupled else grad, True)
        rate = spec.rate(moment)
        shifts.append(rate * coupled + spec.decoupled(moment))
        if isinstance(rate, Tensor):
            roots.append(rate.mul_(factor).sqrt_() if factor != 1.0 else rate.sqrt_())
        else:
            roots.append(p.new_full((), math.sqrt(rate * factor)))
    return roots, shifts


def _leave_out(roots: list[Tensor], lost: dict[int, Tensor], parameters: Sequence[Tensor]) -> None:
    for i, places in lost.items():
        roots[i] = roots[i].expand(parameters[i].shape).clone()
        roots[i].view(-1).index_fill_(0, places.to(parameters[i].device), 0.0)


def _project(vectors: list[Tensor], gradient: Sequence[Tensor | None], passage: Passage) -> None:
    """Take out the part along the gradient, where it is clipped by the global norm."""
    if passage.direction is None and not passage.clipped:
        return
    pairs = [(v, g) for v, g in zip(vectors, gradient) if g is not None]
    inner = torch.stack([(v * g).sum() for v, g in pairs]).sum()
    square = torch.nn.utils.get_total_norm([g for _, g in pairs]).square().clamp_min(1e-38)
    for v, g in pairs:
        v.sub_(g * (inner / square).to(v))
