"""Operators that make tensors from nothing: filled with one number they are symmetric, counted they are not."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.rules.table import Value, fresh, rule


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
