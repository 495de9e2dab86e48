"""Scaled dot-product attention."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import unify
from topoopt.neurons.rules.table import Value, broadcast, rule


@rule("scaled_dot_product_attention")
def attention(
    out: list[int], q: Value, k: Value, v: Value, mask: Value | None = None, *args: Any, **kwargs: Any
) -> Value:
    """q (..., H, L, E), k (..., H', S, E), v (..., H', S, Ev) -> (..., H, L, Ev); H = H' or a multiple of it."""
    unify(q.dims[-1], k.dims[-1])
    unify(k.dims[-2], v.dims[-2])
    heads, shared = q.dims[-3], k.dims[-3]
    unify(shared, v.dims[-3])
    if heads.size == shared.size:
        unify(heads, shared)
        shared.mark("head")
    else:  # grouped queries: the unit is the key-value head with its queries inside
        outer, inner = heads.split([shared.size, heads.size // shared.size])
        unify(outer, shared)
        shared.mark("head")
        inner.mark("query")
    for a, b in zip(q.dims[:-3], k.dims[:-3]):
        if a.size == b.size:
            unify(a, b)
    causal = kwargs.get("is_causal", args[1] if len(args) > 1 else False)
    if causal:
        q.dims[-2].freeze("causal attention")
        k.dims[-2].freeze("causal attention")
    if mask is not None:
        scores = [*q.dims[:-1], k.dims[-2]]
        broadcast([Value(scores), mask], [axis.size for axis in scores])
    q.dims[-1].mark("inner")
    v.dims[-1].mark("inner")
    return Value([*q.dims[:-1], v.dims[-1]])
