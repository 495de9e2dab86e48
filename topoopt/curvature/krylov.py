"""Both ends of an operator's spectrum by a few products: Lanczos steps that remember what the last ones saw, or Arnoldi's.

A training step moves the weights a little, and so the operator. What is kept of an estimate is a small model of it: a few
directions with their eigenvalues, 0 beyond. The next estimate starts at the model's dominant direction, and each product
makes the model exact along one more direction (a symmetric rank-two update, that of Powell's symmetric Broyden method); the
next one is taken along the part of the dominant direction that has not been tried. With nothing to remember these are the
Lanczos vectors. Between two measurements the dominant eigenvectors turn a little into each other and a little into the many
others. A residual shows mostly the second, since it weighs a part of the error by the distance of its eigenvalue from the
dominant one; the model, which knows those of the dominant few, undoes that weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from topoopt.device import sent, wide
from topoopt.sharding import Dot

Operator = Callable[[Tensor], Tensor]
KEPT = 3
"""Directions that are remembered. More help little, and each is as large as the weights."""
BREAKDOWN = 1e-7
"""A next direction shorter than this, relative to the operator's size, is rounding: the space is exhausted."""
TRIED = 1e-3
"""A direction of which less than this is new is not tried: it could add its square to the estimate."""
SEEN = 0.75
"""Least part of an eigenvector of the model (its square) that lies in directions tried, for its eigenvalue to count."""
OTHER = 0.03
"""Share of the other end's vector in the start: enough to notice it grow, and costs 0.1 % of a Rayleigh quotient."""
TRUST = 0.3
"""A memory that the first product contradicts by more than this share is dropped: the operator has changed."""


@dataclass(frozen=True)
class Memory:
    """Directions in which an operator was seen, and its eigenvalues on them: what the next estimate starts from."""

    vectors: Tensor  # (k, number of weights; of shards this rank's part), orthonormal, the dominant one first
    values: tuple[float, ...]


@dataclass(frozen=True)
class Ends:
    """Both ends of the spectrum as far as they were seen (NaN where a product was not finite), and what is remembered."""

    low: float
    high: float
    memory: Memory


def lanczos(operator: Operator, start: Tensor | Memory, steps: int, dot: Dot = torch.matmul) -> Ends:
    """Take `steps` products with full reorthogonalisation, from a flat vector (not zero) or from what was seen before.

    The number of steps is fixed: stopping at a small residual locks onto whichever eigenvector the start was close to. It is
    smaller only where nothing is left to try. With nothing remembered all of it is queued, and read once at the end; a
    memory's model chooses each direction on the host.
    """
    model = _Model(start, steps, dot)
    if not isinstance(start, Memory):
        lost = model.learn_in_queue(operator, steps)
        return model.ends() if lost is None else Ends(math.nan, math.nan, Memory(lost[None], (math.nan,)))
    for _ in range(steps):
        direction = model.next_direction()
        if direction is None:
            break
        if not model.learn(direction, operator(model.combine(direction))):
            return Ends(math.nan, math.nan, Memory(model.combine(direction)[None], (math.nan,)))
    return model.ends()


class _Model:
    """A symmetric operator on an orthonormal basis: exact in the directions tried, remembered in the others, 0 beyond.

    Vectors are on the device; what is small (matrices, coefficients on the basis) is float64 on the host.
    """

    def __init__(self, start: Tensor | Memory, steps: int, dot: Dot) -> None:
        vectors = start.vectors if isinstance(start, Memory) else (start / dot(start, start).sqrt())[None]
        self._dot, self._size = dot, len(vectors)
        self._basis = vectors.new_empty(self._size + steps, vectors.shape[1])
        self._basis[: self._size] = vectors
        values = start.values if isinstance(start, Memory) else (0.0,)
        self._matrix = torch.diag(torch.tensor(values, dtype=torch.float64, device="cpu"))
        self._remembers = isinstance(start, Memory)
        self._tried = torch.zeros(0, self._size, dtype=torch.float64, device="cpu")
        """Unit coefficient vectors, a row each, orthogonal to each other."""
        self._images = torch.zeros(0, self._size, dtype=torch.float64, device="cpu")
        """The operator's products with them."""

    def combine(self, coefficients: Tensor) -> Tensor:
        """The vector with these coefficients on the basis."""
        return sent(coefficients, self._basis) @ self._basis[: self._size]

    def next_direction(self) -> Tensor | None:
        """Coefficients of the new part of the dominant eigenvector; of the next, where that one is known."""
        values, vectors = torch.linalg.eigh(self._matrix)
        order = values.abs().argsort(descending=True)
        if not len(self._tried):
            first = vectors[:, order[0]]
            other = vectors[:, -1 if values[order[0]] < 0 else 0]
            start = first if len(values) == 1 else first + OTHER * other
            return _oriented(start / start.norm())
        for candidate in vectors[:, order].T:
            new = candidate - (self._tried @ candidate) @ self._tried
            if float(new.norm()) > TRIED:
                new = new - (self._tried @ new) @ self._tried
                return _oriented(new / new.norm())
        return None

    def learn(self, direction: Tensor, product: Tensor) -> bool:
        """Make the model exact along a direction; returns whether the product was finite."""
        image, beyond = self._split(product)
        host = wide(image).cpu().double()
        if not math.isfinite(float(host.norm())):
            return False
        if self._remembers and not len(self._tried):
            self._doubt(direction, host)
        if self._is_new(host):
            self._basis[self._size] = beyond / float(host[-1])
        self._take(direction, host)
        return True

    def learn_in_queue(self, operator: Operator, steps: int) -> Tensor | None:
        """Take the products along Lanczos' own vectors and read them once; returns one whose product is not finite."""
        images = [self._basis.new_zeros(k + 2) for k in range(steps)]
        for k in range(steps):
            images[k], beyond = self._split(operator(self._basis[k]), k + 1)
            self._basis[k + 1] = following(beyond, images[k][-1], torch.cat(images[: k + 1]))
        hosts = wide(torch.cat(images)).cpu().double().split([k + 2 for k in range(steps)])
        for k, host in enumerate(hosts):
            known = self._size
            direction = torch.eye(known, dtype=torch.float64, device="cpu")[k]
            if not math.isfinite(float(host.norm())):
                return self._basis[k]
            self._take(direction, host)
            if self._size == known:
                return None  # exhausted: what follows is 0
        return None

    def _is_new(self, image: Tensor) -> bool:
        """Whether what lies beyond the basis is more than rounding."""
        return float(image[-1]) > BREAKDOWN * max(float(image.norm()), float(self._matrix.abs().max()))

    def _take(self, direction: Tensor, image: Tensor) -> None:
        """Take down the coefficients of a product along a direction."""
        if self._is_new(image):
            self._size += 1
            self._matrix = pad(self._matrix, (0, 1, 0, 1))
            self._tried, self._images, direction = (pad(t, (0, 1)) for t in (self._tried, self._images, direction))
        else:
            image = image[:-1]
        self._tried = torch.cat([self._tried, direction[None]])
        self._images = torch.cat([self._images, image[None]])
        rest = torch.eye(self._size, dtype=torch.float64, device="cpu") - torch.outer(direction, direction)
        across = torch.outer(direction, image)
        own = float(direction @ image) * torch.outer(direction, direction)
        self._matrix = rest @ self._matrix @ rest + across + across.T - own

    def _split(self, product: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Its coefficients on the basis, and last the length of what lies beyond it; and that. On the device."""
        known = self._basis[: self._size if size is None else size]
        first = self._dot(known, product)
        beyond = torch.addmv(product, known.T, first, alpha=-1)
        second = self._dot(known, beyond)  # twice is enough
        beyond.addmv_(known.T, second, alpha=-1)
        length = self._dot(beyond, beyond).sqrt()
        return torch.cat([first + second, length[None]]), beyond

    def _doubt(self, direction: Tensor, image: Tensor) -> None:
        expected = torch.cat([self._matrix @ direction, torch.zeros(1, dtype=torch.float64, device="cpu")])
        if float((image - expected).norm()) > TRUST * float(image.norm()):
            self._matrix = torch.zeros_like(self._matrix)

    def ends(self) -> Ends:
        """What the products say of the operator, and what is remembered of it.

        The ends are those of the model, over its eigenvectors x that lie in the directions tried, T, by |T x|^2 >= `SEEN`. So
        what the products showed outside these directions is taken into account, to second order: on networks the error is
        between half and a tenth of the Ritz value's. It reads at most |A| / sqrt(SEEN), 15 % too large, whatever was
        remembered, since value |T x|^2 = (T x)' (A T)' x <= |T x| |A|; where A >= 0 and nothing was, it is a lower bound. The
        larger end is at least the norm of A on the directions tried, which is a lower bound always.
        """
        values, vectors = torch.linalg.eigh(self._matrix)
        low, high = self._range()
        return Ends(low, high, self._memory(values, vectors))

    def _range(self) -> tuple[float, float]:
        values, vectors = torch.linalg.eigh(self._matrix)
        square = self._tried @ self._images.T
        ritz = torch.linalg.eigvalsh((square + square.T) / 2)
        seen = torch.cat([ritz, values[(self._tried @ vectors).square().sum(0) >= SEEN]])
        low, high, norm = float(seen.min()), float(seen.max()), float(torch.linalg.matrix_norm(self._images, 2))
        return (low, max(high, norm)) if high >= -low else (min(low, -norm), high)

    def _memory(self, values: Tensor, vectors: Tensor) -> Memory:
        """The dominant directions, the other end's always among them."""
        order = values.abs().argsort(descending=True)[:KEPT].tolist()
        other = len(values) - 1 if values[order[0]] < 0 else 0
        if other not in order:
            order[-1] = other
        kept = [self.combine(_oriented(vectors[:, i])) for i in order]
        return Memory(torch.stack(kept), tuple(float(values[i]) for i in order))


def _oriented(coefficients: Tensor) -> Tensor:
    """With its largest entry positive: ranks whose hosts differ in the last bit must not differ in a sign."""
    return coefficients * torch.sign(coefficients[coefficients.abs().argmax()])


def following(w: Tensor, length: Tensor, entries: Tensor) -> Tensor:
    """The next direction, in w's own memory; 0 once the space is exhausted, where it would be rounding divided by its length.

    A product that is not finite is passed on, for the caller to see.
    """
    exhausted = length <= BREAKDOWN * entries.abs().max()
    return w.mul_(torch.where(exhausted, torch.zeros_like(length), 1 / length))


def arnoldi(operator: Operator, start: Tensor, steps: int, dot: Dot = torch.matmul) -> Ends:
    """Run `steps` products from `start` (flat, not zero): the real parts' ends, and |low| or |high| the spectral radius.

    Everything stays on the device until the small projected matrix is read, once, at the end.
    """
    basis = [start / dot(start, start).sqrt()]
    columns = []
    for _ in range(steps):
        w = operator(basis[-1]).clone()
        column = torch.zeros(len(basis) + 1, dtype=w.dtype, device=w.device)
        for _ in range(2):
            for i, q in enumerate(basis):
                share = dot(q, w)
                column[i] += share
                w.addcmul_(q, share, value=-1)
        column[-1] = dot(w, w).sqrt()
        columns.append(column)
        basis.append(following(w, column[-1], torch.cat(columns)))
    hosts = wide(torch.cat(columns)).cpu().double().split([len(column) for column in columns])
    hessenberg = torch.zeros(steps, steps, dtype=torch.float64, device="cpu")
    size, end = max(float(host.abs().max()) for host in hosts), steps
    if not all(bool(host.isfinite().all()) for host in hosts):
        return Ends(math.nan, math.nan, Memory(basis[0][None], (math.nan,)))
    for j, host in enumerate(hosts):
        hessenberg[: min(j + 2, steps), j] = host[: min(j + 2, steps)]
        if float(host[-1]) <= BREAKDOWN * size:
            end = j + 1
            break
    values, vectors = torch.linalg.eig(hessenberg[:end, :end])
    top = int(values.abs().argmax())
    radius = float(values[top].abs())
    weights = vectors[:, top].real
    vector = sum(float(c) * q for c, q in zip(weights, basis))
    assert isinstance(vector, Tensor)
    sign = 1.0 if float(values[top].real) >= 0 else -1.0
    others = values.real.tolist()
    low = min([*others, sign * radius]) if sign < 0 else min(others)
    high = max([*others, sign * radius]) if sign > 0 else max(others)
    return Ends(low, high, Memory((vector / dot(vector, vector).sqrt())[None], (sign * radius,)))
