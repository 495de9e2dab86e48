"""Which groups are measured."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from topoopt.errors import ConfigError
from topoopt.neurons.group import NeuronGroup

UNUSUAL = {
    "residual": "a residual neuron is a column of nearly every weight; name it in include= to measure it",
    "head_dim": "the dimensions inside a head are not measured by default; name it in include= to measure it",
}
"""Kinds that are left out unless they are named, with the reason."""


def select(
    groups: Sequence[NeuronGroup],
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> tuple[list[NeuronGroup], dict[str, str]]:
    """Choose groups by glob patterns over their names; returns the chosen ones, and name -> reason for the others.

    Raises:
        ConfigError: for a pattern that matches no group, with the names there are.
    """
    names = [group.name for group in groups]
    included, excluded = _patterns(include), _patterns(exclude)
    for pattern in (*included, *excluded):
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"the pattern {pattern!r} matches no neuron group; there are: {', '.join(names)}")
    chosen: list[NeuronGroup] = []
    skipped: dict[str, str] = {}
    for group in groups:
        if any(fnmatchcase(group.name, pattern) for pattern in excluded):
            skipped[group.name] = "left out by exclude="
        elif included and not any(fnmatchcase(group.name, pattern) for pattern in included):
            skipped[group.name] = "not named in include="
        elif not included and group.kind in UNUSUAL:
            skipped[group.name] = UNUSUAL[group.kind]
        else:
            chosen.append(group)
    return chosen, skipped


def parameter_names(group: NeuronGroup) -> set[str]:
    """Names of the parameters that the group's neurons are made of."""
    return {name for s in group.slices if s.role != "state" for name in s.tensors}


def _patterns(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)
