"""r_spec: the spectral radius of the displacement's Jacobian, at the weights as they stand."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.hessian import Engine
from topoopt.curvature.jacobian import (
    BlackBox,
    CoordinateWise,
    restricted,
)
from topoopt.curvature.krylov import Memory, arnoldi, lanczos
from topoopt.curvature.passage import Passage
from topoopt.curvature.rules import recognise
from topoopt.curvature.space import Layout
from topoopt.device import normal

Base = tuple[Tensor, Sequence[Tensor | None]]
Block = Mapping[Tensor, Tensor]
Start = Tensor | Memory
FIRST = 10
"""Products of an estimate without a start of its own: the gradient is a good start, but not as good as the last vector.

Who asks for fewer than eight gets a quarter more than that instead, and a note.
"""
DOUBTFUL = "the optimizer's step answers differently ({:.0%}) to twice the finite difference: {}"
DOUBTED_FROM, UNKNOWN_FROM = 0.05, 1 / 3
"""Shares by which a product may change with the difference of a step that was tried, before that is said, and before r is
given up. Pure rounding changes it by half: the same jump over twice the difference.
"""
LEAN = 0.4
"""Part that the step's own gradient has in the start of a warm reading: batches differ more than weights move."""
NOISE = 1e-3
"""Share of random directions in a start."""


@dataclass(frozen=True)
class SpectralEstimate:
    """Proximity of one step to the topological critical learning rate, by its Jacobian."""

    r: float
    """max(|low|, |high|): r = eta / eta*."""
    edge: float | None
    """Edge of stability of the rule, in units of r; None where the rule is not known."""
    low: float
    """Lowest end of the spectrum of -dD/dx, in units of r."""
    high: float
    """Highest end."""
    products: int
    memory: Memory
    """What the next estimate starts from: the directions in which this one saw most."""
    engine: str
    """How products were taken."""
    rule: str
    """Update rule that was recognised, or "black box"."""
    form: str
    """ "held" (preconditioner held, symmetric form), "full" (coordinate-wise derivative) or "black box"."""
    loss: float
    """NaN for a block of the weights, whose estimate does not ask for it."""
    probe_size: int
    """Size of the probe batch; 0 when it could not be seen."""
    notes: tuple[str, ...]
    seconds: float

    @property
    def vector(self) -> Tensor:  # (number of weights,), of shards this rank's part, unit norm
        """The dominant direction."""
        return self.memory.vectors[0]


class Spectrum:
    """One graph of the loss, and estimates on it: of all weights, and of blocks of them."""

    def __init__(
        self, optimizer: Optimizer, engine: Engine, layout: Layout, form: str, products: Any,
        notes: tuple[str, ...], gradient: Sequence[Tensor | None], symmetric: bool, passage: Passage,
    ) -> None:  # fmt: skip
        self.optimizer, self.engine, self.layout, self.passage = optimizer, engine, layout, passage
        self.form, self.notes, self.apply = form, notes, products
        self.root: Tensor | None = getattr(products, "root", None)
        self.rule, self.edge = recognise(optimizer)
        self.gradient, self.symmetric = gradient, symmetric

    def estimate(
        self, *, products: int = 8, start: Start | None = None, block: Block | None = None, seed: int = 0
    ) -> SpectralEstimate:
        """Estimate r, of all weights or of a block of them, in a fixed number of products."""
        began = time.perf_counter()
        mask = None if block is None else self._mask(block)
        cold = start is None
        count = max(products, min(FIRST, math.ceil(1.25 * products))) if cold else products
        few = [f"{count} products from a cold start: r may read low"] if cold and count < FIRST else []
        before = self.engine.products
        operator, steps = restricted(self.apply, mask), min(count, self.layout.size)
        if self.symmetric:
            ends = lanczos(operator, self._start(start, mask, seed), steps, self.layout.dot)
        else:
            vector = start.vectors[0] if isinstance(start, Memory) else start
            ends = arnoldi(operator, self._vector(vector, mask, seed), steps, self.layout.dot)
        known = self.engine.known_loss
        loss = math.nan if block is not None else float(self.engine.loss) if known is None else known
        r = max(abs(ends.low), abs(ends.high))
        bad = not (math.isfinite(r) and (block is not None or math.isfinite(loss)))
        notes = [*self.notes, *few, *(["the loss or its curvature is not finite"] if bad else [])]
        if isinstance(self.apply, (CoordinateWise, BlackBox)) and block is None and not bad:
            doubt = self.apply.doubt(ends.memory.vectors[0])
            bad = doubt > UNKNOWN_FROM
            if doubt > DOUBTED_FROM:
                notes.append(DOUBTFUL.format(doubt, "r is not known" if bad else "r is as uncertain as that"))
        return SpectralEstimate(
            r=math.nan if bad else r,
            edge=self.edge,
            low=ends.low,
            high=ends.high,
            products=self.engine.products - before,
            memory=ends.memory,
            engine=self.engine.name,
            rule=self.rule,
            form=self.form,
            loss=loss,
            probe_size=self.engine.source.size,
            notes=tuple(notes),
            seconds=time.perf_counter() - began,
        )

    def _mask(self, block: Block) -> Tensor:
        own = {id(p): mask for p, mask in block.items()}
        masks = [own.get(id(p), torch.zeros_like(p, dtype=torch.bool)) for p in self.layout.parameters]
        return self.layout.flatten([m.to(p.device) for m, p in zip(masks, self.layout.parameters)])

    def _start(self, start: Start | None, mask: Tensor | None, seed: int) -> Tensor | Memory:
        """What was seen last, or a vector; with a little noise, so that no direction is shut out for good."""
        if not isinstance(start, Memory):
            return self._vector(start, mask, seed)
        base = self.layout.flatten([0.0 if g is None else g for g in self.gradient])
        if start.vectors.shape[1] == base.numel() and len(start.vectors) == 1:  # what is kept in little memory
            base = base if self.root is None else base * self.root
            return Memory(leaning(start.vectors[0].to(base), base, self.layout.dot)[None], start.values)
        noise = self._noise(seed)
        if start.vectors.shape[1] != len(noise):  # the optimizer was given more weights
            return self._vector(None, mask, seed)
        seen = start.vectors.to(noise)
        noise = torch.addmv(noise, seen.T, self.layout.dot(seen, noise), alpha=-1)
        first = _unit(seen[0] + noise, self.layout.dot)
        return Memory(torch.cat([first[None], seen[1:]]), start.values)

    def _vector(self, start: Tensor | None, mask: Tensor | None, seed: int) -> Tensor:
        """The given vector, or the gradient, and the noise."""
        base = self.layout.flatten([0.0 if g is None else g for g in self.gradient])
        if start is not None and start.numel() == base.numel():
            base = _unit(start.to(base), self.layout.dot)
        noise = self._noise(seed)
        if mask is not None:
            base, noise = base * mask, noise * mask
        return _unit(base, self.layout.dot) + noise

    def _noise(self, seed: int) -> Tensor:
        real = any(p.is_complex() for p in self.layout.parameters)
        noise = (
            normal(self.layout.size, seed, self.layout.parameters[0].device)
            if real
            else sharding.noise_over(self.layout.parameters, seed)
        )
        return NOISE * _unit(noise.to(self.layout.dtype), self.layout.dot)


def leaning(direction: Tensor, gradient: Tensor, dot: sharding.Dot) -> Tensor:
    """A unit direction leaning to the gradient by `LEAN`: what was dominant on the last batch, and what this one pulls at."""
    own, direction = _unit(gradient, dot), _unit(direction, dot)
    return _unit((1 - LEAN) * direction + LEAN * torch.sign(dot(direction, own)) * own, dot)


def _unit(vector: Tensor, dot: sharding.Dot) -> Tensor:
    return vector / dot(vector, vector).sqrt().clamp_min(1e-30)
