"""Weights as they stood before a step: to tell how far it went, to shorten it, or to go back to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topoopt.geometry import compare
from topoopt.measurement import Decision
from topoopt.neurons import NeuronGroup, parameter_names, unwrap

EACH = 512
"""Entries of each tensor that are looked at."""
MARGIN = 0.99
"""A shortened step has r_pair at this value: below 1 by more than float32 rounding."""


class Sample:
    """Entries of the weights, evenly spaced, as they stood before a step."""

    @torch.no_grad()
    def __init__(self, weights: Sequence[Tensor]) -> None:
        own = [w for w in weights if not hasattr(w, "full_tensor") and w.numel()]
        self._weights = own
        self._before = [_entries(w).clone() for w in own]

    @torch.no_grad()
    def lengths(self) -> tuple[float, float]:
        """|D| / |x| of the step taken since, and |x| before it, each tensor weighed by its size; one host read."""
        if not self._weights:
            return math.nan, math.nan
        device = self._before[0].device
        moved, length = [], []
        for weight, before in zip(self._weights, self._before):
            share = weight.numel() / before.numel()
            moved.append(((_entries(weight) - before).abs().float().square().sum() * share).to(device))
            length.append((before.abs().float().square().sum() * share).to(device))
        total, whole = torch.stack([torch.stack(moved).sum(), torch.stack(length).sum()]).tolist()
        return (math.sqrt(total / whole) if whole > 0 else math.nan), math.sqrt(whole)


def _entries(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    return flat[:: max(1, flat.numel() // EACH)]


SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""State that torch's rules divide by the root of."""


class Snapshot:
    """Weights, buffers and the optimizer's state as they stood, in host memory: what a policy goes back to.

    Buffers too: a batch norm that has once seen a lost run's activations keeps them in its averages, for good where they were
    not finite. Costs as much host memory as all of it, from the first `keep` on.
    """

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._weights: list[tuple[Tensor, Tensor]] = []
        self._state: list[tuple[Tensor, dict[str, Any]]] = []

    @torch.no_grad()
    def keep(self, optimizer: Optimizer, buffers: Iterable[Tensor] = ()) -> None:
        """Remember what stands now; where it is not allowed nothing happens."""
        if not self._allowed:
            return
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        values = [(t, t.detach().to("cpu", copy=True)) for t in (*weights, *buffers)]
        state = [(p, _copied(optimizer.state[p]) if p in optimizer.state else {}) for p in weights]
        self._weights, self._state = values, state  # both or none: one step's weights never meet another's state

    @torch.no_grad()
    def back(self, optimizer: Optimizer) -> bool:
        """Put back what was remembered; returns whether there was anything.

        Averages of squared gradients stay as large as the lost run has made them: with those that it was lost with it
        would be lost again, at almost any rate.
        """
        for parameter, value in self._weights:
            parameter.copy_(value.to(parameter.device))
        for parameter, state in self._state:
            if parameter not in optimizer.state:
                continue
            held = optimizer.state[parameter]
            for key in held.keys() - state.keys() - {"step"}:
                _forget(held, key)  # it began since: a lost run's momentum would go on losing it
            for key, value in state.items():
                if isinstance(value, Tensor) and isinstance(held.get(key), Tensor):
                    now, value = held[key], value.to(held[key].device)
                    larger = torch.where(now.isfinite(), now.maximum(value), value) if key in SQUARES else value
                    now.copy_(larger)
                else:
                    held[key] = copy.deepcopy(value)
        return bool(self._weights)

    def forget(self) -> None:
        """Let go of it."""
        self._weights, self._state = [], []


def _forget(held: dict[str, Any], key: str) -> None:
    value = held[key]
    if isinstance(value, Tensor) and value.is_floating_point():
        value.nan_to_num_(0.0, 0.0, 0.0) if key in SQUARES else value.zero_()


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in state.items()
    }


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
        self._before, self._clouds, self.factor = [], {}, 1.0  # of a step whose certificate failed
        names = {name for group in groups for name in parameter_names(group)}
        named = unwrap(model).named_parameters(remove_duplicate=False)
        measured = {id(p): p for name, p in named if name in names}  # by identity: a tied parameter is blended once
        self._before = [(p, p.detach().clone()) for p in measured.values()]
        self._clouds = {group.name: group.points(model) for group in groups}

    def forget(self) -> None:
        """The coming step is not certified: a rank could not take its neurons down."""
        self._before, self._clouds = [], {}

    @torch.no_grad()
    def gain(self, model: nn.Module, groups: list[NeuronGroup]) -> float:
        """By how much the step just taken has stretched a pair of neurons at most."""
        seen = [(group, self._clouds[group.name]) for group in groups if group.name in self._clouds]
        now = [group.points(model) for group, _ in seen]  # gathered by all ranks, whatever fails then
        return max((compare(then, points).gain for (_, then), points in zip(seen, now)), default=0.0)

    @torch.no_grad()
    def shorten(self, gain: float) -> float:
        """Shorten the step just taken where it must be; returns by how much (1.0: it stands as it is)."""
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
