"""Readings along a run: what one remembers of the last, the engine that worked, and a cold restart now and then."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.curvature.engines import ENGINES, engine_of_step
from topoopt.curvature.hessian import FiniteDifferences, Reduce
from topoopt.curvature.jacobian import DROWNED, KINKS
from topoopt.curvature.krylov import Memory
from topoopt.curvature.lean.drowned import Rounding, rounding_of
from topoopt.curvature.lean.few import Ends, Read, at_once, cold_start, estimate, warm_start
from topoopt.curvature.lean.operator import Operator, possible
from topoopt.curvature.lean.remembering import Remembered
from topoopt.curvature.opening import movable, opened, spectrum_of
from topoopt.curvature.passage import Passage
from topoopt.curvature.replaying.checking import Checker
from topoopt.curvature.replaying.live import LiveStep
from topoopt.curvature.replaying.shadow import Shadow
from topoopt.curvature.rules import recognise
from topoopt.curvature.space import Layout
from topoopt.curvature.spectrum import Base, Block, SpectralEstimate, Spectrum
from topoopt.curvature.taping.tape import Tape
from topoopt.device import HostNumbers
from topoopt.errors import ConfigError, MeasurementError

RESTART = 20
"""Every so many readings start cold: a warm start can follow an eigenvector that is no longer the largest."""
CHECK = 10
"""Every so many readings the step is also replayed at the weights themselves, where it must give the gradient in `.grad`."""
SUDDEN = 3.0
"""A warm reading that exceeds the last one by this factor is taken again in full."""
NOTHING = Memory(torch.zeros(0, 0, device="cpu"), ())
"""The memory of a reading by pieces stays with the tracker."""
MANY = 24
"""More products than so many ask for a basis that is held as it is, and is made orthogonal again."""
FROM, MOST = 4, 6
"""Products of the first warm reading, and of one at most, where they are not given."""
STEEP, FLAT = 0.05, 0.01
"""Rises of r with the last product of a warm reading from which the next one takes one more, or one less."""
READS_LOW = "r rose by {:.0%} with the last product of {}: it may read low by about as much"


@dataclass
class Step:
    """A taped step, ready to be read."""

    shadow: Shadow
    layout: Layout
    passage: Passage
    base: Callable[[], Base]
    """(loss, gradient) as backward made them; made when asked for, since they are copies of the weights' size."""
    reduce: Reduce | None


class Tracked:
    """Estimates on one step, the first of all weights, with what the tracker remembers."""

    def __init__(self, tracker: SpectralTracker, make: Callable[[], Spectrum], step: Step | None = None) -> None:
        self._tracker, self._make, self.step = tracker, make, step

    @cached_property
    def spectrum(self) -> Spectrum:
        """The operator on flat vectors, made when it is first asked for."""
        return self._make()

    @cached_property
    def operator(self) -> Operator | None:
        """The operator by pieces, where it is one: in the least memory."""
        return None if self.step is None else self._tracker._by_pieces(self.step)

    def estimate(self, products: int | None = None, *, read: Read = at_once) -> SpectralEstimate:
        """r of all weights, from the last estimate's vector.

        `read` brings its numbers over, and others with them, where products are by pieces.
        """
        return self._tracker._estimate(self, products, read)

    def block(self, block: Block, products: int | None = None) -> SpectralEstimate:
        """r of a block of weights, from the part of the last vector that lies in it."""
        return self._tracker._block(self, block, products)


class SpectralTracker:
    """Reads r again and again while a model trains.

    Args:
        optimizer: whose steps are read.
        products: Jacobian products a reading spends once it is warm; "auto": 1 to 6, one more after a reading whose last
            product still raised r by 5 %, one less after one whose last raised it by less than 1 %.
        first: products of a reading that starts cold.
        engine: "auto", or a name in `engines.ENGINES`.
        seed: of topoopt's own generators.
        compact: keep what is remembered in a quarter of the weights' size, instead of as it is.

    Raises:
        ConfigError: for an engine that is not known.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        products: int | Literal["auto"] = 8,
        engine: str = "auto",
        seed: int = 0,
        *,
        first: int = 10,
        compact: bool = False,
    ) -> None:
        if engine != "auto" and engine not in ENGINES:
            raise ConfigError(f"engine={engine!r} is not known: give auto, {', '.join(ENGINES)}")
        self._optimizer = weakref.ref(optimizer)
        self._adapts = products == "auto"
        self.products = FROM if products == "auto" else products
        """Of the next warm reading."""
        self.first, self.seed = max(first, self.products), seed
        self._asked = self._engine = engine
        self._compact = compact
        self._memory: Remembered | None = None
        self._count = 0
        self._types: list[torch.dtype] = []
        """Of the weights that the memory is of: a model may change them."""
        self._rounding: Tensor | None = None
        self._checker = Checker()
        self._drowning: Rounding | None = None
        self._dropped = 0
        self._last = 0.0
        self.moving: set[str] = set()
        """Names of buffers and parameters that the model's forward is known to write to; tapes and replays add to it."""

    @property
    def optimizer(self) -> Optimizer:
        """Whose steps are read."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise MeasurementError("the optimizer is gone")
        return optimizer

    @property
    def is_warm(self) -> bool:
        """Whether there is an earlier estimate to start from."""
        return self._memory is not None

    @property
    def nbytes(self) -> int:
        """Bytes held between readings."""
        return 0 if self._memory is None else self._memory.nbytes

    def forget(self) -> None:
        """Drop what is remembered: the weights are others now, or measuring has ended."""
        self._memory, self._engine, self._rounding, self._drowning, self._dropped = None, self._asked, None, None, 0

    def begin_again(self) -> None:
        """As a tracker that has read nothing yet."""
        self.forget()
        self._count, self._last = 0, 0.0
        self._checker = Checker()

    # -- on a loss that was given ------------------------------------------------------------------------------------

    @contextmanager
    def open(
        self,
        loss: Callable[[], Any],
        *,
        when: str = "upcoming",
        grads: str = "auto",
        reduce: Reduce | None = None,
        model: nn.Module | None = None,
    ) -> Iterator[Tracked]:
        """Evaluate the loss once; see `spectrum.proximity` for the arguments. The engine that works is remembered."""
        options = {"when": when, "grads": grads, "reduce": reduce, "model": model, "seed": self.seed}
        with opened(self.optimizer, loss, engine=self._engine, **options) as spectrum:  # type: ignore[arg-type]
            self._engine = spectrum.engine.name
            yield Tracked(self, lambda: spectrum)

    def estimate(self, loss: Callable[[], Any], *, block: Block | None = None, **options: Any) -> SpectralEstimate:
        """One estimate on a graph of its own."""
        with self.open(loss, **options) as tracked:
            return tracked.estimate() if block is None else tracked.block(block)

    # -- on the user's own step --------------------------------------------------------------------------------------

    def tape(self, model: nn.Module, *, inside: bool = False) -> Tape:
        """A tape for the coming step of `model`."""
        return Tape(model, movable(self.optimizer).parameters, inside=inside, moving=self.moving)

    @contextmanager
    def live(self, tape: Tape, *, reduce: Reduce | None = None) -> Iterator[Tracked]:
        """Replay a taped step of sharded weights on the live model, watched; see `live`.

        Raises:
            MeasurementError: where the step could not be followed, with what stood in the way.
        """
        layout = movable(self.optimizer)
        source = LiveStep(tape, self.seed)
        with source.running():
            spectrum = spectrum_of(self.optimizer, source, layout, engine=self._engine, reduce=reduce)
            yield Tracked(self, lambda: spectrum)

    def taped(self, tape: Tape, *, reduce: Reduce | None = None, numbers: HostNumbers | None = None) -> Tracked:
        """Replay the step that was taped, before its update is taken. `numbers`: what the host knows of the rule's own.

        Raises:
            MeasurementError: where the step could not be followed, with what stood in the way.
            NotDefinedError: for a rule without a Lipschitz constant.
        """
        layout = movable(self.optimizer)
        layout = layout if numbers is None else replace(layout, numbers=numbers)
        if [id(p) for p in layout.parameters] != [id(p) for p in tape.parameters]:
            raise MeasurementError("the optimizer's parameters have changed within the step")
        shadow = Shadow(tape)
        passage, base = self._checker.passage(
            tape, shadow, layout, reduce, anew=self._count % CHECK == 0,
            undone_does=lambda found: possible(self.optimizer, found, layout),
        )  # fmt: skip
        step = Step(shadow, layout, passage, base, reduce)
        return Tracked(self, lambda: self._spectrum(step), step)

    def _spectrum(self, step: Step) -> Spectrum:
        self._settle_engine(step)
        spectrum = spectrum_of(
            self.optimizer, step.shadow, step.layout, engine=self._engine, reduce=step.reduce, base=step.base(),
            passage=step.passage, rounding=self._rounding if self._count % RESTART else None,
        )  # fmt: skip
        if isinstance(spectrum.engine, FiniteDifferences):
            self._rounding = spectrum.engine.known_rounding
            spectrum.notes = (*spectrum.notes, *_kinks(step))
        return spectrum

    def _settle_engine(self, step: Step) -> None:
        if self._engine == "auto":
            self._engine = engine_of_step(step.shadow, step.reduce)

    def _by_pieces(self, step: Step) -> Operator | None:
        """The operator by pieces, without the weights whose gradients are rounding; None where it is not of that form."""
        self._settle_engine(step)
        if self._engine != FiniteDifferences.name or not possible(self.optimizer, step.passage, step.layout):
            return None
        operator = Operator(self.optimizer, step.shadow, step.layout, step.passage, step.reduce)
        known = self._drowning is not None and self._drowning.count == len(operator.parameters)
        if self._is_cold(step) and not (known and self._count % RESTART):
            self._drowning, self._dropped = rounding_of(operator)
        operator.rounding = self._drowning
        return operator

    def _is_cold(self, step: Step) -> bool:
        memory, types = self._memory, [p.dtype for p in step.layout.parameters]
        others = memory is None or memory.size != step.layout.size or types != self._types
        return others or self._count % RESTART == 0

    def _estimate(self, tracked: Tracked, products: int | None, read: Read) -> SpectralEstimate:
        step, operator = tracked.step, tracked.operator
        if step is None or operator is None or (products or self.products) > MANY:
            return self._by_basis(tracked.spectrum, products)
        began, few = time.perf_counter(), ()
        if not self._is_cold(step):
            assert self._memory is not None
            start = warm_start(operator, self._memory.direction(operator.pieces, operator.parameters))
            found = estimate(operator, start, products or self.products, read)
            if found.r <= SUDDEN * self._last:
                self._adapt(found)
                return self._known(found, operator, step, began, _low(found, operator))
        count = max(self.first, self.products) if products is None else products
        found = estimate(operator, cold_start(operator, self.seed + self._count), count, read)
        if count < MANY:
            few = (f"{count} products from a cold start: r may read low",)
        return self._known(found, operator, step, began, (*few, *_low(found, operator)))

    def _adapt(self, found: Ends) -> None:
        """How many products the next warm reading takes: a rise over the last one is what the next would still find."""
        if self._adapts and found.rise == found.rise:
            self.products = min(MOST, max(1, self.products + (found.rise > STEEP) - (found.rise < FLAT)))

    def _known(
        self, found: Ends, operator: Operator, step: Step, began: float, said: tuple[str, ...]
    ) -> SpectralEstimate:
        """An estimate by pieces, remembered."""
        self._count += 1
        self._types = [p.dtype for p in step.layout.parameters]
        known = found.r == found.r
        direction = found.direction.coarse() if self._compact else found.direction
        self._memory, self._last = (Remembered(direction, found.r), found.r) if known else (None, 0.0)
        return self._told(found, operator, step, began, said)

    def _told(
        self, found: Ends, operator: Operator, step: Step, began: float, said: tuple[str, ...]
    ) -> SpectralEstimate:
        rule, edge = recognise(self.optimizer)
        dropped = (DROWNED.format(self._dropped),) if self._dropped else ()
        bad = () if found.r == found.r else ("the loss or its curvature is not finite",)
        return SpectralEstimate(
            r=found.r, edge=edge, low=found.low, high=found.high, products=operator.products, memory=NOTHING,
            engine=FiniteDifferences.name, rule=rule, form="held", loss=float("nan"), probe_size=step.shadow.size,
            notes=(*step.passage.notes, *_kinks(step), *dropped, *said, *bad), seconds=time.perf_counter() - began,
        )  # fmt: skip

    def _block(self, tracked: Tracked, block: Block, products: int | None) -> SpectralEstimate:
        memory, count, step = self._memory, products or self.products, tracked.step
        operator = tracked.operator
        if step is None or operator is None or memory is None or count > MANY:
            start = None if memory is None else memory.recall().vectors[0]
            return tracked.spectrum.estimate(products=count, start=start, block=block, seed=self.seed)
        began, before = time.perf_counter(), operator.products
        index = {id(p): i for i, p in enumerate(step.layout.parameters)}
        operator.block = {index[id(p)]: mask.to(p.device) for p, mask in block.items() if id(p) in index}
        try:
            start = warm_start(operator, memory.direction(operator.pieces, operator.parameters))
            found = self._told(estimate(operator, start, count), operator, step, began, ())
        finally:
            operator.block = None
        return replace(found, products=operator.products - before)

    def _by_basis(self, spectrum: Spectrum, products: int | None) -> SpectralEstimate:
        """With a basis of flat vectors: for any form of the operator, any engine, and many products."""
        count = products or self.products
        start = None if self._memory is None else self._memory.recall()
        if start is None or self._count % RESTART == 0:
            count, start = max(count, self.first), None
        found = spectrum.estimate(products=count, start=start, seed=self.seed + self._count)
        self._count += 1
        known = found.r == found.r
        self._memory = Remembered.of(found.memory, compact=self._compact) if known else None
        self._last = found.r if known else 0.0
        return found

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: what is remembered is as large as the weights, and is found anew in a few products."""
        return {"engine": self._engine, "count": self._count, "moving": sorted(self.moving)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`'s values; the next reading starts cold.

        Raises:
            ValueError: for an engine that is not known, or a count or names that are none; nothing has been taken up then.
        """
        engine, count, moving = state["engine"], int(state["count"]), set(state.get("moving", ()))
        if engine not in ("auto", *ENGINES) or count < 0 or not all(isinstance(name, str) for name in moving):
            raise ValueError(f"engine {str(engine)[:80]!r}, count {str(count)[:80]} or what moved is not possible")
        self._engine, self._count, self._memory, self.moving = engine, count, None, moving


def _kinks(step: Step) -> tuple[str, ...]:
    return (KINKS,) if step.shadow.kinks else ()


def _low(found: Ends, operator: Operator) -> tuple[str, ...]:
    return (READS_LOW.format(found.rise, operator.products),) if found.rise > STEEP else ()
