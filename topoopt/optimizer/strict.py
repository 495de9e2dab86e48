"""Strict mode: every step certified. A step that would stretch some pair of neurons by r_pair >= 1 is shortened."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from topoopt.geometry import compare
from topoopt.measurement import Decision
from topoopt.neurons import NeuronGroup, parameter_names, unwrap

MARGIN = 0.99
"""A shortened step has r_pair at this value: below 1 by more than float32 rounding."""


class Certifier:
    """Snapshots the parameters of the measured groups before a step and shortens the step where the certificate fails.

    Displacements scale linearly, so blending every measured parameter back by the factor s brings r_pair to s * r_pair.
    """

    def __init__(self) -> None:
        self.shortened = 0
        self.factor = 1.0
        self._before: list[tuple[Tensor, Tensor]] = []
        self._clouds: dict[str, Tensor] = {}

    @torch.no_grad()
    def before(self, model: nn.Module, groups: list[NeuronGroup]) -> None:
        """Keep the measured parameters and clouds as they are."""
        names = {name for group in groups for name in parameter_names(group)}
        named = unwrap(model).named_parameters(remove_duplicate=False)
        measured = {id(p): p for name, p in named if name in names}  # by identity: a tied parameter is blended once
        self._before = [(p, p.detach().clone()) for p in measured.values()]
        self._clouds = {group.name: group.points(model) for group in groups}

    @torch.no_grad()
    def after(self, model: nn.Module, groups: list[NeuronGroup]) -> float:
        """Shorten the step just taken where it must be; returns by how much (1.0: it stands as it is)."""
        seen = [group for group in groups if group.name in self._clouds]
        gain = max((compare(self._clouds[g.name], g.points(model)).gain for g in seen), default=0.0)
        self.factor = 1.0 if gain < 1.0 else MARGIN / gain
        if self.factor < 1.0:
            self.shortened += 1
            for parameter, old in self._before:
                parameter.copy_(torch.lerp(old, parameter, self.factor))
        self._before, self._clouds = [], {}
        return self.factor

    def explain(self, decision: Decision) -> Decision:
        """The decision as it turned out once the step had been certified."""
        if self.factor == 1.0:
            return decision
        note = f"the step would have stretched a pair of neurons by r_pair >= 1 and was shortened by {self.factor:.3g}"
        return replace(decision, scale=decision.scale * self.factor, rule="certificate", note=note)
