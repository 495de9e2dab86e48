"""Convolutions, pooling, resampling and Fourier transforms: channels are axes, places are not."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, unify
from topoopt.neurons.rules.table import Value, rule, tensors

PLACES = "a spatial dimension"


@rule("conv1d", "conv2d", "conv3d")
def conv(out: list[int], x: Value, weight: Value, bias: Value | None = None, *args: Any, **kwargs: Any) -> Value:
    """x (N, C, ...), weight (O, C / groups, ...), bias (O) -> (N, O, ...)."""
    groups = kwargs.get("groups", args[3] if len(args) > 3 else 1)
    channels = 1 if len(x.dims) == len(weight.dims) else 0  # an input without batch has them first
    _connect(x.dims[channels], weight, 1, 0, groups)
    return _result(out, x, weight, bias, channels)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(out: list[int], x: Value, weight: Value, bias: Value | None = None, *args: Any, **kw: Any) -> Value:
    """x (N, C, ...), weight (C, O / groups, ...) -> (N, O, ...)."""
    groups = kw.get("groups", args[3] if len(args) > 3 else 1)
    channels = 1 if len(x.dims) == len(weight.dims) else 0
    for axis in (*weight.dims[2:], *x.dims[channels + 1 :]):
        axis.freeze(PLACES)
    if groups == 1:
        unify(x.dims[channels], weight.dims[0])
        produced = weight.dims[1]
    else:
        unify(x.dims[channels], weight.dims[0])
        group, _ = weight.dims[0].split([groups, weight.dims[0].size // groups])
        produced = Axis.product([group, weight.dims[1]])
    if bias is not None:
        unify(bias.dims[0], produced)
    produced.mark("channel")
    return Value([*x.dims[:channels], produced, *[Axis(int(s), PLACES) for s in out[channels + 1 :]]])


@rule("convolution")
def convolution(
    out: list[int], x: Value, weight: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    """The operator beneath all of them."""
    if transposed:
        return conv_transpose(out, x, weight, bias, groups=groups)
    return conv(out, x, weight, bias, groups=groups)


def _connect(channels: Axis, weight: Value, inner: int, outer: int, groups: int) -> None:
    if groups == 1:
        unify(channels, weight.dims[inner])
        return
    group, within = channels.split([groups, channels.size // groups])
    unify(within, weight.dims[inner])
    made, _ = weight.dims[outer].split([groups, weight.dims[outer].size // groups])
    unify(group, made)


def _result(out: list[int], x: Value, weight: Value, bias: Value | None, channels: int) -> Value:
    for axis in (*weight.dims[2:], *x.dims[channels + 1 :]):
        axis.freeze(PLACES)
    if bias is not None:
        unify(bias.dims[0], weight.dims[0])
    weight.dims[0].mark("channel")
    return Value([*x.dims[:channels], weight.dims[0], *[Axis(int(s), PLACES) for s in out[channels + 1 :]]])


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "_adaptive_avg_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_linear1d",
    "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "max_pool2d_with_indices", "grid_sampler",
    "grid_sampler_2d", "grid_sampler_3d",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "_upsample_bilinear2d_aa", "lp_pool2d",
    "_upsample_bicubic2d_aa", "max_pool1d_with_indices",
)  # fmt: skip
def pool(out: Any, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Places change, batch and channels stay."""
    many = bool(out) and isinstance(out[0], list | tuple)
    shape = out[0] if many else out
    kept = 0
    while kept < min(2, len(x.dims) - 1) and x.dims[kept].size == shape[kept]:
        kept += 1
    for axis in x.dims[kept:]:
        axis.freeze(PLACES)
    for grid in tensors(args):  # where to look, in coordinates
        for axis in grid.dims[1:]:
            axis.freeze(PLACES)
    for axis in x.dims[:kept]:
        axis.mark("curved")
    result = Value([*x.dims[:kept], *[Axis(int(size), PLACES) for size in shape[kept:]]])
    return [result, Value([Axis(int(s), PLACES) for s in shape])] if many else result


LINES = ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
PLANES = ("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2")
SPACES = ("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")


@rule(*LINES)
def along_one(out: list[int], x: Value, n: int | None = None, dim: int = -1, *args: Any, **kwargs: Any) -> Value:
    """Along one dimension."""
    return _transformed(out, x, [dim])


@rule(*PLANES)
def along_two(out: list[int], x: Value, s: Any = None, dim: Any = (-2, -1), *args: Any, **kwargs: Any) -> Value:
    """Along two dimensions, the last ones when none are given."""
    return _transformed(out, x, list(dim))


@rule(*SPACES)
def along_many(out: list[int], x: Value, s: Any = None, dim: Any = None, *args: Any, **kwargs: Any) -> Value:
    """Along several dimensions, all when none are given."""
    return _transformed(out, x, list(range(len(x.dims)) if dim is None else dim))


@rule("fft_fftshift", "fft_ifftshift")
def shifted(out: list[int], x: Value, dim: Any = None) -> Value:
    """Halves swapped."""
    return _transformed(out, x, list(range(len(x.dims)) if dim is None else dim if isinstance(dim, list) else [dim]))


def _transformed(out: list[int], x: Value, along: list[int]) -> Value:
    dims = list(x.dims)
    for d in along:
        x.dims[d].freeze("a Fourier transform runs along it")
        dims[d] = Axis(int(out[d]), "frequencies")
    return Value(dims)
