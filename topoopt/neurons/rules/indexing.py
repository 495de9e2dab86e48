"""Looking up by index. An index that was computed from an axis (top-k, argmax) carries that axis as its domain."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, unify
from topoopt.neurons.rules.shape import slice_
from topoopt.neurons.rules.table import Value, broadcast, rule


@rule("embedding")
def embedding(out: list[int], weight: Value, index: Value, *args: Any, **kwargs: Any) -> Value:
    """weight (V, d) looked up by index (...) -> (..., d)."""
    look_up(weight.dims[0], index, "a vocabulary")
    return Value([*index.dims, weight.dims[1]])


def look_up(axis: Axis, index: Value, what: str) -> None:
    """Tie the axis that is looked into to the index's domain; without one its order matters."""
    if index.domain is not None and index.domain.size == axis.size:
        unify(axis, index.domain)
        axis.mark("expert")
    else:
        axis.freeze(f"{what} that is looked up by position")


@rule("index_select")
def index_select(out: list[int], x: Value, dim: int, index: Value) -> Value:
    """Positions along one dimension."""
    look_up(x.dims[dim], index, "an axis")
    dims = list(x.dims)
    dims[dim] = index.dims[0] if index.dims else Axis(1)
    return Value(dims)


@rule("index", "_unsafe_index")
def index(out: list[int], x: Value, indices: list[Value | None]) -> Value:
    """x[i, :, j]: the indices are broadcast together and stand where the first of them stood."""
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(given) == 1 and (positions := _consecutive(*given[0], x)) is not None:
        return slice_(out, x, given[0][0], positions[0], positions[0] + len(positions))
    masks = [i for _, i in given if len(i.dims) > 1 and len(given) == 1 and i.shape == x.shape[: len(i.dims)]]
    if masks and len(out) != len(x.dims) - 1 + len(masks[0].dims):
        return _give_up(out, x, given)
    for d, i in given:
        look_up(x.dims[d], i, "an axis")
    shape_of = max((i.shape for _, i in given), key=len, default=[])
    together = broadcast([i for _, i in given], [max(i.shape[-k] if len(i.dims) >= k else 1 for _, i in given)
                                                for k in range(len(shape_of), 0, -1)])  # fmt: skip
    taken = [d for d, _ in given]
    rest = [axis for d, axis in enumerate(x.dims) if d not in taken]
    adjacent = taken == list(range(taken[0], taken[0] + len(taken))) if taken else True
    at = taken[0] if taken and adjacent else 0
    return Value([*rest[:at], *together, *rest[at:]])


def _consecutive(dim: int, index: Value, x: Value) -> list[int] | None:
    """The positions that a constant index names, when they follow one another: x[..., [-1], :] is a slice."""
    if index.content is None or index.content.ndim != 1 or index.content.is_floating_point() or not len(index.content):
        return None
    positions = [int(i) % x.dims[dim].size for i in index.content.tolist()]
    return positions if positions == list(range(positions[0], positions[0] + len(positions))) else None


def _give_up(out: list[int], x: Value, given: list[tuple[int, Value]]) -> Value:
    for axis in (*x.dims, *(a for _, i in given for a in i.dims)):
        axis.freeze("indexed by a mask")
    return Value([Axis(int(size), "indexed by a mask") for size in out])


@rule("gather")
def gather(out: list[int], x: Value, dim: int, index: Value, **kwargs: Any) -> Value:
    """Positions along `dim`, chosen for each entry."""
    dim = dim % len(x.dims)
    look_up(x.dims[dim], index, "an axis")
    for i, (own, other) in enumerate(zip(x.dims, index.dims)):
        if i != dim and own.size == other.size:
            unify(own, other)
    return Value(list(index.dims))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(out: list[int], x: Value, dim: int, index: Value, source: Any = None, *args: Any, **kwargs: Any) -> Value:
    """Writing to positions along `dim`, chosen for each entry."""
    dim = dim % len(x.dims)
    look_up(x.dims[dim], index, "an axis")
    sources = [source] if isinstance(source, Value) else []
    for value in (index, *sources):
        for i, (own, other) in enumerate(zip(x.dims, value.dims)):
            if i != dim and own.size == other.size:
                unify(own, other)
    if sources:
        unify(index.dims[dim], sources[0].dims[dim])
    return Value(list(x.dims))


@rule("index_add", "index_copy")
def index_add(out: list[int], x: Value, dim: int, index: Value, source: Value, **kwargs: Any) -> Value:
    """Whole entries added at positions along `dim`."""
    dim = dim % len(x.dims)
    look_up(x.dims[dim], index, "an axis")
    if index.dims:
        unify(index.dims[0], source.dims[dim])
    rest = [i for i in range(len(out)) if i != dim]
    shared = [Value([v.dims[i] for i in rest], uniform=v.uniform) for v in (x, source)]
    dims = broadcast(shared, [int(out[i]) for i in rest])
    dims.insert(dim, x.dims[dim])
    return Value(dims)


@rule("embedding_bag", "_embedding_bag")
def embedding_bag(out: list[list[int]], weight: Value, index: Value, *args: Any, **kwargs: Any) -> list[Value]:
    """Sums or means of rows of weight (V, d) -> (bags, d), and how they were counted."""
    look_up(weight.dims[0], index, "a vocabulary")
    bags = Value([Axis(int(out[0][0]), "bags"), weight.dims[1]])
    return [bags, *[Value([Axis(int(size), "bags") for size in shape]) for shape in out[1:]]]


@rule("topk")
def topk(out: list[list[int]], x: Value, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> list[Value]:
    """The k largest along `dim`, ranked; their indices count positions of that axis."""
    dims = list(x.dims)
    dims[dim] = Axis(int(out[0][dim]), "ranks")
    for axis in x.dims:
        axis.mark("curved")
    return [Value(dims), Value(list(dims), domain=x.dims[dim])]


@rule("one_hot")
def one_hot(out: list[int], index: Value, *args: Any) -> Value:
    """A new dimension, which is the axis that the index counts."""
    axis = index.domain
    if axis is None or axis.size != out[-1]:
        axis = Axis(int(out[-1]), "classes of a one-hot code")
    return Value([*index.dims, axis])
