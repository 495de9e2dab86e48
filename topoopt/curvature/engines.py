"""Which engine forms the products: by name, by the kind of the step, or the first that can."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from topoopt.curvature.hessian import (
    DoubleBackward,
    Engine,
    FiniteDifferences,
    Gradients,
    MathAttention,
    Reduce,
    ThroughGrad,
)
from topoopt.curvature.replaying.shadow import Shadow
from topoopt.errors import ConfigError, MeasurementError

ENGINES: dict[str, type[Engine]] = {
    kind.name: kind for kind in (DoubleBackward, MathAttention, FiniteDifferences, ThroughGrad)
}


def open_engine(
    name: str,
    source: Gradients,
    reduce: Reduce | None,
    base: tuple[Tensor, Sequence[Tensor | None]] | None = None,
) -> Engine:
    """Start the engine of that name, or with "auto" the first that can form a product.

    Raises:
        ConfigError: for an unknown name.
        MeasurementError: when none works, with each one's reason.
    """
    if name != "auto":
        if name not in ENGINES:
            raise ConfigError(f"engine={name!r} is not known: give auto, {', '.join(ENGINES)}")
        named = _started(ENGINES[name], source, reduce, base)
        named.verify()
        return named
    reasons: list[str] = []
    for kind in ENGINES.values():
        try:
            engine = tried(kind, source, reduce, base)
            engine.products = 0
            return engine
        except failures_of(reduce) as error:  # MeasurementError, torch's refusals, another rank's
            reasons.append(f"{kind.name}: {str(error).splitlines()[0][:120]}")
    raise MeasurementError("; ".join(dict.fromkeys(reasons)))


def _started(kind: type[Engine], source: Gradients, reduce: Reduce | None, base: Any) -> Engine:
    return kind(source, reduce, base) if issubclass(kind, FiniteDifferences) else kind(source, reduce)  # type: ignore[call-arg]


def failures_of(reduce: Reduce | None) -> tuple[type[Exception], ...]:
    """What makes an engine be given up for the next: with other ranks anything, which go on together: what one meets, all met."""
    return (Exception,) if hasattr(reduce, "together") else (RuntimeError, NotImplementedError)


def tried(kind: type[Engine], source: Gradients, reduce: Reduce | None, base: Any = None) -> Engine:
    """The engine, after a product: a way of measuring that works on all ranks or is given up by all."""
    together = getattr(reduce, "together", nullcontext)
    with together():
        engine = _started(kind, source, reduce, base)
        engine.verify()
        engine.product(engine.gradient)
    return engine


def engine_of_step(shadow: Shadow, reduce: Reduce | None) -> str:
    """Of a taped step: differences, unless they would be wrong (kinks, 16 bits) and exact products can be formed.

    Exact products cost about twice as much where a reading takes three. No clock decides: equal runs read equally.

    Raises:
        MeasurementError: for a forward in 16 bits that cannot be differentiated twice.
    """
    coarse = shadow.low_precision or any(p.dtype in (torch.bfloat16, torch.float16) for p in shadow.parameters)
    anywhere = getattr(reduce, "any", bool)
    coarse, kinked = anywhere(coarse), anywhere(bool(shadow.kinks))
    if not coarse and not kinked:
        return FiniteDifferences.name
    for kind in (DoubleBackward, MathAttention):
        try:
            tried(kind, shadow, reduce)
        except failures_of(reduce):
            continue
        return kind.name
    if coarse:
        raise MeasurementError(
            "the forward runs in 16 bits, in whose rounding finite differences are lost, and it cannot be differentiated twice"
        )
    return FiniteDifferences.name
