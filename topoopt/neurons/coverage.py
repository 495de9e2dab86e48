"""Which optimizers are permutation-equivariant, so that the theory covers them.

An update rule is equivariant when permuting the neurons, with their optimizer state, permutes the displacements (property
P1 of Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670). Coordinate-wise rules are; so are rules that only ever see a tensor
through norms and matrix products. Whatever depends on where in memory a number lies is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
