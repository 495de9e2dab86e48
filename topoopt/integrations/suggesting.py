"""`TopoCallback(suggest=...)`: the learning rate found before a trainer's first step, and what is said of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from topoopt.errors import ConfigError, TopoError
from topoopt.suggestion import Suggestion
from topoopt.summary import Suggested

logger = logging.getLogger("topoopt")
KEPT = "rates are yours, unchanged"
OPTIONS = ("steps",)
"""What `suggest={...}` may hold: `topoopt.suggest`'s, as far as a trainer does not know them."""


def options_of(suggest: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    """The options of a search that is wanted; None where none is.

    Raises:
        ConfigError: for what is neither a bool nor a mapping of options.
    """
    if isinstance(suggest, bool):
        return {} if suggest else None
    if isinstance(suggest, Mapping) and set(suggest) <= set(OPTIONS):
        return dict(suggest)
    raise ConfigError(f"suggest={suggest!r} is not usable: give True, False or options such as {{'steps': 160}}")


def looked_for(optimizer: Optimizer, find: Callable[[], Suggestion]) -> Suggestion:
    """The suggestion, or one that is not known with the reason: no fault in looking ends a training."""
    try:
        return find()
    except TopoError as error:
        reason = str(error)
    except Exception as error:  # the user's model, loss or data, run on copies: whatever they raise
        logger.debug("topoopt: looking for a rate failed", exc_info=True)
        reason = f"Looking for it raised {type(error).__name__}: {error}"
    own = [group.get("initial_lr", group.get("lr")) for group in optimizer.param_groups]
    rates = tuple(float(rate) for rate in own if rate is not None)
    return Suggestion(rates, (1.0,) * len(rates), (0.0, math.inf), False, reason)


def tell(found: Suggestion) -> None:
    """Say which rate is in force from now on: another than was typed in, or the user's own though another was asked for."""
    said = str(found).replace("\n", ". ", 1)
    if not found.known and KEPT not in said:
        said = f"{said} (the {KEPT})"
    logger.warning("topoopt: %s", said)


def suggested(found: Suggestion) -> Suggested:
    """What a record holds of it."""
    return Suggested(found.lr, found.bracket if found.known else None, found.known, found.reason, found.steps)


def as_row(found: Suggestion) -> dict[str, float]:
    """Numbers for a tracker: the first group's rate and its bracket; nothing where it is not known."""
    if not found.known:
        return {}
    low, high = found.bracket
    return {"topo/suggested_lr": found.lr[0], "topo/suggested_low": low, "topo/suggested_high": high}
