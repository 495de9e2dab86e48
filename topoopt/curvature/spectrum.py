"""r_spec: the spectral radius of the displacement's Jacobian, at the weights as they stand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature import operator as jacobian
from topoopt.curvature.arnoldi import arnoldi
from topoopt.curvature.blackbox import BlackBox
from topoopt.curvature.coordinatewise import CoordinateWise
from topoopt.curvature.engines import Engine, Reduce, open_engine
from topoopt.curvature.forms import FORMS, SIGNS, engine_for, form_of, operator_of, own_gradient
from topoopt.curvature.lanczos import Memory, lanczos
from topoopt.curvature.probe import Probe
from topoopt.curvature.rules import has_no_lipschitz_constant, recognise
from topoopt.errors import ConfigError, MeasurementError, NotDefinedError

Block = Mapping[Tensor, Tensor]
Start = Tensor | Memory
WHENS = ("last", "upcoming")
FIRST = 10
"""Products of an estimate without a start of its own: the gradient is a good start, but not as good as the last vector.

Who asks for fewer than eight gets a quarter more than that instead, and a note.
"""
DOUBTFUL = "the optimizer's step answers differently ({:.0%}) to twice the finite difference: {}"
DOUBTED_FROM, UNKNOWN_FROM = 0.05, 1 / 3
"""Shares by which a product may change with the difference of a step that was tried, before that is said, and before r is
given up. Pure rounding changes it by half: the same jump over twice the difference.
"""
NOISE = 1e-3
"""Share of random directions in a start."""


@dataclass(frozen=True)
class SpectralEstimate:
    """Proximity of one step to the topological critical learning rate, by its Jacobian."""

    r: float
    """max(|low|, |high|): r = eta / eta*."""
    edge: float
    """Edge of stability of the rule, in units of r."""
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
        self, optimizer: Optimizer, probe: Probe, engine: Engine, layout: jacobian.Layout, form: str, products: Any,
        notes: tuple[str, ...], gradient: Sequence[Tensor | None], symmetric: bool,
    ) -> None:  # fmt: skip
        self.optimizer, self.probe, self.engine, self.layout = optimizer, probe, engine, layout
        self.form, self.notes, self.apply = form, notes, products
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
        operator, steps = jacobian.restricted(self.apply, mask), min(count, self.layout.size)
        if self.symmetric:
            ends = lanczos(operator, self._start(start, mask, seed), steps, self.layout.dot)
        else:
            vector = start.vectors[0] if isinstance(start, Memory) else start
            ends = arnoldi(operator, self._vector(vector, mask, seed), steps, self.layout.dot)
        loss = float(self.engine.loss)
        r = max(abs(ends.low), abs(ends.high))
        bad = not (math.isfinite(r) and math.isfinite(loss))
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
            probe_size=self.probe.size,
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
            base = start.to(base)
        noise = self._noise(seed)
        if mask is not None:
            base, noise = base * mask, noise * mask
        return _unit(base, self.layout.dot) + noise

    def _noise(self, seed: int) -> Tensor:
        noise = sharding.noise_over(self.layout.parameters, seed)
        noise = noise.to(self.layout.parameters[0].device, self.layout.dtype)
        return NOISE * _unit(noise, self.layout.dot)


def _unit(vector: Tensor, dot: sharding.Dot) -> Tensor:
    return vector / dot(vector, vector).sqrt().clamp_min(1e-30)


@contextmanager
def opened(
    optimizer: Optimizer,
    loss: Callable[[], Any],
    *,
    engine: str = "auto",
    when: str = "last",
    form: str = "auto",
    seed: int = 0,
    reduce: Reduce | None = None,
    grads: str = "auto",
    model: nn.Module | None = None,
) -> Iterator[Spectrum]:
    """Evaluate the loss once and give estimates on it; everything the probe touched is put back at the end."""
    _check(when, form)
    layout = jacobian.layout_of(optimizer)
    if not layout.parameters:
        raise MeasurementError("the optimizer holds no parameter that asks for a gradient")
    if has_no_lipschitz_constant(optimizer):
        raise NotDefinedError(SIGNS.format(type(optimizer).__name__))
    probe = Probe(loss, model, seed)
    with probe.running():

        def start(form: str) -> Engine:
            return open_engine(engine_for(engine, layout, form), probe, layout.parameters, reduce)

        def gradient() -> Sequence[Tensor | None]:
            return own_gradient(layout, grads) or start("black box").step_gradient

        chosen = form_of(optimizer, layout, form, gradient)
        started = start(chosen)
        yield _spectrum(optimizer, probe, started, layout, chosen, upcoming=when == "upcoming", grads=grads)


def proximity(
    optimizer: Optimizer,
    loss: Callable[[], Any],
    *,
    products: int = 8,
    start: Start | None = None,
    engine: str = "auto",
    when: str = "last",
    block: Block | None = None,
    form: str = "auto",
    seed: int = 0,
    reduce: Reduce | None = None,
    grads: str = "auto",
    model: nn.Module | None = None,
) -> SpectralEstimate:
    """Estimate r = eta / eta* of a step; reads the optimizer and changes nothing, not even `.grad`.

    Args:
        optimizer: any torch optimizer; its learning rates, state and weight decay enter as they are.
        loss: runs a forward and returns a scalar tensor or an object with `.loss`.
        products: Jacobian products to spend; without `start` a quarter more, up to 10.
        start: `memory` of an earlier estimate, or a vector.
        engine: "auto", or a name in `engines.ENGINES`.
        when: "last" (preconditioner as it stands) or "upcoming" (as it will stand in the next step, `.grad` taken in).
        block: {parameter: bool mask}: restrict the Jacobian to those weights.
        form: "auto" ("held" for a recognised rule, "full" for one that is found to be coordinate-wise, else "black box"),
            or one of these.
        seed: of the probe's noise and of the start's.
        reduce: averages a list of tensors over ranks in place.
        grads: where an upcoming step's gradient comes from: "auto" (`.grad`, else the probe's) or "probe".
        model: its buffers are guarded; without it, those of every module that runs in the probe.

    Raises:
        MeasurementError: when the loss has no graph, the rule no Lipschitz constant, or no engine works.
        ConfigError: for an unknown option.

    Source: Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670 (r = eta K, K the Lipschitz constant of the update), taken
    locally; Cohen et al. 2022 for the preconditioned form.
    """
    began = time.perf_counter()
    options = {"engine": engine, "when": when, "form": form, "seed": seed, "reduce": reduce, "grads": grads}
    with opened(optimizer, loss, model=model, **options) as spectrum:  # type: ignore[arg-type]
        found = spectrum.estimate(products=products, start=start, block=block, seed=seed)
    return replace(found, seconds=time.perf_counter() - began)


def _spectrum(
    optimizer: Optimizer,
    probe: Probe,
    engine: Engine,
    layout: jacobian.Layout,
    form: str,
    *,
    upcoming: bool,
    grads: str,
) -> Spectrum:
    own = own_gradient(layout, grads)
    gradient = own or engine.step_gradient
    source = "which was asked for" if grads == "probe" else "since .grad is empty"
    notes = [] if own else [f"the step's gradient is the probe's, {source}"]
    product, symmetric, said = operator_of(form, optimizer, engine, layout, gradient, upcoming=upcoming)
    return Spectrum(optimizer, probe, engine, layout, form, product, (*notes, *said), gradient, symmetric)


def _check(when: str, form: str) -> None:
    if when not in WHENS:
        raise ConfigError(f"when={when!r} is not known: give one of {', '.join(WHENS)}")
    if form not in FORMS:
        raise ConfigError(f"form={form!r} is not known: give one of {', '.join(FORMS)}")
