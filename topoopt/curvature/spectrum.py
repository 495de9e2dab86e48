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
from topoopt.curvature.closure import Closure
from topoopt.curvature.hessian import Engine, FiniteDifferences, Gradients, Reduce, open_engine
from topoopt.curvature.jacobian import (
    FORMS,
    SIGNS,
    BlackBox,
    CoordinateWise,
    engine_for,
    form_of,
    operator_of,
    own_gradient,
    restricted,
)
from topoopt.curvature.krylov import Memory, arnoldi, lanczos
from topoopt.curvature.passage import Passage, between
from topoopt.curvature.rules import has_no_lipschitz_constant, recognise
from topoopt.curvature.space import Layout, layout_of
from topoopt.device import normal
from topoopt.errors import ConfigError, MeasurementError, NotDefinedError

Base = tuple[Tensor, Sequence[Tensor | None]]
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
    """Evaluate the loss once and give estimates on it; everything that its evaluation touched is put back at the end."""
    _check(when, form)
    layout = movable(optimizer)
    source = Closure(loss, layout.parameters, model, seed)
    with source.running():
        yield spectrum_of(
            optimizer, source, layout, engine=engine, upcoming=when == "upcoming", form=form, reduce=reduce, grads=grads
        )


def spectrum_of(
    optimizer: Optimizer,
    source: Gradients,
    layout: Layout,
    *,
    engine: str = "auto",
    upcoming: bool = True,
    form: str = "auto",
    reduce: Reduce | None = None,
    grads: str = "auto",
    base: Base | None = None,
    passage: Passage | None = None,
    rounding: Tensor | None = None,
) -> Spectrum:
    """Choose the form of the step's Jacobian and how its products are taken, on any source of gradients.

    Args:
        optimizer: the rule, its state and its rates.
        source: gradients of the step's loss.
        layout: of the weights that can move.
        engine: as `proximity`'s.
        upcoming: whether the step is still to be taken.
        form: as `proximity`'s.
        reduce: averages a list of tensors over ranks in place.
        grads: as `proximity`'s.
        base: (loss, gradient) at the weights as they stand, where they are known.
        passage: what stands between backward and step, where it is known; None: told from `.grad` where that is the loss's.
        rounding: (parameters,) sizes of the rounding in each gradient, where an earlier estimate has measured them.
    """
    started: dict[str, Engine] = {}

    def start(name: str) -> Engine:
        if name not in started:
            started[name] = open_engine(name, source, reduce, base)
        return started[name]

    own = own_gradient(layout, grads)
    chosen = form_of(
        optimizer, layout, form, lambda: own or start(engine_for(engine, layout, "black box")).step_gradient
    )
    opened_engine = start(engine_for(engine, layout, chosen))
    if isinstance(opened_engine, FiniteDifferences):
        opened_engine.known_rounding = rounding
    settle = getattr(source, "settle", None)
    if settle is not None:
        settle(getattr(reduce, "any", bool))
    notes = (
        []
        if own
        else [
            f"the step's gradient is the probe's, {'which was asked for' if grads == 'probe' else 'since .grad is empty'}"
        ]
    )
    if passage is None:
        passage = _told(opened_engine, own, layout)
    notes += [*passage.notes, *getattr(source, "notes", ())]
    gradient = own or opened_engine.step_gradient
    product, symmetric, said = operator_of(
        chosen, optimizer, opened_engine, layout, gradient, upcoming=upcoming, passage=passage
    )
    return Spectrum(optimizer, opened_engine, layout, chosen, product, (*notes, *said), gradient, symmetric, passage)


def _told(engine: Engine, own: Sequence[Tensor | None] | None, layout: Layout) -> Passage:
    """The passage from a given loss's gradient to `.grad`; nothing is told where that is another batch's."""
    if own is None or any(sharding.is_sharded(p) for p in layout.parameters):
        return Passage()
    try:
        found = between(engine.step_gradient, own, layout)
    except MeasurementError:
        return Passage()
    return found if found.direction is not None or not found.notes or found.uniform != 1.0 else Passage()


def movable(optimizer: Optimizer) -> Layout:
    """The weights that can move.

    Raises:
        MeasurementError: where there is none.
        NotDefinedError: for a rule that is known to take signs.
    """
    layout = layout_of(optimizer)
    if not layout.parameters:
        raise MeasurementError("the optimizer holds no parameter that asks for a gradient")
    if has_no_lipschitz_constant(optimizer):
        raise NotDefinedError(SIGNS.format(type(optimizer).__name__))
    return layout


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
        engine: "auto", or a name in `hessian.ENGINES`.
        when: "last" (preconditioner as it stands) or "upcoming" (as it will stand in the next step, `.grad` taken in).
        block: {parameter: bool mask}: restrict the Jacobian to those weights.
        form: "auto" ("held" for a recognised rule, "full" for one that is found to be coordinate-wise, else "black box"),
            or one of these.
        seed: of the probe's noise and of the start's.
        reduce: averages a list of tensors over ranks in place.
        grads: where an upcoming step's gradient comes from: "auto" (`.grad`, else the probe's) or "probe".
        model: its batch size is told; what the loss changes is put back with it or without.

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


def _check(when: str, form: str) -> None:
    if when not in WHENS:
        raise ConfigError(f"when={when!r} is not known: give one of {', '.join(WHENS)}")
    if form not in FORMS:
        raise ConfigError(f"form={form!r} is not known: give one of {', '.join(FORMS)}")
