"""r from a few products: where they start from, Lanczos' recurrence on rounded directions, and what is read off its model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.curvature.krylov import BREAKDOWN, SEEN
from topoopt.curvature.lean.operator import Operator, Vectors
from topoopt.curvature.lean.pieces import Rounded, dot, total
from topoopt.curvature.spectrum import LEAN, NOISE
from topoopt.device import normal, wide

Read = Callable[[Tensor], list[float]]


def at_once(numbers: Tensor) -> list[float]:
    """One host read."""
    return numbers.tolist()


@dataclass(frozen=True)
class Ends:
    """Both ends of the spectrum as far as some products show them, and what the next reading starts from."""

    r: float
    low: float
    high: float
    direction: Rounded
    rise: float
    """Share of r that came with the last product: while this is much, r reads low by about as much."""


def cold_start(operator: Operator, seed: int) -> Rounded:
    """The step's gradient, in the operator's coordinates, with a little noise, so that no direction is shut out."""
    length, _ = _pull(operator)
    share = NOISE / math.sqrt(sum(p.numel() for p in operator.parameters))

    def piece(k: int) -> Tensor:
        pulled = operator.pulled(k)
        noise = operator.within(k, normal(len(pulled), seed + k, pulled.device))
        return pulled.div_(length.to(pulled)).add_(noise, alpha=share)

    return Rounded.of(len(operator.pieces), piece)


def warm_start(operator: Operator, direction: Rounded, lean: float = LEAN) -> Rounded:
    """What was dominant on the last batch, leaning to what this one pulls at."""
    length, inner = _pull(operator, direction)
    share = lean * torch.sign(inner) / length

    def piece(k: int) -> Tensor:
        kept = operator.within(k, direction.piece(k)).mul_(1 - lean)
        return kept.addcmul_(operator.pulled(k), share.to(kept))

    return Rounded.of(len(operator.pieces), piece)


def _pull(operator: Operator, direction: Rounded | None = None) -> tuple[Tensor, Tensor]:
    """Length of the step's gradient, in the operator's coordinates, and its inner product with a direction."""
    squares, inner = [], []
    for k in range(len(operator.pieces)):
        pulled = operator.pulled(k)
        squares.append(dot(pulled, pulled))
        if direction is not None:
            inner.append(dot(pulled, direction.piece(k)))
    length = total(squares).sqrt().clamp_min(1e-30)
    return length, total(inner) if inner else torch.zeros_like(length)


@torch.no_grad()
def estimate(operator: Operator, start: Rounded, products: int, read: Read = at_once) -> Ends:
    """Take a few products: Lanczos' recurrence, without reorthogonalisation, which so few do not need.

    Args:
        operator: the step's.
        start: the first direction.
        products: how many.
        read: brings the products' numbers over; what else is wanted from the device can come with them.

    All of it is queued; one host read, at the end.
    """
    basis, own, beyond, squares = [start], list[Tensor](), list[Tensor](), list[Tensor]()
    last: Vectors = []
    for k in range(products):
        squares.append(basis[k].square.clamp_min(1e-30))
        before = (basis[k - 1], beyond[k - 1] * (squares[k] / squares[k - 1]).sqrt()) if k else None
        last = []  # the last product's is rounded by now; the next one's comes in its place
        last, inner = operator(basis[k], before)
        own.append(inner / squares[k])
        length = operator.without(last, basis[k], own[k]).to(own[k])
        beyond.append(length / squares[k].sqrt())
        if k + 1 < products:
            exhausted = beyond[k] <= BREAKDOWN * torch.stack(own).abs().max()
            kept = torch.where(exhausted, torch.zeros_like(length), 1 / length)
            rest = Rounded.of(len(operator.pieces), lambda j, last=last: _piece(operator, last, j))
            basis.append(rest.times(kept))
    numbers = read(wide(torch.stack([*own, *beyond, *squares])))
    if not all(map(math.isfinite, numbers)):
        return Ends(math.nan, math.nan, math.nan, start, math.nan)
    found, lengths = numbers[: 2 * products], [math.sqrt(square) for square in numbers[2 * products :]]
    return _ends(operator, basis, lengths, last, found[:products], found[products:])


def _piece(operator: Operator, vectors: Vectors, k: int) -> Tensor:
    piece = operator.pieces[k]
    return piece.of(vectors[piece.parameter])


def _ends(
    operator: Operator,
    basis: list[Rounded],
    lengths: list[float],
    last: Vectors,
    own: list[float],
    beyond: list[float],
) -> Ends:
    low, high, values = _model(own, beyond)
    r = max(abs(low), abs(high))
    fewer = _model(own[:-1], beyond[:-1])[:2] if len(own) > 1 else (own[0], own[0])
    rise = 1 - max(map(abs, fewer)) / r if r > 0 else 0.0

    def dominant(k: int) -> Tensor:
        whole = basis[0].piece(k).mul_(values[0] / lengths[0])
        for value, length, direction in zip(values[1:], lengths[1:], basis[1:]):
            whole.add_(direction.piece(k), alpha=value / length)
        if len(values) > len(basis):
            whole.add_(_piece(operator, last, k), alpha=values[-1] / (beyond[-1] * lengths[-1]))
        return whole

    direction = Rounded.of(len(operator.pieces), dominant) if r > 0 else basis[0]
    return Ends(r, low, high, direction, max(0.0, rise))


def _model(own: Sequence[float], beyond: Sequence[float]) -> tuple[float, float, list[float]]:
    """Both ends of the products' tridiagonal matrix, 0 where nothing was tried (see `krylov`), and its dominant vector."""
    ends = [k for k, b in enumerate(beyond) if b <= BREAKDOWN * max(map(abs, own[: k + 1]))]
    tried = ends[0] + 1 if ends else len(own)  # beyond it all is rounding
    size = tried if ends else tried + 1
    model = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    model[range(tried), range(tried)] = torch.tensor(own[:tried], dtype=torch.float64, device="cpu")
    for i in range(size - 1):
        model[i, i + 1] = model[i + 1, i] = beyond[i]
    values, vectors = torch.linalg.eigh(model)
    seen = values[vectors[:tried].square().sum(0) >= SEEN]
    ritz = torch.linalg.eigvalsh(model[:tried, :tried])
    norm = float(torch.linalg.matrix_norm(model[:, :tried], 2))
    low, high = (float(f(torch.cat([ritz, seen]))) for f in (torch.min, torch.max))
    low, high = (low, max(high, norm)) if high >= -low else (min(low, -norm), high)
    return low, high, vectors[:, values.abs().argmax()].tolist()
