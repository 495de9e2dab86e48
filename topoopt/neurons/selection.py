"""Which groups are measured, and which optimizers the theory covers.

An update rule is equivariant when permuting the neurons, with their optimizer state, permutes the displacements (property
P1 of Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670). Coordinate-wise rules are; so are rules that only ever see a tensor
through norms and matrix products. Whatever depends on where in memory a number lies is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from topoopt.errors import ConfigError
from topoopt.neurons.group import NeuronGroup

COVERED = {
    "SGD", "Adam", "AdamW", "SparseAdam", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop",
    "ASGD", "Adafactor", "LBFGS", "Muon", "Lamb", "LAMB", "LARS", "Lars", "Lion", "Prodigy", "DAdaptAdam",
    "DAdaptSGD", "DAdaptLion", "AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree", "AdaBelief", "Adan",
    "Tiger", "SignSGD", "AdEMAMix", "SOAP", "StableAdamW",
}  # fmt: skip
"""Equivariant by measurement or construction, by class name."""

OUTSIDE = {
    "Adam8bit": "block-quantised 8-bit states depend on where in memory a neuron lies",
    "AdamW8bit": "block-quantised 8-bit states depend on where in memory a neuron lies",
    "PagedAdam8bit": "block-quantised 8-bit states depend on where in memory a neuron lies",
    "PagedAdamW8bit": "block-quantised 8-bit states depend on where in memory a neuron lies",
    "Lion8bit": "block-quantised 8-bit states depend on where in memory a neuron lies",
    "PagedLion8bit": "block-quantised 8-bit states depend on where in memory a neuron lies",
    "SGD8bit": "block-quantised 8-bit states depend on where in memory a neuron lies",
    "AdamW4bit": "block-quantised 4-bit states depend on where in memory a neuron lies",
    "DistributedShampoo": "blocks smaller than a dimension treat neurons differently",
    "Shampoo": "it is equivariant only while its blocks cover whole dimensions",
    "Kron": "PSGD-Kron's triangular factors depend on the order of the neurons",
    "GaLoreAdamW": "the projection to low rank does not commute with permutations",
    "GaLoreAdamW8bit": "the projection to low rank does not commute with permutations",
    "GaLoreAdafactor": "the projection to low rank does not commute with permutations",
    "AdaHessian": "it draws noise: equivariant in law only",
    "Adahessian": "it draws noise: equivariant in law only",
    "SophiaH": "it draws noise: equivariant in law only",
    "SGLD": "it draws noise: equivariant in law only",
}
"""Not equivariant, or not known to be, with the reason."""
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


@dataclass(frozen=True)
class Coverage:
    """Whether the theory covers an optimizer's rule, and why not."""

    covered: bool
    reason: str = ""


def optimizer_coverage(optimizer: torch.optim.Optimizer) -> Coverage:
    """Look an optimizer up by the names of its class and base classes."""
    kinds = [kind.__name__ for kind in type(optimizer).__mro__]
    for name in kinds:
        if name in OUTSIDE:
            return Coverage(False, f"{name}: {OUTSIDE[name]}")
        if name in COVERED:
            return Coverage(True)
    return Coverage(False, f"{kinds[0]} is not among the rules that were checked to be permutation-equivariant")
