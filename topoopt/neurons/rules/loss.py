"""Losses, for models that return one."""

from __future__ import annotations

from typing import Any

from topoopt.neurons.rules.table import Value, broadcast, rule, tensors


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
