"""Operators that act on each entry by itself, and those that make entries: operands that meet share their axes."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.axes import Axis, unify
from topoopt.neurons.rules.table import Value, broadcast, fresh, rule, tensors

LINEAR = (
    "add", "sub", "rsub", "neg", "clone", "contiguous", "to", "_to_copy", "type_as", "detach", "alias",
    "lift_fresh_copy", "lift_fresh", "dropout", "native_dropout", "alpha_dropout", "feature_dropout", "positive",
    "view_as", "_assert_tensor_metadata", "lift", "copy", "float", "double", "half", "bfloat16", "identity",
)  # fmt: skip
SCALING = ("mul", "div", "true_divide", "multiply", "divide", "addcmul", "addcdiv", "lerp")
CURVED = (
    "relu", "gelu", "silu", "sigmoid", "tanh", "elu", "selu", "celu", "leaky_relu", "prelu_scalar", "hardtanh",
    "hardswish", "hardsigmoid", "mish", "softplus", "softsign", "relu6", "logsigmoid", "log_sigmoid", "exp", "exp2",
    "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "square", "pow", "abs", "sign", "sgn", "sin", "cos",
    "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "erf", "erfc", "erfinv", "reciprocal", "floor", "ceil",
    "round", "trunc", "frac", "clamp", "clamp_min", "clamp_max", "clip", "threshold", "minimum", "maximum", "fmin",
    "fmax", "fmod", "remainder", "floor_divide", "where", "masked_fill", "nan_to_num", "isnan", "isinf", "isfinite",
    "logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not",
    "bitwise_xor", "eq", "ne", "lt", "le", "gt", "ge", "bernoulli", "hypot", "logit", "__and__", "__or__",
    "__xor__", "__invert__", "hardshrink", "softshrink", "tanhshrink", "rrelu", "xlogy", "sinc", "logaddexp",
    "complex", "polar", "real", "imag", "conj", "angle", "copysign", "heaviside", "tanh_backward", "sigmoid_backward",
    "threshold_backward", "silu_backward", "gelu_backward", "elu_backward", "softplus_backward", "leaky_relu_backward",
)  # fmt: skip


@rule(*LINEAR)
def linear_map(out: list[int], *args: Any, **kwargs: Any) -> Value:
    """Sums, copies and casts."""
    values = tensors(args, list(kwargs.values()))
    dims = broadcast(values, out)
    only = values[0] if len(values) == 1 else None
    keeps = only is not None and only.shape == list(out)
    return Value(
        dims,
        source=only.source if keeps and only is not None else "",
        uniform=all(v.uniform for v in values),
        domain=only.domain if only is not None else None,
        content=only.content if keeps and only is not None else None,
        roles=only.roles if keeps and only is not None else {},
    )


@rule(*SCALING)
def scaling(out: list[int], *args: Any, **kwargs: Any) -> Value:
    """Products entry by entry: gates and scales."""
    values = tensors(args, list(kwargs.values()))
    dims = broadcast(values, out)
    if len([v for v in values if not v.is_parameter and not v.uniform]) > 1:
        for axis in dims:
            axis.mark("curved")
    return Value(dims, uniform=all(v.uniform for v in values))


@rule(*CURVED)
def curved(out: list[int], *args: Any, **kwargs: Any) -> Value:
    """Non-linear functions, comparisons and choices, entry by entry."""
    values = tensors(args, list(kwargs.values()))
    dims = broadcast(values, out)
    for axis in dims:
        axis.mark("curved")
    return Value(dims, uniform=all(v.uniform for v in values))


@rule("rrelu_with_noise")
def leaky(out: list[int], x: Value, *args: Any, **kwargs: Any) -> Value:
    """Slopes at random in training; in evaluation they are one number."""
    return curved(out, x)


@rule("log_sigmoid_forward")
def with_buffer(out: list[list[int]], x: Value) -> list[Value]:
    """With what its derivative is made from beside it."""
    return [curved(out[0], x), Value(fresh(out[1], "a buffer"))]


@rule("prelu")
def prelu(out: list[int], x: Value, weight: Value) -> Value:
    """A slope for each channel, which is dimension 1, or one for all."""
    if weight.dims and weight.dims[0].size > 1 and len(x.dims) > 1:
        unify(x.dims[1], weight.dims[0])
    for axis in x.dims:
        axis.mark("curved")
    return Value(list(x.dims))


@rule("glu")
def glu(out: list[int], x: Value, dim: int = -1) -> Value:
    """The first half gated by the second, along `dim`."""
    half = int(out[dim])
    first, second = x.dims[dim].cut([half, half])
    unify(first, second)
    first.mark("curved")
    dims = list(x.dims)
    dims[dim] = first
    return Value(dims)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "flip", "roll")
def ordered(out: Any, x: Value, dim: Any = 0, *args: Any, **kwargs: Any) -> Any:
    """The order along `dim` matters."""
    shifts_first = args[0] if args and isinstance(args[0], list | tuple) else dim
    for d in shifts_first if isinstance(shifts_first, list | tuple) else [shifts_first]:
        x.dims[d].freeze("its order matters to an operator that accumulates or shifts along it")
    for axis in x.dims:
        axis.mark("curved")
    one = Value(list(x.dims))
    return [one, one] if out and isinstance(out[0], list | tuple) else one


@rule("diff")
def diff(out: list[int], x: Value, n: int = 1, dim: int = -1, *args: Any, **kwargs: Any) -> Value:
    """Differences of neighbours along `dim`."""
    x.dims[dim].freeze("its order matters to an operator that takes differences along it")
    dims = list(x.dims)
    dims[dim] = Axis(int(out[dim]), "differences of neighbours")
    return Value(dims)


@rule("sort", "argsort")
def sort(out: Any, x: Value, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    """Sorting forgets which unit is which along `dim`: the result has an axis of its own that cannot be permuted."""
    dim = dim if isinstance(dim, int) and not isinstance(dim, bool) else -1
    dims = list(x.dims)
    dims[dim] = Axis(x.dims[dim].size, "a sorted axis")
    indices = Value(list(dims), domain=x.dims[dim])
    return [Value(dims), indices] if out and isinstance(out[0], list | tuple) else indices


@rule("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "scalar_tensor",
      "empty", "empty_like", "new_empty", "zero", "fill")  # fmt: skip
def uniform(out: list[int], *args: Any, **kwargs: Any) -> Value:
    """One number everywhere."""
    return Value(fresh(out), uniform=True)


@rule("arange", "linspace", "eye", "rand", "randn", "rand_like", "randn_like", "randint", "new_tensor", "tril_indices",
      "triu_indices", "logspace", "meshgrid", "range")  # fmt: skip
def counted(out: Any, *args: Any, **kwargs: Any) -> Any:
    """Each place has a number of its own."""
    if out and isinstance(out[0], list | tuple):
        return [Value(fresh(shape, "numbered places")) for shape in out]
    return Value(fresh(out, "numbered places"))
