"""Sums, means, softmax, normalisation and losses: they do not know the order of what they run over."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, unify
from topoopt.neurons.rules.table import Value, broadcast, rule, tensors


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


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(out: Any, x: Value, shape: list[int], weight: Value | None = None, *args: Any, **kwargs: Any) -> Any:
    """Over the last dimensions, with scale and shift of their shape."""
    bias = args[0] if args and isinstance(args[0], Value) else kwargs.get("bias")
    for affine in (weight, bias):
        if affine is not None:
            for axis, own in zip(x.dims[-len(affine.dims) :], affine.dims):
                unify(axis, own)
    for axis in x.dims[-len(shape) :]:
        axis.mark("curved")
    return _with_statistics(out, Value(list(x.dims)))


@rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "instance_norm",
      "cudnn_batch_norm", "_batch_norm_with_update", "_native_batch_norm_legit_functional")  # fmt: skip
def batch_norm(out: Any, x: Value, *affine: Any, **kwargs: Any) -> Any:
    """Scale, shift and running statistics belong to the channels, dimension 1."""
    for value in (*affine, *kwargs.values()):
        if isinstance(value, Value) and len(value.dims) == 1:
            unify(x.dims[1], value.dims[0])
    x.dims[1].mark("curved")
    return _with_statistics(out, Value(list(x.dims)))


@rule("group_norm", "native_group_norm")
def group_norm(out: Any, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Channels are (group, within): both factors can be permuted, but no unit leaves its group."""
    numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    groups = numbers[0] if len(numbers) < 4 else numbers[-1]
    channels = x.dims[1].size
    for value in (*args, *kwargs.values()):
        if isinstance(value, Value) and len(value.dims) == 1:
            unify(x.dims[1], value.dims[0])
    x.dims[1].split([groups, channels // groups])
    x.dims[1].mark("curved")
    return _with_statistics(out, Value(list(x.dims)))


def _with_statistics(out: Any, result: Value) -> Any:
    if not (out and isinstance(out[0], list | tuple)):
        return result
    return [result, *[Value([Axis(int(s), "statistics of a norm") for s in shape]) for shape in out[1:]]]


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(out: Any, v: Value, g: Value, dim: int = 0) -> Any:
    """v / |v| * g along `dim`."""
    unify(v.dims[dim], g.dims[dim])
    result = Value(list(v.dims), source=v.source)
    return _with_statistics(out, result)


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
      "kl_div", "soft_margin_loss", "poisson_nll_loss", "gaussian_nll_loss")  # fmt: skip
def entry_by_entry(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """Prediction and target are compared entry by entry."""
    dims = broadcast([x, *tensors(args, list(kwargs.values()))], x.shape)
    for axis in dims:
        axis.mark("curved")
    return Value(dims if out else [])


@rule("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d", "nll_loss_forward", "multi_margin_loss")
def by_class(out: Any, x: Value, target: Value, *args: Any, **kwargs: Any) -> Any:
    """Targets name classes by their place, in dimension 1 of a batch."""
    x.dims[min(1, len(x.dims) - 1)].freeze("classes that targets name by place")
    many = bool(out) and isinstance(out[0], list)
    result = Value(list(target.dims) if (out[0] if many else out) else [])
    return [result, Value([])] if many else result
