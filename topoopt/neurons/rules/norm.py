"""Normalisations: statistics do not know the order of what they run over; scale and shift belong to the unit."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, unify
from topoopt.neurons.rules.table import Value, rule


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
