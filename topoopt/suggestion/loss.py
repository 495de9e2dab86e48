"""The loss of a batch, by the user's function or by the model's own output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss as Criterion

from topoopt.errors import ConfigError

LossFn = Callable[[nn.Module, Any], Any]


def loss_of(model: nn.Module, batch: Any, loss_fn: LossFn | None) -> Tensor:
    """The scalar loss. The batch is copied first: a forward may work in its place, and the next run needs it as it was.

    Raises:
        ConfigError: when there is no scalar loss to be found.
    """
    result = _result(model, copy.deepcopy(batch), loss_fn)
    if isinstance(result, Mapping):
        loss = result.get("loss")
    else:
        loss = result if isinstance(result, Tensor) else getattr(result, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        source = "the model" if loss_fn is None else "loss_fn"
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(result).__name__}"
        raise ConfigError(
            f"{source} returned {found}, which is no scalar loss and has none in .loss: give "
            "loss_fn(model, batch) that returns the loss, or batches with labels to a model that computes it"
        )
    return loss.reshape(())


def _result(model: nn.Module, batch: Any, loss_fn: LossFn | None) -> Any:
    if isinstance(loss_fn, Criterion):
        raise ConfigError(
            f"loss_fn={type(loss_fn).__name__}() takes outputs and targets: give a function of the model and the batch, "
            "such as lambda model, batch: criterion(model(batch[0]), batch[1])"
        )
    if loss_fn is not None:
        return loss_fn(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
