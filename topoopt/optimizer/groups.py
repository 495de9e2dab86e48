"""Which neuron groups a run measures: found or given, verified, selected, held against the model as it is, every omission named."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.modules import innermost
from topoopt.neurons import NeuronGroup, admitted, call_parts, discover, optimizer_coverage, parameter_names, select
from topoopt.optimizer.capture import FirstInputs
from topoopt.sharding import unsharded

NOT_SEEN = (
    "no forward of the model, or of a part of it, has been seen yet, so its neurons are not known: it is watched until one "
    "comes; example_inputs sets inputs by hand"
)
STILL = "none of its parameters is moved by this optimizer (frozen, or held by another one)"


@dataclass(frozen=True)
class Found:
    """The groups to measure, and what was left out."""

    groups: list[NeuronGroup]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    moved_share: dict[str, float] = field(default_factory=dict)
    """Name -> share of the group's entries that this optimizer moves."""


class Groups:
    """The groups of a run; found once, and again when the model has become another one, or more of its parts were called.

    Args:
        config: what is asked for.
        given: groups to measure instead of those that are found.
        outer: name of a wrapper that acts after the update rule's step, if there is one.
    """

    def __init__(self, config: TopoConfig, given: list[NeuronGroup] | None, outer: str = "") -> None:
        self._config, self._given, self._outer = config, given, outer
        self.example_inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.found: Found | None = None
        self.complete = False
        """Whether more inputs would tell no more: all that the optimizer moves was called, or nothing new since the last look."""
        self._candidates: list[NeuronGroup] = []
        self._rejected: dict[str, str] = {}
        self._structure: Any = None
        self._moved: Any = None
        self._parts: set[str] = set()

    @property
    def all(self) -> list[NeuronGroup]:
        """The groups that are measured; empty until they have been found."""
        return [] if self.found is None else self.found.groups

    def look(self, model: nn.Module, optimizer: Optimizer, inputs: FirstInputs | None) -> bool:
        """Hold what is known against the model; find what has changed. Returns whether the neurons are known.

        False: the model has changed, or was never seen, and no inputs are at hand.
        """
        structure, moved = _structure(model), _moved_names(model, optimizer)
        if self._structure != structure:
            if self.example_inputs is None and (inputs is None or not inputs.seen):
                self.found = Found([], {"groups": NOT_SEEN})
                return False
            self._parts = set()
        parts = self._parts if inputs is None else set(inputs.of)
        self.complete = self.example_inputs is not None or inputs is None or inputs.cover(moved) or parts == self._parts
        if self._structure != structure or parts != self._parts:
            self._candidates, self._rejected = self._discover(model, inputs)
            self._structure, self._moved, self._parts = structure, None, parts
        if self._moved != moved:
            self._moved = moved
            self.found = self._chosen(model, optimizer, moved)
        return True

    def _discover(self, model: nn.Module, inputs: FirstInputs | None) -> tuple[list[NeuronGroup], dict[str, str]]:
        own = unsharded(innermost(model))
        whole = self.example_inputs or (None if inputs is None else inputs.whole())
        call = None
        if whole is not None:
            args, kwargs = whole
        else:
            assert inputs is not None
            calls = [(name, "__call__", *given) for name, given in inputs.of.items()]
            args, kwargs, call = (calls,), {}, call_parts
        if self._given is not None:
            verdict = admitted(own, self._given, args, kwargs, call)
            return verdict.passed, {n: f"not a symmetry: {why}" for n, why in verdict.rejected.items()}
        found = discover(own, *args, call=call, **kwargs)
        said = {f"discovery {i}": note for i, note in enumerate(found.notes)} if not found else {}
        return list(found), {**{n: f"not verified: {why}" for n, why in found.unverified.items()}, **said}

    def _chosen(self, model: nn.Module, optimizer: Optimizer, moved: frozenset[str]) -> Found:
        groups, unselected = select(self._candidates, self._config.include, self._config.exclude)
        skipped = {**self._rejected, **unselected}
        shares = {group.name: _moved_share(model, group, moved) for group in groups}
        skipped |= {name: STILL for name, share in shares.items() if share == 0}
        moving = [group for group in groups if shares[group.name] > 0]
        if not moving:
            skipped["groups"] = (
                f"none of the {len(self._candidates)} neuron groups found is left to measure"
                if self._candidates
                else "no set of units that can be permuted without changing the model's function was found"
            )
        coverage = optimizer_coverage(optimizer)
        notes = [] if coverage.covered else [f"outside the theory: {coverage.reason}"]
        if self._outer:
            notes.append(f"{self._outer} acts after the inner step: the displacement is of both, r of the inner rule")
        return Found(moving, skipped, tuple(notes), {n: s for n, s in shares.items() if s > 0})


def _structure(model: nn.Module) -> Any:
    """What groups depend on: which tensors stand where, and their shapes."""
    return tuple((n, id(p), tuple(p.shape)) for n, p in innermost(model).named_parameters(remove_duplicate=False))


def _moved_names(model: nn.Module, optimizer: Optimizer) -> frozenset[str]:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = innermost(model).named_parameters(remove_duplicate=False)
    return frozenset(n for n, p in named if p.requires_grad and id(p) in held)


def _moved_share(model: nn.Module, group: NeuronGroup, moved: frozenset[str]) -> float:
    """Share of the group's weights, tensors counted whole, that the optimizer moves."""
    parameters = dict(innermost(model).named_parameters(remove_duplicate=False))
    sizes = {n: math.prod(parameters[n].shape) for n in parameter_names(group) if n in parameters}
    total = sum(sizes.values())
    return sum(size for n, size in sizes.items() if n in moved) / total if total else 0.0
