"""One estimate of r on a loss that is given: from an optimizer and a loss to the spectrum of the step's Jacobian."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt import sharding
from topoopt.curvature.engines import open_engine
from topoopt.curvature.hessian import Engine, FiniteDifferences, Gradients, Reduce
from topoopt.curvature.jacobian import FORMS, SIGNS, engine_for, form_of, operator_of, own_gradient
from topoopt.curvature.passage import Passage, between
from topoopt.curvature.replaying.closure import Closure
from topoopt.curvature.rules import has_no_lipschitz_constant
from topoopt.curvature.space import Layout, layout_of
from topoopt.curvature.spectrum import Base, Block, SpectralEstimate, Spectrum, Start
from topoopt.errors import ConfigError, MeasurementError, NotDefinedError

WHENS = ("last", "upcoming")


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
        engine: "auto", or a name in `engines.ENGINES`.
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
