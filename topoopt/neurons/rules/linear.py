"""Products of matrices and attention: what is summed over is shared, what is left stands."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, unify
from topoopt.neurons.rules.table import Value, broadcast, fresh, rule


@rule("linear")
def linear(out: list[int], x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x (..., k), weight (n, k), bias (n) -> (..., n)."""
    unify(x.dims[-1], weight.dims[1])
    weight.used_as("out", 0)
    weight.used_as("in", 1)
    if bias is not None:
        unify(bias.dims[0], weight.dims[0])
    return Value([*x.dims[:-1], weight.dims[0]])


@rule("addmm", "baddbmm")
def addmm(out: list[int], bias: Value, a: Value, b: Value, **kwargs: Any) -> Value:
    """Bias + a b."""
    product = matmul(out, a, b)
    broadcast([bias, product], out)
    return product


@rule("mm", "bmm", "matmul", "mv", "dot", "vdot", "linalg_vecdot")
def matmul(out: list[int], a: Value, b: Value, **kwargs: Any) -> Value:
    """(..., m, k) times (..., k, n): k is summed over, leading dimensions are broadcast."""
    left, right = a.dims, b.dims
    unify(left[-1], right[-2] if len(right) > 1 else right[-1])
    if len(left) > 1 and len(right) > 1:
        a.used_as("in", -1)
        a.used_as("out", -2)
        b.used_as("in", -2)
        b.used_as("out", -1)
    rows = [left[-2]] if len(left) > 1 else []
    columns = [right[-1]] if len(right) > 1 else []
    batch = out[: len(out) - len(rows) - len(columns)]
    dims = broadcast([Value(left[:-2]), Value(right[:-2])], batch) if batch else []
    if a.learned or b.learned:
        for axis in (left if a.learned else right)[:-2]:
            axis.mark("expert")
    elif dims and rows and columns:
        _attend(dims, left[-1], rows[0], columns[0])
    return Value([*dims, *rows, *columns])


def _attend(batch: list[Axis], inner: Axis, rows: Axis, columns: Axis) -> None:
    """Two activations multiplied, place by place: attention's scores or its mixing. The last batch axis holds the heads."""
    if rows.size > 1 and columns.size > 1:
        inner.mark("inner")
        columns.mark("inner")
    if len(batch) > 1 or len(batch[-1].factors()) > 1:
        batch[-1].mark("head")


@rule("bilinear")
def bilinear(out: list[int], a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """a_i W_kij b_j."""
    unify(a.dims[-1], weight.dims[1])
    unify(b.dims[-1], weight.dims[2])
    if bias is not None:
        unify(bias.dims[0], weight.dims[0])
    return Value([*a.dims[:-1], weight.dims[0]])


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(out: list[int], a: Value, b: Value, *args: Any, **kwargs: Any) -> Value:
    """a (..., m, k), b (..., n, k) -> (..., m, n)."""
    unify(a.dims[-1], b.dims[-1])
    batch = broadcast([Value(a.dims[:-2]), Value(b.dims[:-2])], out[:-2]) if len(out) > 2 else []
    return Value([*batch, a.dims[-2], b.dims[-2]])


@rule("kron")
def kron(out: list[int], a: Value, b: Value) -> Value:
    """Every entry of `a` times all of `b`: dimensions are products."""
    pad = len(out)
    left, right = ([*[Axis(1)] * (pad - len(v.dims)), *v.dims] for v in (a, b))
    return Value([Axis.product([x, y]) for x, y in zip(left, right)])


@rule("outer")
def outer(out: list[int], a: Value, b: Value) -> Value:
    """a_i b_j."""
    return Value([a.dims[0], b.dims[0]])


@rule("einsum")
def einsum(out: list[int], equation: str, operands: list[Value], **kwargs: Any) -> Value:
    """Equal letters are equal axes; an ellipsis freezes what it covers."""
    equation = equation.replace(" ", "")
    inputs, _, result = equation.partition("->")
    named: dict[str, Axis] = {}
    for letters, value in zip(inputs.split(","), operands):
        if "..." in letters:
            for axis in value.dims:
                axis.freeze("einsum with an ellipsis")
            continue
        for letter, axis in zip(letters, value.dims):
            unify(named.setdefault(letter, axis), axis)
    if "..." in equation or "->" not in equation:
        for axis in named.values():
            axis.freeze("einsum with an ellipsis or no stated result")
        return Value([Axis(int(size), "einsum") for size in out])
    both = [letters for letters, value in zip(inputs.split(","), operands) if not value.learned]
    if len(both) > 1:
        for letter in set(both[0]) & set(both[1]):
            named[letter].mark("head" if letter in result else "inner")
    return Value([named[letter] for letter in result])


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


@rule("_scaled_dot_product_flash_attention_for_cpu")
def attention_with_sums(
    out: list[list[int]],
    q: Value,
    k: Value,
    v: Value,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    attn_mask: Value | None = None,
    **kwargs: Any,
) -> list[Value]:
    """The same below automatic differentiation, with the logarithm of each query's sum beside it."""
    result = attention(out[0], q, k, v, attn_mask, dropout_p, is_causal)
    return [result, Value(fresh(out[1], "sums over the keys"))]
