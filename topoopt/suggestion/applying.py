"""A suggestion put in force: on the optimizer's groups and in the schedulers that move them, as if it had been typed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from topoopt.suggestion.checks import bare, peaks_of
from topoopt.suggestion.result import Suggestion

IN_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")
IN_SCHEDULERS = ("base_lrs", "max_lrs", "_last_lr")
"""Lists of rates, one a parameter group. Floors that a user gave as rates (`eta_min`, `min_lrs`) stay."""
Moved = Callable[[int, float], float]
"""(place of the group, a rate of it) -> the rate that it becomes."""


def put_in_force(found: Suggestion, optimizer: Optimizer, schedulers: Iterable[Any] = ()) -> None:
    """Set each group's rate to the suggested one, and let the schedulers start from it.

    A scheduler that has not moved yet does its first step anew: the rates are those of one that was made with the suggested
    rate, to the last bit. One that has moved keeps its place. Nothing happens where `found.known` is False.
    """
    if not found.known:
        return
    inner = bare(optimizer)
    peaks = peaks_of(inner)

    def moved(place: int, rate: float) -> float:
        return found.lr[place] if rate == peaks[place] else rate * found.factor[place]

    for place, group in enumerate(inner.param_groups):
        for key in IN_GROUPS:
            if group.get(key) is not None:
                group[key] = _set(group[key], moved(place, float(group[key])))
    if isinstance(inner.defaults.get("lr"), float) and inner.defaults["lr"] > 0:
        inner.defaults["lr"] = moved(0, inner.defaults["lr"])
    for scheduler in schedulers:
        _move(scheduler, moved)
        if _is_fresh(scheduler):
            for group in inner.param_groups:
                if "initial_lr" in group:
                    group["lr"] = _set(group["lr"], float(group["initial_lr"]))
            _start(scheduler)


def _set(held: Any, rate: float) -> Any:
    """A tensor is filled: a captured graph reads it where it lies."""
    return held.fill_(rate) if isinstance(held, Tensor) else rate


def _parts(scheduler: Any) -> list[Any]:
    """The schedulers that one is made of."""
    return list(getattr(scheduler, "_schedulers", ()))


def _move(scheduler: Any, moved: Moved) -> None:
    for name in IN_SCHEDULERS:
        rates = vars(scheduler).get(name)
        if isinstance(rates, list):
            setattr(scheduler, name, [_set(rate, moved(place, float(rate))) for place, rate in enumerate(rates)])
    for part in _parts(scheduler):
        _move(part, moved)


def _is_fresh(scheduler: Any) -> bool:
    """Whether it stands where its constructor left it. One that watches a metric has no first step."""
    parts = _parts(scheduler)
    if parts:
        return all(map(_is_fresh, parts))
    return getattr(scheduler, "last_epoch", 1) <= 0 and hasattr(scheduler, "base_lrs")  # -1: later in a sequence


def _start(scheduler: Any) -> None:
    """What its constructor did: the first step, from the groups' initial rates. Of a sequence only the first has begun."""
    parts = _parts(scheduler)
    one_by_one = type(scheduler).__name__ == "SequentialLR"
    for part in parts[:1] if one_by_one else parts:
        _start(part)
    if not parts:
        scheduler.last_epoch = -1
        scheduler._initial_step()
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
