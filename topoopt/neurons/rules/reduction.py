"""Sums, means, norms and softmax: they do not know the order of what they run over."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis
from topoopt.neurons.rules.table import Value, broadcast, rule


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "softmin", "normalize", "renorm")
def softmax(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """Permuting what goes in permutes what comes out."""
    for axis in x.dims:
        axis.mark("curved")
    return Value(list(x.dims))


@rule("sum", "mean", "prod", "amax", "amin", "std", "var", "logsumexp", "any", "all", "norm", "linalg_vector_norm", "max",
      "min", "median", "var_mean", "std_mean", "argmax", "argmin", "nansum", "count_nonzero", "nanmean")  # fmt: skip
def reduce(out: Any, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Dimensions are summed away or kept with size 1; an index that comes out counts positions of the reduced axis."""
    many = bool(out) and isinstance(out[0], list | tuple)
    shape = [int(size) for size in (out[0] if many else out)]
    others = [a for a in args if isinstance(a, Value)]
    if others:  # max(x, y), min(x, y): entry by entry
        from topoopt.neurons.rules.elementwise import curved

        return curved(out, x, *args, **kwargs)
    gone = _reduced(x, shape, args, kwargs)
    for axis in x.dims:
        axis.mark("curved")
    keeps = len(shape) == len(x.dims)
    dims = [Axis(1) if i in gone else axis for i, axis in enumerate(x.dims) if keeps or i not in gone]
    domain = x.dims[gone[0]] if len(gone) == 1 else None
    if many:
        return [Value(list(dims)), Value(list(dims), domain=domain)]
    return Value(dims, domain=domain)


def _reduced(x: Value, shape: list[int], args: Any, kwargs: Any) -> list[int]:
    """Which dimensions were reduced, from the operator's `dim`, or from the shapes when it has none."""
    if not shape:
        return list(range(len(x.dims)))
    given = kwargs.get("dim", next((a for a in args if isinstance(a, list | tuple)), None))
    if given is None:
        whole = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
        given = whole[0] if whole else None
    if given is None:
        return [i for i, axis in enumerate(x.dims) if len(shape) == len(x.dims) and shape[i] != axis.size]
    return [d % len(x.dims) for d in (given if isinstance(given, list | tuple) else [given])]


@rule("cosine_similarity")
def cosine_similarity(out: list[int], a: Value, b: Value, dim: int = 1, eps: float = 0.0) -> Value:
    """Two tensors compared along one dimension."""
    dims = broadcast([a, b], [max(x, y) for x, y in zip(a.shape, b.shape, strict=True)])
    return Value([axis for i, axis in enumerate(dims) if i != dim % len(dims)])


@rule("pairwise_distance")
def pairwise_distance(out: list[int], a: Value, b: Value, *args: Any, **kwargs: Any) -> Value:
    """Two tensors compared along the last dimension."""
    dims = broadcast([a, b], [max(x, y) for x, y in zip(a.shape, b.shape, strict=True)])
    return Value(dims[:-1] if len(out) < len(dims) else [*dims[:-1], Axis(1)])
