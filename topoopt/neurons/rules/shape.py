"""Operators that move dimensions about: reshape, permute, cat, split, slice and their kin."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, regroup, unify
from topoopt.neurons.rules.table import Value, rule


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_copy", "unsafe_view")
def view(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """Row-major regrouping: dimensions become products of factors, or factors of products."""
    if 0 in out:
        return Value([Axis(int(size)) for size in out])
    factors = [factor for axis in x.dims for factor in _pieces(axis)]
    dims = regroup(factors, [int(size) for size in out])
    same = [a.size for a in x.dims] == [int(s) for s in out]
    return Value(dims, source=x.source if same else "", uniform=x.uniform, domain=x.domain)


def _pieces(axis: Axis) -> list[Axis]:
    return [] if axis.size == 1 else axis.factors()


@rule("squeeze", "squeeze_")
def squeeze(out: list[int], x: Value, *args: Any) -> Value:
    """Drop dimensions of size 1."""
    kept = iter([axis for axis in x.dims if axis.size != 1])
    return Value([Axis(1) if size == 1 else next(kept) for size in out], uniform=x.uniform, domain=x.domain)


@rule("unsqueeze")
def unsqueeze(out: list[int], x: Value, dim: int) -> Value:
    """Add a dimension of size 1."""
    dims = list(x.dims)
    dims.insert(dim if dim >= 0 else dim + len(out), Axis(1))
    return Value(dims, uniform=x.uniform, domain=x.domain)


@rule("permute", "movedim_permuted")
def permute(out: list[int], x: Value, order: list[int]) -> Value:
    """Reorder dimensions."""
    return Value([x.dims[i] for i in order], source=x.source, uniform=x.uniform, domain=x.domain, roles=x.roles)


@rule("transpose", "swapaxes", "swapdims")
def transpose(out: list[int], x: Value, a: int, b: int) -> Value:
    """Swap two dimensions."""
    dims = list(x.dims)
    dims[a], dims[b] = dims[b], dims[a]
    return Value(dims, source=x.source, uniform=x.uniform, domain=x.domain, roles=x.roles)


@rule("movedim", "moveaxis")
def movedim(out: list[int], x: Value, source: Any, destination: Any) -> Value:
    """Move dimensions to other places."""
    n = len(x.dims)
    sources = [s % n for s in (source if isinstance(source, list | tuple) else [source])]
    targets = [d % n for d in (destination if isinstance(destination, list | tuple) else [destination])]
    order: list[int | None] = [None] * n
    for s, d in zip(sources, targets):
        order[d] = s
    rest = iter([i for i in range(n) if i not in sources])
    return Value([x.dims[next(rest) if i is None else i] for i in order], uniform=x.uniform, domain=x.domain)


@rule("t", "numpy_T", "mT", "adjoint", "matrix_H", "mH")
def t(out: list[int], x: Value) -> Value:
    """Swap the last two dimensions."""
    return Value([*x.dims[:-2], *x.dims[-2:][::-1]], source=x.source, uniform=x.uniform, domain=x.domain, roles=x.roles)


@rule("expand", "broadcast_to", "expand_as")
def expand(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """Repeat dimensions of size 1: the new axis is the same everywhere, so any permutation of it does nothing."""
    dims = [Axis(int(size)) for size in out]
    for i in range(1, len(x.dims) + 1):
        if x.dims[-i].size == dims[-i].size:
            dims[-i] = x.dims[-i]
    return Value(dims, uniform=x.uniform, domain=x.domain)


@rule("repeat", "tile")
def repeat(out: list[int], x: Value, repeats: list[int]) -> Value:
    """Whole copies one after the other: a product with the copies outside."""
    dims: list[Axis] = []
    for i in range(1, len(out) + 1):
        axis = x.dims[-i] if i <= len(x.dims) else Axis(1)
        dims.insert(0, Axis.product([Axis(int(repeats[-i])), axis]) if repeats[-i] != 1 else axis)
    return Value(dims, uniform=x.uniform)


@rule("repeat_interleave")
def repeat_interleave(out: list[int], x: Value, repeats: Any, dim: int | None = None, **kwargs: Any) -> Value:
    """Every unit repeated in place: a product with the copies inside."""
    if dim is None or not isinstance(repeats, int):
        for axis in x.dims:
            axis.freeze("repeat_interleave with counts of its own for each unit")
        return Value([Axis(int(size), "repeat_interleave") for size in out])
    dims = list(x.dims)
    dims[dim] = Axis.product([x.dims[dim], Axis(repeats)])
    return Value(dims, uniform=x.uniform)


@rule("cat", "concat", "concatenate")
def cat(out: list[int], xs: list[Value], dim: int = 0) -> Value:
    """Segments side by side along `dim`; the other dimensions are shared."""
    real = [x for x in xs if x.shape != [0]]
    if not real:
        return Value([Axis(int(size)) for size in out])
    dim = dim % len(out)
    dims = list(real[0].dims)
    for x in real[1:]:
        for i, axis in enumerate(x.dims):
            if i != dim:
                unify(dims[i], axis)
    dims[dim] = Axis.sum([x.dims[dim] for x in real])
    return Value(dims, uniform=False)


@rule("stack")
def stack(out: list[int], xs: list[Value], dim: int = 0) -> Value:
    """A new dimension whose places tell the tensors apart."""
    dims = list(xs[0].dims)
    for x in xs[1:]:
        for a, b in zip(dims, x.dims):
            unify(a, b)
    dims.insert(dim % len(out), Axis(len(xs), "the places of a stack"))
    return Value(dims)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "tensor_split")
def split(out: list[list[int]], x: Value, how: Any, dim: int = 0) -> list[Value]:
    """Cut along `dim` into segments."""
    dim = dim % len(x.dims)
    pieces = x.dims[dim].cut([int(shape[dim]) for shape in out])
    return [Value([*x.dims[:dim], piece, *x.dims[dim + 1 :]], uniform=x.uniform) for piece in pieces]


@rule("slice", "narrow")
def slice_(out: list[int], x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """A range of positions along `dim`."""
    dim = dim % len(x.dims)
    size, length = x.dims[dim].size, int(out[dim])
    if length == size and step == 1:
        return Value(list(x.dims), source=x.source, uniform=x.uniform, domain=x.domain, roles=x.roles)
    dims = list(x.dims)
    begin = 0 if start is None else int(start)
    begin = max(0, begin + size) if begin < 0 else min(begin, size)
    dims[dim] = _range(x.dims[dim], begin, length, step)
    return Value(dims, uniform=x.uniform)


def _range(axis: Axis, begin: int, length: int, step: int) -> Axis:
    if step == 1:
        return axis.cut([begin, length, axis.size - begin - length])[1]
    if axis.size % step == 0 and length == axis.size // step:  # every step-th: interleaved units
        outer, inner = axis.split([length, step])
        inner.freeze("interleaved units told apart by their places")
        return outer
    axis.freeze("a strided slice that does not line up")
    return Axis(length, "a strided slice")


@rule("select")
def select(out: list[int], x: Value, dim: int, index: int) -> Value:
    """One position along `dim`, which is told apart from the others by that."""
    if x.dims[dim].size > 1 and not x.uniform:
        x.dims[dim].freeze("one of its positions is selected")
    dim = dim % len(x.dims)
    return Value([axis for i, axis in enumerate(x.dims) if i != dim], uniform=x.uniform, domain=x.domain)


@rule("unbind")
def unbind(out: list[list[int]], x: Value, dim: int = 0) -> list[Value]:
    """All positions along `dim`, one by one."""
    return [select(shape, x, dim, i) for i, shape in enumerate(out)]


@rule("pad", "constant_pad_nd")
def pad(out: list[int], x: Value, padding: list[int], *args: Any, **kwargs: Any) -> Value:
    """Zeros around; a padded dimension gets segments, and other modes than constant freeze it."""
    mode = next((a for a in args if isinstance(a, str)), kwargs.get("mode", "constant"))
    dims = list(x.dims)
    for i in range(len(padding) // 2):
        before, after = padding[2 * i], padding[2 * i + 1]
        if before == after == 0:
            continue
        axis = x.dims[-1 - i]
        if mode != "constant" or before < 0 or after < 0:
            axis.freeze(f"padded ({mode})")
            dims[-1 - i] = Axis(int(out[-1 - i]), f"padded ({mode})")
        else:
            dims[-1 - i] = Axis.sum([Axis(before, "padding"), axis, Axis(after, "padding")])
    return Value(dims)


@rule("unfold", "as_strided", "tril", "triu", "diagonal")
def positions(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """The last two dimensions (or a window over one) are told apart by place; leading ones are kept where they fit."""
    kept = 0
    while kept < len(x.dims) - 2 and kept < len(out) - 2 and x.dims[kept].size == out[kept]:
        kept += 1
    for axis in x.dims[kept:]:
        axis.freeze("an operator that depends on places")
    return Value([*x.dims[:kept], *[Axis(int(size), "places") for size in out[kept:]]], uniform=False)


@rule("pixel_shuffle")
def pixel_shuffle(out: list[int], x: Value, factor: int) -> Value:
    """(N, C r r, H, W) -> (N, C, H r, W r): the channels' inner factor becomes places."""
    channels, inner = x.dims[-3].split([int(out[-3]), factor * factor])
    inner.freeze("places within a larger pixel")
    return Value([*x.dims[:-3], channels, *[Axis(int(size), "a spatial dimension") for size in out[-2:]]])


@rule("pixel_unshuffle")
def pixel_unshuffle(out: list[int], x: Value, factor: int) -> Value:
    """(N, C, H r, W r) -> (N, C r r, H, W)."""
    channels = Axis.product([x.dims[-3], Axis(factor * factor, "places within a larger pixel")])
    return Value([*x.dims[:-3], channels, *[Axis(int(size), "a spatial dimension") for size in out[-2:]]])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(out: list[int], x: Value, groups: int) -> Value:
    """Channels (group, within) become (within, group)."""
    group, within = x.dims[1].split([groups, x.dims[1].size // groups])
    return Value([x.dims[0], Axis.product([within, group]), *x.dims[2:]])


@rule("im2col")
def im2col(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """(N, C, H, W) -> (N, C k, L): windows of k places."""
    channels = x.dims[-3]
    for axis in x.dims[-2:]:
        axis.freeze("a spatial dimension")
    windows = Axis.product([channels, Axis(int(out[-2]) // channels.size, "places within a window")])
    return Value([*x.dims[:-3], windows, Axis(int(out[-1]), "a spatial dimension")])


@rule("col2im")
def col2im(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """(N, C k, L) -> (N, C, H, W)."""
    channels, inner = x.dims[-2].split([int(out[-3]), x.dims[-2].size // int(out[-3])])
    inner.freeze("places within a window")
    x.dims[-1].freeze("a spatial dimension")
    return Value([*x.dims[:-2], channels, *[Axis(int(size), "a spatial dimension") for size in out[-2:]]])


@rule("view_as_complex")
def view_as_complex(out: list[int], x: Value) -> Value:
    """The last dimension holds real and imaginary parts, which are told apart by their places."""
    x.dims[-1].freeze("real and imaginary parts")
    return Value(x.dims[:-1])


@rule("view_as_real")
def view_as_real(out: list[int], x: Value) -> Value:
    """A new last dimension for real and imaginary parts."""
    return Value([*x.dims, Axis(2, "real and imaginary parts")])
