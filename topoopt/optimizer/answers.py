"""What a policy says, held to its contract before it reaches an optimizer or a checkpoint: a factor, a memory of plain values."""

from __future__ import annotations

import numbers
from dataclasses import replace
from typing import Any

from topoopt.control import Policy, State
from topoopt.errors import TopoError
from topoopt.measurement import Decision

LARGEST = 1e6
"""A factor lies in (0, LARGEST)."""
DEEPEST = 20
"""Dicts and lists within each other that a memory may have."""


def checked(policy: Policy, answer: object) -> tuple[Decision, State]:
    """The decision and the memory that a policy has answered with, of plain values.

    Raises:
        TopoError: for what is no decision, a factor outside (0, 1e6), or a memory that no checkpoint could hold.
    """
    fits = (
        isinstance(answer, tuple)
        and len(answer) == 2
        and isinstance(answer[0], Decision)
        and isinstance(answer[1], dict)
    )
    if not fits:
        raise TopoError(f"policy {policy.name!r} decided {answer!r}: it must return (Decision, its memory as a dict)")
    decision, state = answer  # type: ignore[misc]
    scale = decision.scale
    number = isinstance(scale, numbers.Real) and not isinstance(scale, bool)  # numpy's numbers are
    if not (number and 0 < float(scale) < LARGEST):
        raise TopoError(
            f"policy {decision.policy!r} returned the factor {scale!r}: a factor must be a number in (0, {LARGEST:g})"
        )
    return replace(decision, scale=float(scale), **_words(policy, decision)), plain(policy, state)


def _words(policy: Policy, decision: Decision) -> dict[str, Any]:
    words = {name: getattr(decision, name) for name in ("policy", "rule", "note", "weights")}
    events = decision.events
    if not (isinstance(events, tuple | list) and all(isinstance(one, str) for one in (*words.values(), *events))):
        raise TopoError(f"policy {policy.name!r} decided {decision!r}: everything but its factor must be strings")
    return {**{name: str(word) for name, word in words.items()}, "events": tuple(map(str, events))}


def plain(policy: Policy, value: Any, deep: int = 0) -> Any:
    """A memory as a checkpoint holds it: numbers (numpy's as Python's own), strings, None, lists and dicts of them.

    Raises:
        TopoError: for anything else, and for what contains itself.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if deep < DEEPEST and isinstance(value, list | tuple):
        values = [plain(policy, one, deep + 1) for one in value]
        return tuple(values) if isinstance(value, tuple) else values
    if deep < DEEPEST and isinstance(value, dict):
        return {plain(policy, key, DEEPEST): plain(policy, one, deep + 1) for key, one in value.items()}
    raise TopoError(
        f"the memory of policy {policy.name!r} holds a {type(value).__name__}"
        + (f" {DEEPEST} levels deep" if deep >= DEEPEST else "")
        + ": it must be of numbers, strings, None, lists and dicts, so that a checkpoint can hold it"
    )
